"""The nightly job when nodes go away: it goes on with what is not done, as often as the config allows."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from beeray.config import ClusterConfig
from beeray.console import Console
from beeray.errors import LostWorkersError, RunError
from beeray.runtime import embedding_job
from beeray.runtime.embedding_job import EmbeddingJob
from beeray.runtime.recovery import Recovery

AGAIN = "run the same command again to go on from here"


@dataclass
class Cluster:
    """Does the units of a plan one after the other, until what is listed comes in the way.

    Attributes:
        ends: of each run of the pipeline: after so many units, with an error or without.
        plans: what each was asked to do.
    """

    ends: list[tuple[int, Exception | None]]
    done: list[dict[str, Any]] = field(default_factory=list)
    plans: list[list[tuple[int, int]]] = field(default_factory=list)

    def run(self, plan: list[tuple[int, int]]) -> None:
        """One run of the pipeline."""
        self.plans.append(plan)
        number, error = self.ends.pop(0)
        self.done += [{"range": one, "rows": rows} for one, rows in plan[:number]]
        if error is not None:
            raise error


def a_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, max_failures: int) -> tuple[EmbeddingJob, io.StringIO]:
    """A job of four files on such a cluster, and what it says."""
    monkeypatch.setattr(
        embedding_job,
        "Pipeline",
        lambda units, embedder, plan, monitor: SimpleNamespace(run=lambda _: cluster.run(plan)),
    )
    monkeypatch.setattr(embedding_job.dataclasses, "replace", lambda one, **changes: one)
    said = io.StringIO()
    job = EmbeddingJob.__new__(EmbeddingJob)
    job._lease = None
    vars(job).update(
        config=SimpleNamespace(cluster=SimpleNamespace(max_failures=max_failures)),
        state=SimpleNamespace(num_ranges=4, dealt={"range_rows": [10, 20, 30, 40]}, format=None),
        folder=SimpleNamespace(reports=lambda: list(cluster.done), forget_checkpoint=lambda: None),
        embedder=None,
        console=Console(io.StringIO(), said),
        _units=lambda: None,
        _recovery=Recovery(ClusterConfig(max_failures=max_failures), Console(io.StringIO(), said)),
    )
    return job, said


def lost() -> LostWorkersError:
    return LostWorkersError(f"embed: a unit of work failed (its node has died); {AGAIN}")


def test_it_goes_on_with_what_is_not_done_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([(1, lost()), (2, lost()), (1, None)])
    job, said = a_job(cluster, monkeypatch, max_failures=2)
    assert [one["range"] for one in job._do_units([], None)] == [0, 1, 2, 3]
    assert cluster.plans == [[(0, 10), (1, 20), (2, 30), (3, 40)], [(1, 20), (2, 30), (3, 40)], [(3, 40)]]
    lines = said.getvalue().splitlines()
    assert lines == [
        f"embed: a unit of work failed (its node has died); going on with what is not done ({number} of "
        "cluster.max_failures 2)"
        for number in (1, 2)
    ]


def test_no_more_losses_are_survived_than_the_config_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([(1, lost()), (1, lost())])
    job, _ = a_job(cluster, monkeypatch, max_failures=1)
    with pytest.raises(LostWorkersError, match=AGAIN):
        job._do_units([], None)
    assert len(cluster.plans) == 2


def test_what_a_task_raised_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([(1, RunError("embed: no unit for you"))])
    job, said = a_job(cluster, monkeypatch, max_failures=5)
    with pytest.raises(RunError, match="no unit for you"):
        job._do_units([], None)
    assert said.getvalue() == ""


def test_what_comes_before_the_units_is_done_again_and_counts_among_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    dealt_again = "the cluster lost work on the data (a node); see ray status, and run the same command again"
    ends: list[Exception | None] = [LostWorkersError(dealt_again), None, lost(), lost(), None]

    def work() -> None:
        error = ends.pop(0)
        if error is not None:
            raise error

    job, said = a_job(Cluster([]), monkeypatch, max_failures=2)
    job._again_if_lost(work, "with dealing anew")
    assert said.getvalue() == (
        "the cluster lost work on the data (a node); going on with dealing anew (1 of cluster.max_failures 2)\n"
    )
    with pytest.raises(LostWorkersError):
        job._again_if_lost(work, "with measuring anew")
    assert len(ends) == 1
