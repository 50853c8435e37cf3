"""`beeray.doctor` as anyone types it: a whole run on a Ray of its own, one without a Ray, one on two nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import World

EVERYTHING = [
    "ray", "resources", "versions", "clocks", "storage", "data", "workers", "collectives", "deepspeed", "gradient",
    "encoder", "memory", "disk", "mlflow",
]  # fmt: skip


def what_is_there(world: World) -> set[Path]:
    return set(world.folder.rglob("*"))


def statuses(record: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["status"] for check in record["checks"]}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_config_that_would_run_passes_every_check_and_nothing_is_left_behind(world: World) -> None:
    before = what_is_there(world)
    done = world.run("doctor", "name=examined", "data.store=stores/never", "--timeout-s", "90")
    record = done.record
    assert statuses(record) == dict.fromkeys(EVERYTHING, "ok"), done.err
    assert record["passed"] and record["failed"] == []
    assert what_is_there(world) == before
    lines = done.err.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == EVERYTHING
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1].startswith("doctor examined: 14 ok in ")
    said = {check["name"]: check for check in record["checks"]}
    assert said["gradient"]["workers"] == 2 and said["gradient"]["largest_relative_difference"] < 1e-4
    assert "no store yet; raw tables of items are readable" in said["data"]["said"]
    assert len(done.out.splitlines()) == 1


def test_a_cluster_that_does_not_answer_fails_with_exit_code_2_and_the_record_all_the_same(world: World) -> None:
    done = world.run("doctor", "cluster.address=127.0.0.1:9", "tracking.uri=http://127.0.0.1:9")
    assert done.code == 2
    record = json.loads(done.out.splitlines()[-1])
    assert record["failed"] == ["ray", "mlflow"], "one failure does not hide another"
    assert set(statuses(record).values()) == {"FAILED", "skipped"}
    assert "cluster.address '127.0.0.1:9': no Ray cluster answers there" in done.err
    assert "tracking.uri 'http://127.0.0.1:9': MLflow cannot be reached" in done.err


@pytest.mark.long
def test_all_that_is_wrong_is_told_at_once(world: World, tmp_path: Path) -> None:
    done = world.run(
        "doctor",
        "cluster.num_workers=10",
        f"encoder.name={tmp_path}",
        "data.interactions.path=nowhere.parquet",
        "runs_dir=/proc/runs",
        "data.store=stores/never",
        "--timeout-s",
        "90",
    )
    assert done.code == 2
    record = json.loads(done.out.splitlines()[-1])
    assert record["failed"] == ["resources", "storage", "data", "encoder", "mlflow"], done.err
    found = statuses(record)
    assert (found["gradient"], found["collectives"], found["memory"]) == ("ok", "ok", "skipped")
    for line in ("cluster.num_workers is 10: the cluster can place", "nowhere.parquet: no such file"):
        assert line in done.err
    assert "what the libraries said: " in done.err


TWO_NODES = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20})
cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
cluster.wait_for_nodes()
try:
    command = [sys.executable, "-m", "beeray.doctor", *sys.argv[1:], f"cluster.address={cluster.address}"]
    sys.exit(subprocess.run(command).returncode)
finally:
    cluster.shutdown()
"""


@pytest.mark.long
def test_every_node_of_a_cluster_is_examined_and_workers_are_spread_over_them(world: World) -> None:
    config = yaml.safe_load((world.folder / "tiny.yaml").read_text())
    config["cluster"] |= {"num_workers": 3, "cpus_per_worker": 1}
    (world.folder / "two.yaml").write_text(yaml.safe_dump(config))
    ended = subprocess.run(
        [sys.executable, "-c", TWO_NODES, "--config", "two.yaml", "data.store=stores/never", "--timeout-s", "90"],
        cwd=world.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PWD": str(world.folder)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    record = json.loads(ended.stdout.splitlines()[-1])
    said = {check["name"]: check for check in record["checks"]}
    assert said["ray"]["nodes"] == 2 and said["ray"]["joined"]
    assert "alike on 2 nodes" in said["versions"]["said"]
    assert "written and read by 2 nodes" in said["storage"]["said"]
    assert said["workers"]["said"].startswith("2 of 3 workers on 2 nodes")
    assert said["gradient"]["workers"] == 2 and said["gradient"]["status"] == "ok"
    shutil.rmtree(world.folder / "runs" / "two", ignore_errors=True)
