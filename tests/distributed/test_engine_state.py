"""What one number of workers kept, another goes on with: 2 → 1 → 2 ends where 2 alone end, under every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from test_world_sizes import run_world

PROGRAM = Path(__file__).with_name("engine_state.py")
LAST = 12

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(num_ranks: int, stage: int, optimizer: str, *parts: tuple[Path, int, int]) -> None:
    """Parts of runs, each a folder and its first and last step, in one start of so many ranks."""
    for folder, _, _ in parts:
        folder.mkdir(parents=True, exist_ok=True)
    named = [f"{folder}:{first}:{last}" for folder, first, last in parts]
    run_world(num_ranks, [str(stage), optimizer, *named], parts[0][0], PROGRAM)


def end(folder: Path, step: int = LAST) -> dict[str, Any]:
    return dict(torch.load(folder / f"end-{step}.pt"))


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one["state"].keys() == other["state"].keys()
    return max(float((one["state"][name] - other["state"][name]).abs().max()) for name in one["state"])


@pytest.mark.parametrize(
    ("stage", "optimizer"),
    [
        (2, "nadam"),
        pytest.param(1, "adamw", marks=pytest.mark.long),
        pytest.param(0, "nadam", marks=pytest.mark.long),
        pytest.param(3, "adamw", marks=pytest.mark.long),
    ],
)
def test_two_then_one_then_two_ranks_end_where_two_ranks_end(tmp_path: Path, stage: int, optimizer: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(2, stage, optimizer, (whole, 0, LAST), (parts, 0, 4))
    run(1, stage, optimizer, (parts, 4, 8))
    run(2, stage, optimizer, (parts, 8, LAST))
    assert distance(end(whole), end(parts)) < 1e-5
    assert end(whole)["lr"] == pytest.approx(end(parts)["lr"], rel=1e-12)
    assert distance(end(parts, 8), end(parts)) > 1e-3  # else there was nothing to restore

    written = parts / "step-4"
    files = sorted(written.glob("*.safetensors"))
    assert [file.name for file in files] == ["state-00000.safetensors", "state-00001.safetensors"]
    kept = [set(safe_open(file, framework="pt").keys()) for file in files]
    assert not kept[0] & kept[1]
    assert {"weights/first.weight", "exp_avg/first.weight", "weights/frozen.weight", "weights/scale"} <= kept[0] | kept[
        1
    ]
    assert "exp_avg/frozen.weight" not in kept[0] | kept[1]
    assert json.loads((written / "state.json").read_text())["num_files"] == 2
