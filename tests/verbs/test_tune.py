"""A sweep as anyone types it: trials side by side, one that fails, early stopping, a kill, and the best one again."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
import psutil
import pytest
import yaml
from mlflow.entities import Run

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

METRIC = "validation/ndcg@10"
SIDE_BY_SIDE = ("cluster.num_workers=1", "train.epochs=2")
MANY = {
    "space": {"train.lr": {"loguniform": [1e-6, 1e-2]}, "train.max_output": {"choice": [30, 60]}},
    "num_trials": 8,
    "random_trials": 4,
    "seed": 3,
}


def typed(name: str, tune: dict[str, Any]) -> tuple[str, ...]:
    return ("tune", f"name={name}", f"tune={yaml.safe_dump(tune, default_flow_style=True, width=10**6).strip()}")


def table(world: World, name: str) -> list[dict[str, str]]:
    with open(world.path(name) / "trials.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def records(world: World, name: str) -> list[dict[str, Any]]:
    """What is known of every trial, by number."""
    paths = sorted((world.path(name) / "trials").glob("trial-*/trial.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def nested(world: World, name: str) -> tuple[Run, list[Run]]:
    """The sweep's MLflow run and the runs under it."""
    client = mlflow.MlflowClient(f"sqlite:///{world.folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("beeray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == name]
    return parent, [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


@pytest.fixture(scope="module")
def swept(world: World) -> Done:
    """Two trials side by side, one of which diverges."""
    tune = {"space": {"train.lr": {"choice": [2e-3, 1e30]}}, "num_trials": 2, "seed": 5}
    done = world.run(*typed("swept", tune), *SIDE_BY_SIDE)
    assert done.code == 0, done.err
    return done


def test_a_sweep_that_begins_with_what_it_is_measured_on_is_refused_and_leaves_its_name_free(world: World) -> None:
    once, tune = ("train.max_steps=1", "train.epochs=1"), {"space": {"train.lr": {"choice": [1e-3]}}, "num_trials": 1}
    learned = world.run("train", "name=learned", "train.with_validation=true", "evaluate.splits=[test]", *once)
    assert learned.code == 0, learned.err
    done = world.run(*typed("after", tune), "train.init_from=runs/learned", *once)
    assert done.complaint.startswith(
        "beeray tune: train.init_from 'runs/learned': it was trained on items that are held"
    )
    assert not list((world.path("after")).glob("trials/*"))
    assert world.run(*typed("after", tune), *once).code == 0


def test_a_trial_that_diverges_is_noted_with_its_reason_and_the_others_go_on(world: World, swept: Done) -> None:
    statuses = {row["train.lr"]: row["status"] for row in table(world, "swept")}
    assert statuses == {"0.002": "complete", "1e+30": "failed"}
    assert "the loss became" in table(world, "swept")[1]["reason"]
    assert swept.record["trials"] == {"complete": 1, "stopped": 0, "failed": 1, "invalid": 0, "running": 0}
    best = world.path("swept") / "trials" / swept.record["best"]["trial"]
    assert (best / "model" / "model.safetensors").is_file()
    assert not (best / "checkpoints").exists()
    scores = json.loads((best / "metrics.json").read_text())["metrics"]["validation"]["held_out"]
    assert scores["ndcg@10"]["mean"] == pytest.approx(swept.record["best"]["metric"], abs=1e-9)
    assert (world.path("swept") / "sweep.html").stat().st_size > 10**6
    assert not (world.path("swept") / "trials" / "ray-tune").exists()


def test_trials_are_nested_under_the_sweep_in_mlflow(world: World, swept: Done) -> None:
    parent, trials = nested(world, "swept")
    assert parent.info.status == "FINISHED" and parent.data.tags["beeray.kind"] == "sweep"
    assert "tune.space.train.lr.choice" in parent.data.params
    status = {run.data.params["train.lr"]: (run.info.status, run.data.tags["beeray.status"]) for run in trials}
    assert status == {"0.002": ("FINISHED", "complete"), "1e+30": ("FAILED", "failed")}
    (complete,) = [run for run in trials if run.info.status == "FINISHED"]
    assert table(world, "swept")[0]["mlflow_run_id"] == complete.info.run_id
    assert complete.data.metrics["sweep/metric"] == pytest.approx(swept.record["best"]["metric"])
    assert complete.data.metrics["step"] == 9
    client = mlflow.MlflowClient(f"sqlite:///{world.folder / 'runs' / 'mlflow.db'}")
    files = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "sweep.html", "best.yaml", "space.json"} <= files


def test_a_finished_sweep_says_so_and_another_space_under_its_name_is_refused(world: World, swept: Done) -> None:
    tune = {"space": {"train.lr": {"choice": [2e-3, 1e30]}}, "num_trials": 2, "seed": 5}
    again = world.run(*typed("swept", tune), *SIDE_BY_SIDE)
    assert "is finished already; --fresh starts it over" in again.err
    assert again.record["best"] == swept.record["best"]
    tune["space"] = {"train.lr": {"choice": [2e-3, 1e29]}}
    refused = world.run(*typed("swept", tune), *SIDE_BY_SIDE)
    assert "sweep 'swept'" in refused.complaint and "tune.space.train.lr: " in refused.complaint


