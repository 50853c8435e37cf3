"""A head comes out the same whether one rank trains it or two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_world_sizes import run_world

PROGRAM = Path(__file__).with_name("train_head.py")
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights by `<rank>-of-<ranks>`."""
    folder = tmp_path_factory.mktemp("heads")
    for world_size in (1, 2):
        run_world(world_size, [str(folder)], folder, PROGRAM)
    return {path.stem.removeprefix("head-"): torch.load(path) for path in folder.glob("head-*.pt")}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_ranks_train_what_one_trains(heads: dict[str, dict[str, torch.Tensor]]) -> None:
    alone, together = heads["0-of-1"], heads["0-of-2"]
    trained = float(alone["narrow.linear.weight"][:, -4:].abs().max())
    assert trained > 1e-2  # these weights were zero
    assert largest_difference(alone, together) < 1e-4


def test_all_ranks_end_with_the_same_weights(heads: dict[str, dict[str, torch.Tensor]]) -> None:
    assert largest_difference(heads["0-of-2"], heads["1-of-2"]) == 0.0
