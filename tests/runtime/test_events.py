"""What the driver makes of a bundle of steps, on a real run folder."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from beeray import console
from beeray.config import validate_config
from beeray.console import Console
from beeray.runtime.events import STEP_METRICS, EventHandler, step_rates
from beeray.runtime.run_folder import RunFolder


def a_step(step: int, **changes: Any) -> dict[str, Any]:
    counted = {name: 1.0 for name in STEP_METRICS}
    return {**counted, "step": step, "epoch": 0, "at": 0.0, **changes}


def test_rates_follow_from_counts_and_seconds() -> None:
    step = a_step(0, items=50, tokens=600, padded_tokens=800, recomputed_tokens=200, step_s=2.0, wait_s=0.5)
    assert step_rates(step) == {
        "items_per_s": 25.0,
        "tokens_per_s": 300.0,
        "padding_share": pytest.approx(0.25),  # 200 of 800
        "recomputed_share": pytest.approx(0.25),
        "wait_share": pytest.approx(0.2),  # 0.5 of 2.5 s
    }


def test_a_bundle_of_steps_becomes_a_line_each_and_the_first_one_ends_the_start(tmp_path: Path) -> None:
    config = validate_config({"name": "run", "runs_dir": str(tmp_path), "data": {"source": "shop"}})
    folder = RunFolder(config)
    folder.claim("a store")
    handler = EventHandler(Console(io.StringIO(), io.StringIO()), 10, 1, folder=folder)
    handler({"kind": "start", "step": 0, "num_steps": 3, "steps_per_epoch": 3, "peak_tflops": 1.0, "at": 1e12})
    handler({"kind": "steps", "steps": [a_step(0, at=2e12), a_step(1, at=3e12)]})
    handler({"kind": "steps", "steps": [a_step(2, at=4e12)]})
    assert [one["step"] for one in folder.steps()] == [0, 1, 2]
    assert [one["at"] for one in folder.steps()] == [2e12, 3e12, 4e12]
    reached = handler.startup.record()
    assert list(reached) == ["engine", "first_step"]
    assert reached["first_step"] - reached["engine"] == pytest.approx(1e12)  # the first, not a later one


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_step_that_nobody_was_in_is_told_once(tmp_path: Path) -> None:
    said = io.StringIO()
    handler = EventHandler(Console(said, said), 10, 1)
    handler({"kind": "steps", "steps": [a_step(number) | {"users": 0} for number in range(3)]})
    handler.close()
    assert said.getvalue().count("warning: step 1 had no user with enough of the items that were drawn") == 1
    assert said.getvalue().count("warning") == 1


def test_steps_are_kept_where_their_progress_cannot_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", -1.0)
    config = validate_config({"name": "run", "runs_dir": str(tmp_path), "data": {"source": "shop"}})
    folder = RunFolder(config)
    folder.claim("a store")
    handler = EventHandler(Console(FullDisk(), FullDisk()), 10, 1, folder=folder)
    handler({"kind": "start", "step": 0, "num_steps": 3, "steps_per_epoch": 3, "peak_tflops": 1.0, "at": 1e12})
    handler({"kind": "steps", "steps": [a_step(0), a_step(1), a_step(2)]})
    handler.close()
    assert [one["step"] for one in folder.steps()] == [0, 1, 2]
