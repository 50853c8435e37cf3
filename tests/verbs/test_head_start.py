"""Training with a head start, and all that may be laid over it, through the command: exported whole, and the same
after a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from test_resume import beyond_a_checkpoint

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

UNITS, HIDDEN = 8, 32
HEAD = (f"train.head.units={UNITS}", "train.head.steps=8", "train.head.lr=3e-3", "train.head.max_output=40")
LAID_OVER = (
    *("train.loss=sampled_softmax", "train.distill_weight=0.5", "train.matryoshka_dims=[8]"),
    *("train.lora.rank=4", "train.lora.dropout=0.1", "train.freeze_layers=1", "train.activation_budget_gib=1e-4"),
)
SHORT = ("train.max_steps=6", "train.checkpoint_every_steps=2", "evaluate.splits=[test]")


@dataclass(frozen=True)
class Runs:
    """One run to its end, and one that was killed and typed again."""

    whole: Done
    resumed: Done


@pytest.fixture(scope="module")
def runs(world: World) -> Runs:
    whole = world.run("train", "name=headed", *HEAD, *LAID_OVER, *SHORT)
    process = world.start("train", "name=headed-killed", *HEAD, *LAID_OVER, *SHORT)
    world.wait_until(lambda: beyond_a_checkpoint(world, "headed-killed"), process)
    world.kill(process)
    return Runs(whole, world.run("train", "name=headed-killed", *HEAD, *LAID_OVER, *SHORT))


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
    done = world.run("evaluate", "name=headed", *HEAD, *LAID_OVER, *SHORT, "evaluate.neighbours=true")
    scored, trained = done.record["metrics"]["test"], runs.whole.record["metrics"]["test"]
    assert scored.keys() == trained.keys() == {"held_out", "catalog", "held_out@8"}
    for ranking in scored:
        assert scored[ranking]["ndcg@10"]["mean"] == pytest.approx(trained[ranking]["ndcg@10"]["mean"])
    assert scored["held_out@8"]["ndcg@10"] != scored["held_out"]["ndcg@10"]
    kept = done.record["neighbours_kept"]
    assert kept == {**runs.whole.record["neighbours_kept"], "mean": pytest.approx(kept["mean"], abs=1e-3)} | {
        key: pytest.approx(kept[key], abs=2e-2) for key in ("low", "high")
    }
    assert (kept["k"], kept["among"], kept["items"]) == (10, 120, 120) and 0.1 < kept["mean"] < 0.99
    assert f"semantic neighbours kept: {kept['mean']:.4f}" in done.err


def test_a_killed_run_ends_with_the_same_encoder_and_head(world: World, runs: Runs) -> None:
    assert "resumed from the checkpoint after step" in runs.resumed.err
    whole, resumed = weights(world, "headed"), weights(world, "headed-killed")
    assert whole.keys() == resumed.keys()
    assert sum("Dense" in name for name in whole) == 6
    assert max(float((whole[name] - resumed[name]).abs().max()) for name in whole) < 1e-6


def test_what_was_forgotten_is_in_every_steps_record_and_the_large_table_is_gone(world: World, runs: Runs) -> None:
    for name in ("headed", "headed-killed"):
        lines = (world.path(name) / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        assert all(0 < json.loads(line)["forgetting"] < 2 for line in lines)
        assert [path.name for path in (world.path(name) / "original").iterdir()] == ["neighbours-10-42.npy"]


def test_the_frozen_layer_and_the_embeddings_are_the_untouched_encoders(world: World, runs: Runs) -> None:
    before = load_file(world.folder / "encoder" / "model.safetensors")
    after = world.parameters("headed")
    assert after.keys() == before.keys(), "adapters are merged"
    moved = {name for name in before if float((after[name] - before[name]).abs().max()) > 1e-6}
    assert moved and all("layer.1." in name for name in moved)
