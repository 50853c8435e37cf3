"""What is kept of the encoder before training: embedded once, and found again by a run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_encoder import SYLLABLES, ListTokens, build_tiny_encoder
from two_writers import second_writer

from beeray.config import Config, validate_config
from beeray.core.encoder import load_encoder
from beeray.core.neighbours import nearest_items
from beeray.runtime.original import Original, keep_original, neighbours_kept

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("original") / "encoder", dropout=0.1)


@pytest.fixture
def model(folder: Path) -> SentenceTransformer:
    return load_encoder(str(folder), max_seq_length=32)


@pytest.fixture
def tokens(folder: Path) -> Any:
    catalog = ListTokens.of_texts(folder, [" ".join(SYLLABLES[item : item + 4]) for item in range(30)])
    catalog.num_items = 30  # type: ignore[attr-defined]
    return catalog


def a_config(**sections: Any) -> Config:
    tree = {"name": "a", "data": {"source": "shop"}, "encoder": {"max_seq_length": 32}}
    return validate_config({**tree, **sections})


def kept(config: Config, path: Path, model: SentenceTransformer, tokens: Any) -> tuple[Original, int]:
    """What is kept, and how many items were embedded for it."""
    told: list[int] = []
    nothing: Any = None  # of the store only the ids of items that are refused are asked for
    return keep_original(config, path, model, nothing, tokens, CPU, told.append), sum(told)


def test_a_run_that_goes_on_finds_what_was_embedded_and_does_not_ask_the_encoder_again(
    tmp_path: Path, model: SentenceTransformer, tokens: Any
) -> None:
    config = a_config(train={"distill_weight": 1.0}, evaluate={"neighbours_at": 3})
    first, embedded = kept(config, tmp_path, model, tokens)
    assert embedded == 30 and first.table is not None
    assert first.embeddings is not None and first.embeddings.dtype == np.float16 and first.neighbours is not None
    np.testing.assert_allclose(np.asarray(first.embeddings, np.float32), first.table.numpy(), atol=1e-3)
    assert first.neighbours.tolist() == nearest_items(first.table, np.arange(30), 3).tolist()
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    again, embedded = kept(config, tmp_path, model, tokens)
    assert embedded == 0 and again.table is None
    assert again.embeddings is not None and np.array_equal(again.embeddings, first.embeddings)
    other, embedded = kept(config, tmp_path / "other", model, tokens)
    assert embedded == 30 and not np.array_equal(np.asarray(other.embeddings), first.embeddings)
    assert neighbours_kept(first.neighbours, first.table, config).tolist() == [1.0] * 30
    assert other.table is not None and neighbours_kept(first.neighbours, other.table, config).mean() < 1.0


def test_what_is_distilled_is_of_texts_as_long_as_those_that_are_trained_on(
    tmp_path: Path, folder: Path, model: SentenceTransformer
) -> None:
    """Trained on short texts and served with long ones, the encoder is held near its embeddings of the short."""
    tokens: Any = ListTokens.of_texts(folder, [" ".join(SYLLABLES[item : item + 16]) for item in range(30)])
    tokens.num_items = 30
    short = a_config(encoder={"max_seq_length": 8}, train={"distill_weight": 1.0}, evaluate={"neighbours_at": 3})
    tree = short.model_dump(mode="json")
    both = validate_config({**tree, "evaluate": {**tree["evaluate"], "max_seq_length": 32}})
    expected, _ = kept(short, tmp_path / "short", model, tokens)
    served, _ = kept(a_config(evaluate={"neighbours": True, "neighbours_at": 3}), tmp_path / "long", model, tokens)
    found, embedded = kept(both, tmp_path / "both", model, tokens)
    assert embedded == 60 and found.table is not None and served.table is not None
    assert np.array_equal(np.asarray(found.embeddings), np.asarray(expected.embeddings))
    assert np.array_equal(np.asarray(found.neighbours), np.asarray(served.neighbours))
    assert torch.equal(found.table, served.table) and not torch.equal(found.table, expected.table)
    alone = validate_config({**both.model_dump(mode="json"), "evaluate": {"neighbours": False, "max_seq_length": 32}})
    found, embedded = kept(alone, tmp_path / "alone", model, tokens)
    assert (embedded, found.table) == (30, None), "what is scored before training is served"


@pytest.mark.parametrize(
    ("sections", "distilled", "compared"),
    [
        ({}, False, False),
        ({"evaluate": {"before": True}}, False, True),
        ({"evaluate": {"before": True, "neighbours": False}}, False, False),
        ({"evaluate": {"neighbours": True}}, False, True),
        ({"train": {"distill_weight": 0.5}, "evaluate": {"neighbours": False}}, True, False),
    ],
)
def test_only_what_is_asked_for_is_embedded_and_kept(
    tmp_path: Path, model: SentenceTransformer, tokens: Any, sections: Any, distilled: bool, compared: bool
) -> None:
    found, embedded = kept(a_config(**sections), tmp_path, model, tokens)
    assert (found.embeddings is not None, found.neighbours is not None) == (distilled, compared)
    assert embedded == (30 if distilled or compared else 0)
    assert (tmp_path / "original").exists() == bool(embedded)


@pytest.mark.parametrize(
    ("train", "owner", "function"),
    [({}, np, "save"), ({"distill_weight": 1.0}, np.lib.format, "open_memmap")],
)
def test_a_worker_that_was_thought_gone_and_writes_too_spoils_nothing(
    tmp_path: Path,
    model: SentenceTransformer,
    tokens: Any,
    monkeypatch: pytest.MonkeyPatch,
    train: Any,
    owner: Any,
    function: str,
) -> None:
    config = a_config(train=train, evaluate={"neighbours": not train})
    came = second_writer(monkeypatch, owner, function, lambda: kept(config, tmp_path, model, tokens))
    found, _ = kept(config, tmp_path, model, tokens)
    written = found.embeddings if train else found.neighbours
    assert came and found.table is not None and written is not None
    if train:
        np.testing.assert_allclose(np.asarray(written, np.float32), found.table.numpy(), atol=1e-3)
    else:
        assert written.tolist() == nearest_items(found.table, np.arange(30), config.evaluate.neighbours_at).tolist()
    assert len(list((tmp_path / "original").iterdir())) == 1
