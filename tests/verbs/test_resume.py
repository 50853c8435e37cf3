"""A killed driver, a killed worker: the same command goes on and ends where an uninterrupted run ends."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import psutil
import pytest
import torch
from safetensors.torch import load_file

from beeray.config import load_config
from beeray.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

NUM_STEPS, STEPS_PER_EPOCH = 15, 5
EVERY = "train.checkpoint_every_steps=2"
KILLED = ("train", "name=killed", EVERY, "data.store=stores/own", "data.interactions.path=own.parquet")


@dataclass(frozen=True)
class Interrupted:
    """A run that was killed, and the same command typed again.

    Attributes:
        state: weights in the newest checkpoint at the moment of the kill.
        refused: the command while an input table was another.
        resumed: the command that went on.
        first_step: where it went on.
    """

    state: dict[str, torch.Tensor]
    refused: Done
    resumed: Done
    first_step: int


def snapshot(run: Path) -> dict[str, Any]:
    """The newest checkpoint that Ray Train has registered; empty while there is none."""
    path = run / "checkpoints" / "checkpoint_manager_snapshot.json"
    try:
        newest = json.loads(path.read_text())["latest_checkpoint_result"]
    except (OSError, ValueError):  # not there yet, or just being written
        return {}
    return dict(newest or {})


def beyond_a_checkpoint(world: World, name: str) -> bool:
    """Whether there is a whole checkpoint and a later step was done."""
    newest = snapshot(world.path(name))
    steps = world.steps(name)
    return bool(newest and steps and steps[-1] >= newest["metrics"]["step"])


@pytest.fixture(scope="module")
def interrupted(world: World, trained: Done) -> Interrupted:
    table = world.write_interactions("own")
    process = world.start(*KILLED)
    world.wait_until(lambda: beyond_a_checkpoint(world, "killed"), process)
    world.kill(process)
    newest = world.path("killed") / "checkpoints" / snapshot(world.path("killed"))["checkpoint_dir_name"]
    state = {
        name.removeprefix("weights/"): tensor
        for file in newest.glob("state-*.safetensors")
        for name, tensor in load_file(file).items()
        if name.startswith("weights/")
    }

    kept = table.rename(world.folder / "kept.parquet")
    world.write_interactions("own", num_rows=1400)
    refused = world.run(*KILLED)
    kept.replace(table)

    resumed = world.run(*KILLED)
    assert resumed.code == 0, resumed.err
    said = re.search(r"^resumed from the checkpoint after step (\d+) of 15$", resumed.err, flags=re.MULTILINE)
    assert said is not None, resumed.err
    return Interrupted(state, refused, resumed, int(said[1]))


@pytest.fixture(scope="module")
def lost_worker(world: World, trained: Done) -> Done:
    """A run one of whose two workers was killed."""
    process = world.start("train", "name=lost", EVERY)
    world.wait_until(lambda: beyond_a_checkpoint(world, "lost"), process)
    workers = [one for one in psutil.Process(process.pid).children(recursive=True) if is_worker(one)]
    assert len(workers) == 2
    workers[-1].kill()
    return world.finish(process)


def is_worker(process: psutil.Process) -> bool:
    try:
        return "ray::RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_killed_driver_resumes_across_an_epochs_end_to_the_same_weights(
    world: World, interrupted: Interrupted
) -> None:
    assert 2 <= interrupted.first_step < 2 * STEPS_PER_EPOCH, "an epoch must end after the resume"
    assert world.distance("first", "killed") < 1e-7
    assert interrupted.resumed.record["training"]["steps"] == NUM_STEPS
    assert len(interrupted.resumed.out.splitlines()) == 1


def test_the_checkpoint_it_resumed_from_was_not_the_end(world: World, interrupted: Interrupted) -> None:
    final = {f"model.0.model.{name}": value for name, value in world.parameters("killed").items()}
    common = final.keys() & interrupted.state.keys()
    assert len(common) > 10
    assert max(float((final[name] - interrupted.state[name].cpu()).abs().max()) for name in common) > 1e-4


def test_steps_of_a_resumed_run_are_all_there_once(world: World, trained: Done, interrupted: Interrupted) -> None:
    written = world.steps("killed")
    assert written[-1] == NUM_STEPS - 1
    config = load_config(str(world.path("killed") / "config.yaml"), [f"runs_dir={world.folder / 'runs'}"])
    losses = [(one["step"], one["loss"]) for one in RunFolder(config).steps()]
    config = load_config(str(world.path("first") / "config.yaml"), [f"runs_dir={world.folder / 'runs'}"])
    uninterrupted = [(one["step"], one["loss"]) for one in RunFolder(config).steps()]
    assert losses == [(step, pytest.approx(loss, abs=1e-6)) for step, loss in uninterrupted]


def test_a_changed_input_table_under_the_same_name_is_refused_and_does_no_harm(interrupted: Interrupted) -> None:
    assert interrupted.refused.complaint.startswith("beeray train: run 'killed' in ")
    assert "its tables, rules or split changed" in interrupted.refused.complaint
    assert "choose another name=…, start over with --fresh" in interrupted.refused.complaint


def test_a_finished_run_whose_input_table_changed_is_refused_too(world: World, interrupted: Interrupted) -> None:
    table = world.folder / "own.parquet"
    stat = table.stat()
    os.utime(table, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    try:
        refused = world.run(*KILLED)
    finally:
        os.utime(table, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "its tables, rules or split changed" in refused.complaint


def test_a_command_that_loses_a_worker_goes_on_by_itself_to_the_same_weights(world: World, lost_worker: Done) -> None:
    assert lost_worker.code == 0, lost_worker.err
    assert re.search(r"^resumed from the checkpoint after step \d+ of 15$", lost_worker.err, flags=re.MULTILINE)
    assert world.distance("first", "lost") < 1e-7
    assert lost_worker.record["training"]["steps"] == NUM_STEPS
    assert len(lost_worker.out.splitlines()) == 1


def test_a_killed_run_goes_on_elsewhere_with_fewer_workers_and_less_memory_to_the_same_weights(world: World) -> None:
    typed = ("train", EVERY, "encoder.dropout=0.0", "deepspeed.stage=2")  # dropout's masks are drawn by rank
    assert world.run(*typed, "name=whole").code == 0
    process = world.start(*typed, "name=fewer")
    world.wait_until(lambda: beyond_a_checkpoint(world, "fewer"), process)
    world.kill(process)
    elsewhere = ("cluster.num_workers=1", "deepspeed.stage=1", "data.store=stores/elsewhere", "data.num_buckets=3")
    less = ("train.activation_budget_gib=0", "train.token_budget=64")
    resumed = world.run(*typed, "name=fewer", *elsewhere, *less)
    assert resumed.code == 0, resumed.err
    assert "resumed from the checkpoint after step" in resumed.err
    assert world.distance("whole", "fewer") < 1e-5
    assert json.loads((world.path("fewer") / "run.json").read_text())["num_shards"] == 2


@pytest.mark.parametrize("name", ["first", "killed", "lost"])
def test_mlflow_has_one_finished_run_with_every_step_once(
    world: World, interrupted: Interrupted, request: pytest.FixtureRequest, name: str
) -> None:
    if name == "lost":
        request.getfixturevalue("lost_worker")
    client = mlflow.MlflowClient(f"sqlite:///{world.folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("beeray")
    assert experiment is not None
    (run,) = [one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == name]
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "0.002"
    assert run.data.params["name"] == name
    record = json.loads((world.path(name) / "metrics.json").read_text())
    final = record["metrics"]["test"]["held_out"]["ndcg@10"]["mean"]
    assert run.data.metrics["final/test/held_out/ndcg_at_10"] == pytest.approx(final)
    assert {"config.yaml", "scores.parquet"} <= {one.path for one in client.list_artifacts(run.info.run_id)}
    assert record["mlflow_run_id"] == run.info.run_id
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(one.step for one in history) == list(range(NUM_STEPS))


@pytest.fixture(scope="module")
def with_table(world: World, trained: Done) -> tuple[Done, Done]:
    """Runs whose steps rank against a table of the catalog that is refreshed every two steps of five; one is killed."""
    catalog = ("train.items=catalog", "train.catalog_refresh=2", "train.max_output=40", EVERY)
    whole = world.run("train", "name=table", *catalog)
    killed = ("train", "name=table-killed", *catalog)
    process = world.start(*killed)
    world.wait_until(
        lambda: (
            beyond_a_checkpoint(world, "table-killed")
            and snapshot(world.path("table-killed"))["metrics"]["step"] > STEPS_PER_EPOCH
        ),
        process,
    )
    world.kill(process)
    return whole, world.run(*killed)


def test_a_run_with_a_table_of_the_catalog_goes_on_with_the_table_that_it_had(
    world: World, with_table: tuple[Done, Done]
) -> None:
    """An epoch of five steps refreshes it after its first, third and fifth: steps of the run do not tell when."""
    whole, resumed = with_table
    assert (whole.code, resumed.code) == (0, 0), resumed.err
    assert "resumed from the checkpoint after step" in resumed.err
    assert world.distance("table", "table-killed") < 1e-6
