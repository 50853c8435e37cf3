"""A killed encoder, worker or driver: the same publication in the end, and readers never see half of one.

`embed_chaos.py` plays as many rounds as one likes, at moments drawn from a seed; here is one of each kind.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from embed_chaos import NUM_FILES, Chaos, kind_of
from embedding_jobs import files_of
from nodes import running_cluster

from beeray.data.parts import write_part
from beeray.data.publishing import REPORTS, JobFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Chaos]:
    folder = Path(tempfile.mkdtemp(prefix="bk-"))  # short, for the sockets of Ray
    try:
        with running_cluster(folder, num_nodes=1, cpus=2) as cluster:
            yield Chaos(tmp_path_factory.mktemp("chaos"), cluster, num_items=3000)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["actor", "task"])
def test_a_job_that_loses_a_process_of_rays_goes_on_by_itself(chaos: Chaos, kind: str) -> None:
    played = chaos.play(kind, np.random.default_rng([1, len(kind)]), least_files=1)
    assert played.wrong == [], asdict(played)
    assert played.victim is not None and kind_of(played.victim) == kind
    assert played.codes == [0]
    assert len(played.reads) == 2 and sum(played.reads.values()) > 20


@pytest.mark.long
def test_a_job_whose_driver_was_killed_is_finished_by_the_same_command(chaos: Chaos) -> None:
    played = chaos.play("driver", np.random.default_rng(3), least_files=NUM_FILES // 3)
    assert played.wrong == [], asdict(played)
    assert played.victim == "command"
    assert played.codes == [-9, 0]
    assert played.already > 0 and played.kept >= played.already, "finished files were written again"


def test_a_report_that_a_kill_tore_counts_as_none(tmp_path: Path) -> None:
    """Ray writes reports in place: a process killed between making the file and filling it leaves it empty."""
    folder = JobFolder(str(tmp_path), "digest")
    reports = tmp_path / "work" / "digest" / REPORTS
    reports.mkdir(parents=True)
    write_part(pa.table({"range": [0], "sha256": ["0"]}), str(reports / "0_000000_000000.parquet"))
    (reports / "0_000001_000000.parquet").touch()
    assert [one["range"] for one in folder.reports()] == [0]


@pytest.mark.long
def test_rounds_that_differ_are_noticed(chaos: Chaos, tmp_path: Path) -> None:
    """What the rounds are compared with is not what was there before."""
    base = chaos.jobs.published("base")
    assert len(files_of(base)) == len(files_of(chaos.undisturbed)) == NUM_FILES
    assert not set(files_of(base)) & set(files_of(chaos.undisturbed))
    counts = chaos.undisturbed.manifest.counts
    assert (counts["encoded"], counts["reused"], counts["deleted"]) == (1800 + 150, 3000 - 1800 - 150, 150)
