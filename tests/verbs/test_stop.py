"""SIGTERM and Ctrl-C: training ends after its step with a checkpoint, and the same command goes on from there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow
import pytest

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

NUM_STEPS = 5000
COMMAND = ("train", "name=stopped", f"train.max_steps={NUM_STEPS}", "train.epochs=1000", "evaluate.splits=[test]")
"""Checkpoints come once in five steps, and far more steps than a signal takes to arrive."""


@dataclass(frozen=True)
class Stopped:
    """A command that got a signal at its steps."""

    done: Done
    after: int
    seconds: float


def stop(world: World, signum: int, *, beyond: int, to_group: bool = False) -> Stopped:
    """Start the command, and signal it when it is beyond a step; `to_group`: as a terminal does."""
    process = world.start(*COMMAND)
    world.wait_until(lambda: bool(world.steps("stopped")) and world.steps("stopped")[-1] > beyond, process)
    started = time.monotonic()
    (os.killpg if to_group else os.kill)(process.pid, signum)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        world.kill(process)
        raise
    done = type_of_done()(process.returncode, out, err)
    said = re.fullmatch(
        r"beeray train: stopped after step ([\d,]+) of 5,000, with a checkpoint; run the same command again to go on",
        err.splitlines()[-1],
    )
    assert said is not None, err
    return Stopped(done, int(said[1].replace(",", "")), time.monotonic() - started)


def type_of_done() -> type[Done]:
    from conftest import Done

    return Done


@pytest.fixture(scope="module")
def terminated(world: World) -> Stopped:
    return stop(world, signal.SIGTERM, beyond=2)


@pytest.fixture(scope="module")
def interrupted(world: World, terminated: Stopped) -> Stopped:
    return stop(world, signal.SIGINT, beyond=terminated.after + 2, to_group=True)


def test_sigterm_ends_training_with_a_checkpoint_of_the_step_it_was_at(world: World, terminated: Stopped) -> None:
    assert terminated.done.code == 128 + signal.SIGTERM
    assert terminated.done.out == ""
    assert len(re.findall("stopped after", terminated.done.err)) == 1
    assert terminated.after == world_step_before(world, terminated)


def world_step_before(world: World, stopped: Stopped) -> int:
    """Steps written in the order they were computed: the stopped command's last is the checkpoint's."""
    steps = world.steps("stopped")
    return steps[steps.index(stopped.after - 1)] + 1


@pytest.mark.long
def test_the_same_command_goes_on_at_that_very_step_and_ctrl_c_stops_it_again(
    world: World, terminated: Stopped, interrupted: Stopped
) -> None:
    assert f"resumed from the checkpoint after step {terminated.after:,} of 5,000" in interrupted.done.err
    assert interrupted.done.code == 128 + signal.SIGINT
    assert interrupted.after > terminated.after
    steps = world.steps("stopped")
    assert steps == list(range(interrupted.after)), "a step was computed twice, or lost"


@pytest.mark.long
def test_mlflow_says_killed_for_a_run_that_was_stopped(world: World, interrupted: Stopped) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{world.folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("beeray")
    assert experiment is not None
    (run,) = [one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == "stopped"]
    assert run.info.status == "KILLED"


@pytest.mark.long
def test_a_terminal_that_is_gone_leaves_ray_the_time_for_a_checkpoint(world: World, interrupted: Stopped) -> None:
    """The whole group hears it, as when an ssh session drops; Ray's processes, which it would end, do not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests were begun with
    try:
        gone = stop(world, signal.SIGHUP, beyond=interrupted.after + 2, to_group=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert gone.done.code == 128 + signal.SIGHUP
    assert f"resumed from the checkpoint after step {interrupted.after:,} of 5,000" in gone.done.err
    assert world.steps("stopped") == list(range(gone.after)), "a step was computed twice, or lost"
