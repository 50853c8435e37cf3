"""Training from raw tables to a model folder on two workers, and the same command typed again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from beeray.config import load_config
from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime import run_folder
from beeray.runtime.tracking import tracking_uri

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_STEPS = 15
OURS = [
    r"(read catalog|read interactions|group users|write catalog|write users|tokenise catalog|train|score after)"
    r": [\d,]+( of [\d,]+)?( .*)?",
    r"check for leakage in [\d.]+ s",
    r"store (prepared|up to date): 150 users, 120 items, .*",
    r"train first: .*/encoder, 15 steps \(5 an epoch\) of 30 users and 60 items on 2 workers, ZeRO-1",
    r"(validation|test), \d+ users, \d+ (held-out items|items of the whole catalog): recall@5 .* ndcg@10 .*",
    r"semantic neighbours kept: [\d.]+ \[[\d.]+, [\d.]+\] of each item's 10 nearest under .*, 120 items",
    r"report: runs/first/report.html",
    r"model: runs/first/model",
]


def test_stdout_is_one_line_of_json_with_metrics_model_and_training(world: World, trained: Done) -> None:
    assert len(trained.out.splitlines()) == 1
    record = trained.record
    assert record["model"] == str(world.path("first") / "model")
    assert record["training"]["steps"] == NUM_STEPS
    assert record["training"]["workers"] == 2
    assert record["training"]["encoded_items"] == NUM_STEPS * 60
    for split in ("validation", "test"):
        assert record["metrics"][split]["held_out"]["candidates"] == 12
        assert record["metrics"][split]["catalog"]["candidates"] == 120
        for ranking in ("held_out", "catalog"):
            for name in ("recall@5", "ndcg@10"):
                value = record["metrics"][split][ranking][name]
                assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1


def test_stderr_holds_only_lines_of_ours_and_the_log_has_what_the_libraries_said(world: World, trained: Done) -> None:
    foreign = [line for line in trained.err.splitlines() if not any(re.fullmatch(one, line) for one in OURS)]
    assert foreign == []
    assert trained.err.splitlines()[-1] == "model: runs/first/model"
    log = (world.folder / "runs" / "logs" / "first-train.log").read_text(encoding="utf-8")
    assert "RayTrainWorker" in log and "Loading weights" in log


def test_the_loss_of_every_step_is_finite_and_training_moved_the_weights(world: World, trained: Done) -> None:
    lines = (world.path("first") / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(NUM_STEPS))
    assert all(0 < json.loads(line)["loss"] < 2 for line in lines)  # 2 − 2 cos of vectors without negative entries
    before = load_file(world.folder / "encoder" / "model.safetensors")
    after = world.parameters("first")
    assert before.keys() == after.keys()
    assert max(float((before[name] - after[name]).abs().max()) for name in after) > 1e-3


def test_the_run_folder_holds_what_its_documentation_says_and_nothing_else(world: World, trained: Done) -> None:
    assert run_folder.__doc__ is not None
    documented = set(re.findall(r"^runs/<name>/([\w.-]+)", run_folder.__doc__, flags=re.MULTILINE))
    there = {path.name for path in world.path("first").iterdir()}
    assert there - documented - {"evaluations"} == set()  # beeray.evaluate's, where its tests ran before
    assert {"config.yaml", "run.json", "steps.jsonl", "checkpoints", "model", "metrics.json", "scores.parquet"} <= there
    assert json.loads((world.path("first") / "metrics.json").read_text()) == trained.record


def test_the_model_folder_has_safetensors_and_no_pickle(world: World, trained: Done) -> None:
    files = [path for path in (world.path("first") / "model").rglob("*") if path.is_file()]
    assert "model.safetensors" in {path.name for path in files}
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_plain_sentence_transformers_opens_the_model_and_embeds_as_training_did(world: World, trained: Done) -> None:
    store = Store.open(str(world.folder / "stores" / "shared"))
    (tokens_path,) = (world.folder / "stores" / "shared" / "tokens").iterdir()
    tokens = TokenStore.open(str(tokens_path))
    texts = store.catalog(["text"])["text"].to_pylist()
    model = SentenceTransformer(str(world.path("first") / "model"), device="cpu")
    assert max(len(model.tokenizer.tokenize(text)) for text in texts) > 16, "some text must be long enough to be cut"
    encoder = Encoder(model).eval()
    everything = np.arange(store.meta.num_items, dtype=np.int32)
    ours = embed_items(encoder, tokens, everything, max_seq_length=16, token_budget=256).numpy()
    theirs = model.encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    untrained = SentenceTransformer(str(world.folder / "encoder"), device="cpu")
    assert np.abs(untrained.encode(texts) - theirs).max() > 1e-2


def test_the_model_in_mlflow_embeds_as_the_model_folder_does(world: World, trained: Done) -> None:
    uri = tracking_uri(load_config(str(world.folder / "tiny.yaml"), [f"runs_dir={world.folder / 'runs'}"]))
    client = mlflow.MlflowClient(uri)
    run = client.get_run(trained.record["mlflow_run_id"])
    (logged,) = client.search_logged_models([run.info.experiment_id])
    assert logged.source_run_id == run.info.run_id
    loaded = mlflow.sentence_transformers.load_model(logged.artifact_location)
    text = ["ba ban bo", "fa fi fus fer fol"]
    plain = SentenceTransformer(str(world.path("first") / "model"), device="cpu")
    np.testing.assert_allclose(loaded.encode(text), plain.encode(text), atol=1e-6)


@pytest.mark.parametrize("config", ["tiny.yaml", "runs/first/config.yaml"])
def test_the_same_command_or_the_runs_own_config_says_finished_and_gives_the_same_json(
    world: World, trained: Done, config: str
) -> None:
    steps = world.path("first") / "steps.jsonl"
    written = steps.stat().st_mtime_ns
    again = world.run("train", "name=first", "tracking.log_model=true", config=config)
    assert again.record == trained.record
    assert "run 'first' in" in again.err and "finished already; --fresh starts it over" in again.err
    assert steps.stat().st_mtime_ns == written
    assert "train first:" not in again.err


def test_another_learning_rate_under_the_same_name_is_refused_with_the_key_and_both_values(
    world: World, trained: Done
) -> None:
    refused = world.run("train", "name=first", "train.lr=0.01")
    assert refused.complaint.startswith("beeray train: run 'first' in ")
    assert "train.lr: 0.002 → 0.01" in refused.complaint
    assert "choose another name=… or start over with --fresh" in refused.complaint
    assert len(refused.err.splitlines()) == 1


@pytest.mark.long
def test_the_last_validation_and_the_final_scores_are_of_one_embedding_of_the_catalog(world: World) -> None:
    done = world.run("train", "name=validated", "train.evaluate_every_epochs=1")
    assert done.code == 0, done.err
    lines = (world.path("validated") / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    assert [one["step"] for one in epochs] == [5, 10, NUM_STEPS]
    final = done.record["metrics"]["validation"]["held_out"]
    for name in ("recall@5", "ndcg@10"):
        assert epochs[-1][f"validation/{name}"] == pytest.approx(final[name]["mean"], rel=1e-9)
    assert epochs[-1]["validation/ndcg@10"] != epochs[0]["validation/ndcg@10"]
    said = [line for line in done.err.splitlines() if line.startswith(("score after", "epoch 3"))]
    assert said[-1].startswith("epoch 3") and said[0].startswith("score after"), "embedded before it is validated"


@dataclass(frozen=True)
class Sharded:
    """The run `stage3`: ZeRO-3, the encoder's folder given relative, a checkpoint every five steps (an epoch's end).

    Attributes:
        done: the command.
        distance: of its weights to those of `first`.
        checkpoints: steps after which the checkpoints lie that were kept.
    """

    done: Done
    distance: float
    checkpoints: list[int]


@pytest.fixture(scope="module")
def sharded(world: World, trained: Done) -> Sharded:
    done = world.run(
        "train", "name=stage3", "deepspeed.stage=3", "encoder.name=encoder", "train.checkpoint_every_steps=5"
    )
    assert done.code == 0, done.err
    kept = json.loads((world.path("stage3") / "checkpoints" / "checkpoint_manager_snapshot.json").read_text())
    steps = [one["metrics"]["step"] for one in kept["checkpoint_results"]]
    return Sharded(done, world.distance("first", "stage3"), steps)


@pytest.mark.long
def test_zero_3_and_an_encoder_folder_given_relative_train_the_same_weights(trained: Done, sharded: Sharded) -> None:
    assert sharded.distance < 1e-5
    ours, theirs = (one.record["metrics"]["test"]["catalog"]["ndcg@10"]["mean"] for one in (sharded.done, trained))
    assert ours == pytest.approx(theirs, abs=0.02)  # one rank more or less of near ties


@pytest.mark.long
def test_a_checkpoint_is_due_at_the_end_of_an_epoch_too_and_the_last_two_are_kept(sharded: Sharded) -> None:
    assert sharded.checkpoints == [10, NUM_STEPS]


@pytest.mark.long
def test_fresh_with_another_seed_starts_over_to_other_weights(world: World, sharded: Sharded) -> None:
    fresh = world.run("train", "name=stage3", "seed=7", "data.store=stores/seven", "--fresh")
    assert fresh.code == 0, fresh.err
    assert world.distance("first", "stage3") > 1e-3
    assert fresh.record["mlflow_run_id"] != sharded.done.record["mlflow_run_id"]
    assert world.steps("stage3") == list(range(NUM_STEPS))
    assert "resumed" not in fresh.err


def test_nothing_that_a_command_started_outlives_it(world: World, trained: Done) -> None:
    mine = [process for process in psutil.process_iter() if environment(process).get("PWD") == str(world.folder)]
    _, left = psutil.wait_procs(mine, timeout=60)
    assert left == []


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_weights_are_float32(world: World, trained: Done) -> None:
    assert {value.dtype for value in world.parameters("first").values()} == {torch.float32}
