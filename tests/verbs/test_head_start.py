"""Training with a head start through the command: exported whole, and the same after a kill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from test_resume import beyond_a_checkpoint

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UNITS, HIDDEN = 8, 32
HEAD = (f"train.head.units={UNITS}", "train.head.steps=8", "train.head.lr=3e-3", "train.head.max_output=40")
SHORT = ("train.max_steps=6", "train.checkpoint_every_steps=2", "evaluate.splits=[test]")


@dataclass(frozen=True)
class Runs:
    """One run to its end, and one that was killed and typed again."""

    whole: Done
    resumed: Done


@pytest.fixture(scope="module")
def runs(world: World) -> Runs:
    whole = world.run("train", "name=headed", *HEAD, *SHORT)
    process = world.start("train", "name=headed-killed", *HEAD, *SHORT)
    world.wait_until(lambda: beyond_a_checkpoint(world, "headed-killed"), process)
    world.kill(process)
    return Runs(whole, world.run("train", "name=headed-killed", *HEAD, *SHORT))


def weights(world: World, name: str) -> dict[str, torch.Tensor]:
    folder = world.path(name) / "model"
    files = sorted(folder.glob("**/model.safetensors"))
    return {f"{file.parent.name}/{key}": value for file in files for key, value in load_file(file).items()}


def test_the_exported_folder_has_the_trained_head(world: World, runs: Runs) -> None:
    head = runs.whole.record["head"]
    assert (head["steps"], head["encoded_items"]) == (8, 96)  # 120 items less 24 held out
    model = SentenceTransformer(str(world.path("headed") / "model"), device="cpu")
    whitening, widen, narrow = list(model.children())[-3:]
    assert widen.linear.weight.shape == (2 * HIDDEN + UNITS, HIDDEN)
    assert float((whitening.linear.weight - torch.eye(HIDDEN)).abs().max()) > 1e-2
    assert float(narrow.linear.weight[:, -UNITS:].abs().max()) > 1e-3  # zero before training


def test_evaluate_scores_the_exported_folder_as_training_did(world: World, runs: Runs) -> None:
    scored = world.run("evaluate", "name=headed", *HEAD, *SHORT).record
    trained = runs.whole.record["metrics"]["test"]["held_out"]
    assert scored["metrics"]["test"]["held_out"]["ndcg@10"]["mean"] == pytest.approx(trained["ndcg@10"]["mean"])


def test_a_killed_run_ends_with_the_same_encoder_and_head(world: World, runs: Runs) -> None:
    assert "resumed from the checkpoint after step" in runs.resumed.err
    whole, resumed = weights(world, "headed"), weights(world, "headed-killed")
    assert whole.keys() == resumed.keys()
    assert sum("Dense" in name for name in whole) == 6
    assert max(float((whole[name] - resumed[name]).abs().max()) for name in whole) < 1e-6