def test_a_sweep_that_was_killed_after_its_last_trial_writes_and_tracks_what_is_missing(
    world: World, swept: Done
) -> None:
    folder, tracked = world.path("swept"), nested(world, "swept")[1]
    metrics = {run.info.run_id: run.data.metrics for run in tracked}
    complete = folder / "trials" / swept.record["best"]["trial"]
    known = json.loads((complete / "trial.json").read_text())
    (complete / "trial.json").write_text(json.dumps(known | {"mlflow_run_id": None}))
    (complete / "mlflow_run.json").unlink()
    for name in ("best.yaml", "trials/sweep.json"):
        (folder / name).unlink()
    tune = {"space": {"train.lr": {"choice": [2e-3, 1e30]}}, "num_trials": 2, "seed": 5}
    again = world.run(*typed("swept", tune), *SIDE_BY_SIDE)
    assert again.record["best"] == swept.record["best"] and (folder / "best.yaml").is_file()
    assert json.loads((complete / "trial.json").read_text())["mlflow_run_id"] not in (None, known["mlflow_run_id"])
    new = [run for run in nested(world, "swept")[1] if run.info.run_id not in metrics]
    assert [run.data.metrics for run in new] == [metrics[known["mlflow_run_id"]]]


@dataclass(frozen=True)
class Killed:
    """A sweep that was killed while two trials ran, and the same command again.

    Attributes:
        before: what was known of every trial at the kill.
        steps: the steps of each trial's file at the kill.
        most_workers: training workers seen at once.
    """

    before: list[dict[str, Any]]
    steps: dict[str, list[int]]
    done: Done
    most_workers: int


@pytest.fixture(scope="module")
def killed(world: World) -> Killed:
    """Eight trials of four epochs; killed when three have ended and another has done a step."""
    command = (*typed("many", MANY), "cluster.num_workers=1", "train.epochs=4")

    def far_enough() -> bool:
        known = records(world, "many")
        running = [one["number"] for one in known if one["status"] == "running"]
        return sum(one["status"] != "running" for one in known) >= 3 and any(
            world.steps(f"many/trials/trial-{number:03d}") for number in running
        )

    process = world.start(*command)
    world.wait_until(far_enough, process)
    world.kill(process)
    before = records(world, "many")
    steps = {f"{one['number']}": world.steps(f"many/trials/trial-{one['number']:03d}") for one in before}
    process, most = world.start(*command), 0
    while process.poll() is None:
        most = max(most, len(workers_of(process.pid)))
        time.sleep(1.0)
    return Killed(before, steps, world.finish(process), most)


def workers_of(pid: int) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        try:
            if "ray::RayTrainWorker" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_killed_sweep_goes_on_and_repeats_no_trial_that_had_ended(world: World, killed: Killed) -> None:
    assert killed.done.code == 0, killed.done.err
    after = records(world, "many")
    assert [one["number"] for one in after] == list(range(8))
    assert all(one["status"] in ("complete", "stopped") for one in after)
    ended = [one for one in killed.before if one["status"] != "running"]
    untracked = {"mlflow_run_id": None}  # what MLflow lacked at the kill, it was told afterwards
    assert len(ended) >= 3
    for one in ended:
        assert after[one["number"]] | untracked == one | untracked
        assert world.steps(f"many/trials/trial-{one['number']:03d}") == killed.steps[f"{one['number']}"]
    for one in killed.before:
        assert after[one["number"]]["values"] == one["values"]


def test_trials_are_stopped_early_and_leave_no_worker_behind(world: World, killed: Killed) -> None:
    after = records(world, "many")
    stopped = [one for one in after if one["status"] == "stopped"]
    assert stopped and all(1 <= len(one["epochs"]) < 4 for one in stopped)
    assert all(len(one["epochs"]) == 4 for one in after if one["status"] == "complete")
    assert killed.most_workers <= 3, "two trials at once, and one that is just ending"


def test_the_best_config_trains_to_the_trials_metric_again(world: World, killed: Killed) -> None:
    best = killed.done.record["best"]
    again = world.run("train", config=str(world.path("many") / "best.yaml"))
    assert again.code == 0, again.err
    assert again.record["run"] == "many-best"
    assert again.record["validation"][-1][METRIC] == pytest.approx(best["metric"], abs=1e-6)
    assert again.record["metrics"]["validation"]["held_out"]["ndcg@10"]["mean"] == pytest.approx(
        best["metric"], abs=1e-6
    )
    worse = min(one["metric"] for one in records(world, "many") if one["metric"] is not None)
    assert worse < best["metric"] - 1e-3


def test_every_trial_has_one_mlflow_run_that_says_how_it_ended(world: World, killed: Killed) -> None:
    parent, trials = nested(world, "many")
    ended = {run.info.run_name: run.data.tags["beeray.status"] for run in trials}
    assert len(trials) == 8
    assert ended == {f"trial-{one['number']:03d}": one["status"] for one in records(world, "many")}
    assert parent.data.tags["beeray.best"] == killed.done.record["best"]["trial"]
