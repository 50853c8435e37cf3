"""One item whose embedding is no number is an error wherever a catalog is scored, and no rank of every user."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.train
import torch
from test_training_scores import (
    CPU,
    END,
    LABELS,
    NUM_ITEMS,
    NUM_USERS,
    Run,
    a_catalog,
    a_config,
    a_store,
    some_texts,
)
from tiny_encoder import ListTokens, build_tiny_encoder

from beeray.console import Console
from beeray.core.encoder import Encoder, load_encoder
from beeray.data.parts import write_part
from beeray.data.store import Store
from beeray.errors import BeerayError, DivergedError, NotFiniteError
from beeray.runtime import launch, training_scores, worker
from beeray.runtime.finite_embeddings import check_finite
from beeray.runtime.head_start import start_with_head
from beeray.runtime.original import Original, keep_original
from beeray.runtime.scoring import embed_catalog, score_embeddings

BAD = 17
WHAT = f"embeddings of 1 of {NUM_ITEMS} items are no finite numbers ('\\x1b[31mid-17'), and no user could be scored"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("finite") / "encoder", dropout=0.0)


@pytest.fixture
def tokens(folder: Path) -> Any:
    """One text alone has a `z`."""
    texts = some_texts()
    texts[BAD] = f"z {texts[BAD]}"
    return a_catalog(folder, texts)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = a_store(tmp_path / "store", domains=False)
    ids = [f"id-{item}" for item in range(NUM_ITEMS)]
    ids[BAD] = f"\x1b[31mid-{BAD}"
    table = pa.table({"item_id": ids, "split": pa.array(np.tile(LABELS, 2))})
    write_part(table, str(tmp_path / "store" / "catalog" / "part-00000.parquet"))
    return found


def break_at(encoder: Encoder, tokens: ListTokens) -> None:
    """Give the `z` weights that are numbers, and overflow in the first normalisation."""
    z = tokens.texts[BAD][1]
    assert sum(z in text for text in tokens.texts) == 1
    with torch.no_grad():
        encoder.model[0].model.embeddings.word_embeddings.weight[z] = 3e38


def test_the_error_says_how_many_and_which_in_one_line(folder: Path, tokens: Any, store: Store) -> None:
    encoder = Encoder(load_encoder(str(folder), max_seq_length=32)).eval()
    assert torch.isfinite(embed_catalog(encoder, a_config(), store, tokens, CPU)).all()
    break_at(encoder, tokens)
    for items in (None, np.array([3, BAD, 20], np.int32)):
        with pytest.raises(NotFiniteError) as caught:
            embed_catalog(encoder, a_config(), store, tokens, CPU, items=items, whose="encoder")
        number = NUM_ITEMS if items is None else 3
        said = str(caught.value)
        assert said.startswith(f"encoder: embeddings of 1 of {number} items are no finite numbers ('\\x1b[31mid-17')")
        assert said.isprintable() and "give another encoder, or train.precision: fp32" in said
    others = np.array([3, 20], np.int32)
    assert torch.isfinite(embed_catalog(encoder, a_config(), store, tokens, CPU, items=others)).all()
    with pytest.raises(NotFiniteError, match="no finite numbers"):
        keep_original(a_config(evaluate={"neighbours": True}), folder, encoder.model, store, tokens, CPU, print)


def test_a_head_start_is_refused_on_such_features_and_where_it_diverges(
    folder: Path, tokens: Any, store: Store
) -> None:
    trained = {"train": NUM_USERS, "train+validation": NUM_USERS}
    store = Store(store.path, dataclasses.replace(store.meta, training_users=trained))
    labels = np.zeros(NUM_ITEMS, np.int8)  # all may be trained on, the bad one, too
    catalog = pa.table({"item_id": store.item_ids(), "split": labels})
    write_part(catalog, f"{store.path}/catalog/part-00000.parquet")

    def start(broken: bool, lr: float) -> None:
        encoder = Encoder(load_encoder(str(folder), max_seq_length=32)).eval()
        if broken:
            break_at(encoder, tokens)
        head = {"steps": 2, "lr": lr, "whiten": False}
        start_with_head(encoder.model, a_config(train={"head": head}), store, tokens, lambda kind, **event: None)

    start(False, 1e-4)
    with pytest.raises(NotFiniteError, match=r"embeddings of 1 of \d+ items are no finite numbers \('.x1b.31mid-17'\)"):
        start(True, 1e-4)
    with pytest.raises(DivergedError, match=r"train\.head\.lr 1e\+38: after 2 steps .* no finite numbers; lower it"):
        start(False, 1e38)


def test_of_many_the_first_are_named(store: Store) -> None:
    embeddings = torch.ones(NUM_ITEMS, 4)
    embeddings[5:30] = float("nan")
    with pytest.raises(NotFiniteError, match=r"of 25 of 40 items are .* \('id-5', 'id-6', 'id-7', …\)"):
        check_finite(embeddings, store)


def test_training_that_ends_in_such_a_model_has_diverged(folder: Path, tokens: Any, store: Store) -> None:
    for validates in (1, None):
        run = Run(a_config(train={"evaluate_every_epochs": validates}), folder, store, tokens)
        break_at(run.encoder, tokens)
        with pytest.raises(DivergedError) as caught:
            run.scores.after(END, Original())
        assert WHAT in str(caught.value) and "after step 10, so the run is not finished" in str(caught.value)
        assert {event["kind"] for event in run.sent} == {"embed"}, "no figure is told"
    with pytest.raises(DivergedError):
        run.scores.validate(END)
    with pytest.raises(NotFiniteError) as before:
        training_scores.TrainingScores(run.task, run.encoder, store, tokens, CPU, starts_with_head=False).before(
            Original()
        )
    assert not isinstance(before.value, DivergedError), "nothing has been trained"


def test_an_embedding_of_zeros_is_ranked_last_among_its_like_and_makes_nothing_of_the_others(
    folder: Path, tokens: Any, store: Store
) -> None:
    run = Run(a_config(), folder, store, tokens)
    embeddings = embed_catalog(run.encoder.eval(), a_config(), store, tokens, CPU)
    whole = score_embeddings(embeddings, a_config(), store)
    embeddings[BAD] = 0.0
    check_finite(embeddings, store)
    scored = score_embeddings(embeddings, a_config(), store)
    assert all(np.isfinite(one.scores).all() for one in scored)
    assert any(not np.array_equal(one.scores, other.scores) for one, other in zip(scored, whole, strict=True))


@pytest.mark.parametrize(
    ("error", "diverged"), [(NotFiniteError("what", "do"), False), (DivergedError("the loss became nan"), True)]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_tells_the_driver_and_all_end(
    monkeypatch: pytest.MonkeyPatch, error: BeerayError, diverged: bool, rank: int
) -> None:
    ranks = SimpleNamespace(get_world_rank=lambda: rank, get_local_world_size=lambda: 2)
    monkeypatch.setattr(ray.train, "get_context", lambda: ranks)
    monkeypatch.setattr(worker, "keep_deepspeed_on_cpu", lambda: None)
    monkeypatch.setattr(worker, "share_cores", lambda *_: None)
    sent: list[tuple[str, dict[str, Any]]] = []
    task: Any = SimpleNamespace(config=a_config(), send=lambda kind, **event: sent.append((kind, event)))
    with worker.worker_ready(task):
        raise error
    told = [("failed", {"message": str(error), "diverged": diverged})] if rank == 0 else []
    assert [one for one in sent if one[0] == "failed"] == told
    assert sent[-1][0] == "worker"


def test_an_evaluation_ends_with_what_its_workers_could_not_score(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    def fails(loop: str, task: Any, **_: Any) -> None:
        task.monitor({"kind": "failed", "message": "encoder: embeddings of …", "diverged": False})

    monkeypatch.setattr(launch, "listening", lambda handler: nullcontext(handler))
    monkeypatch.setattr(launch, "launch", fails)
    with pytest.raises(NotFiniteError, match="encoder: embeddings of …"):
        launch.launch_scoring("loop", a_config(), store, "", "model", Console())
