"""SIGTERM in a sweep: both trials end after their step with a checkpoint, and the same command goes on from there."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from conftest import World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(2400)]

TRIALS = ("trial-000", "trial-001")
TUNE = "tune={space: {train.lr: {choice: [0.002, 0.0005]}}, num_trials: 2, asha: null, seed: 5}"
ARGUMENTS = (TUNE, "cluster.num_workers=1", "train.batch_size=5", "train.epochs=40")
"""Some thirty steps an epoch, whose checkpoints are the only ones, and far more steps than a signal takes to arrive."""


def known(world: World, trial: str) -> dict[str, Any]:
    """What is noted of a trial of the sweep that was stopped."""
    text = (world.path("halted") / "trials" / trial / "trial.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def test_sigterm_stops_both_trials_with_a_checkpoint_and_the_same_command_ends_as_if_nothing_had_been(
    world: World,
) -> None:
    process = world.start("tune", "name=halted", *ARGUMENTS)
    world.wait_until(lambda: all(len(world.steps(f"halted/trials/{trial}")) > 2 for trial in TRIALS), process)
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        world.kill(process)
        raise
    assert (process.returncode, out) == (128 + signal.SIGTERM, ""), err
    said = r"stopped after step ([\d,]+) of ([\d,]+), with a checkpoint"
    last = re.fullmatch(
        rf"beeray tune: trial-000 {said}; trial-001 {said}; run the same command again to go on", err.splitlines()[-1]
    )
    assert last is not None, err
    first, of_first, second, of_second = (int(number.replace(",", "")) for number in last.groups())
    assert psutil.wait_procs(descendants, timeout=60)[1] == [], "processes were left behind"
    assert [known(world, trial)["status"] for trial in TRIALS] == ["running"] * 2
    assert [len(world.steps(f"halted/trials/{trial}")) for trial in TRIALS] == [first, second]

    again = world.run("tune", "name=halted", *ARGUMENTS)
    assert again.code == 0, again.err
    for trial, after, total in zip(TRIALS, (first, second), (of_first, of_second), strict=True):
        log = (world.path("halted") / "trials" / trial / "train.log").read_text(encoding="utf-8")
        assert f"resumed from the checkpoint after step {after:,} of {total:,}" in log
        assert world.steps(f"halted/trials/{trial}") == list(range(total)), "a step was computed twice, or lost"
        assert known(world, trial)["status"] == "complete"
        assert sorted(map(int, known(world, trial)["epochs"])) == list(range(1, 41))

    calm = world.run("tune", "name=calm", *ARGUMENTS)
    best, undisturbed = again.record["best"], calm.record["best"]
    assert (best["trial"], best["values"]) == (undisturbed["trial"], undisturbed["values"])
    assert best["metric"] == pytest.approx(undisturbed["metric"], abs=1e-6)
