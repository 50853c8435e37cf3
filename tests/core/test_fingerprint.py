"""The fingerprint of an encoder: equal wherever it lies, different when a vector could differ."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling
from tiny_encoder import HIDDEN, build_tiny_encoder

from beeray.core.encoder import load_encoder, save_encoder
from beeray.core.fingerprint import model_fingerprint


def fingerprint(folder: Path, **choices: Any) -> str:
    return model_fingerprint(load_encoder(str(folder), **{"max_seq_length": 32, **choices}))


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "copied")


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def test_it_is_sixteen_hex_digits_and_the_same_twice(tiny_folder: Path) -> None:
    found = fingerprint(tiny_folder)
    assert len(found) == 16
    assert int(found, 16) >= 0
    assert fingerprint(tiny_folder) == found


def test_a_copy_and_a_folder_saved_again_are_the_same_encoder(tiny_folder: Path, copied: Path, tmp_path: Path) -> None:
    expected = fingerprint(tiny_folder)
    assert fingerprint(copied) == expected
    save_encoder(load_encoder(str(tiny_folder), max_seq_length=32), tmp_path / "again")
    assert fingerprint(tmp_path / "again") == expected
    save_encoder(load_encoder(str(tmp_path / "again"), max_seq_length=16, prefix="query: "), tmp_path / "third")
    assert fingerprint(tmp_path / "third", prefix="query: ") == expected


def test_the_same_seed_builds_the_same_encoder_and_another_does_not(tmp_path: Path, tiny_folder: Path) -> None:
    assert fingerprint(build_tiny_encoder(tmp_path / "same")) == fingerprint(tiny_folder)
    assert fingerprint(build_tiny_encoder(tmp_path / "other", seed=1)) != fingerprint(tiny_folder)


@pytest.mark.parametrize(
    "choices", [{"max_seq_length": 8}, {"prefix": "query: "}, {"dropout": 0.0}, {"attention": "eager"}]
)
def test_how_texts_are_encoded_is_no_part_of_it(tiny_folder: Path, choices: dict[str, Any]) -> None:
    assert fingerprint(tiny_folder, **choices) == fingerprint(tiny_folder)


def test_encoding_and_training_mode_leave_it_as_it_is(tiny_folder: Path) -> None:
    model = load_encoder(str(tiny_folder), max_seq_length=32)
    before = model_fingerprint(model)
    model.encode(["ba be", "a much longer text " * 20])
    model.train()
    assert model_fingerprint(model) == before


@pytest.mark.parametrize("place", [0, -1])
def test_one_changed_bit_of_any_weight_changes_it(tiny_folder: Path, place: int) -> None:
    model = load_encoder(str(tiny_folder), max_seq_length=32)
    seen = {model_fingerprint(model)}
    weights = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    for tensor in weights:
        tensor.view(-1).view(torch.int32)[place] ^= 1
        seen.add(model_fingerprint(model))
    assert len(seen) == len(weights) + 1


def test_two_weights_that_change_places_change_it(tiny_folder: Path) -> None:
    model = load_encoder(str(tiny_folder), max_seq_length=32)
    before = model_fingerprint(model)
    layers = model[0].model.encoder.layer
    layers[0], layers[1] = layers[1], layers[0]
    assert model_fingerprint(model) != before


def test_pooling_and_further_modules_change_it(tiny_folder: Path) -> None:
    words = load_encoder(str(tiny_folder), max_seq_length=32)[0]
    ways = [
        [Pooling(HIDDEN, pooling_mode="mean")],
        [Pooling(HIDDEN, pooling_mode="cls")],
        [Pooling(HIDDEN, pooling_mode="max")],
        [Pooling(HIDDEN, pooling_mode="mean"), Normalize()],
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ways.append([Pooling(HIDDEN, pooling_mode="mean"), Dense(HIDDEN, 8)])
    linear = Dense(HIDDEN, 8, activation_function=torch.nn.Identity())
    linear.load_state_dict(ways[-1][1].state_dict())
    ways.append([Pooling(HIDDEN, pooling_mode="mean"), linear])
    found = [model_fingerprint(SentenceTransformer(modules=[words, *way], device="cpu")) for way in ways]
    assert len(set(found)) == len(ways)


def test_a_vocabulary_in_another_order_changes_it(tiny_folder: Path, copied: Path) -> None:
    def swap(record: Any) -> None:
        vocabulary = record["model"]["vocab"]
        vocabulary["ba"], vocabulary["be"] = vocabulary["be"], vocabulary["ba"]

    rewrite(copied / "tokenizer.json", swap)
    assert fingerprint(copied) != fingerprint(tiny_folder)


def test_padding_and_truncation_kept_with_a_tokenizer_are_no_part_of_it(tiny_folder: Path, copied: Path) -> None:
    def add(record: Any) -> None:
        record["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}

    rewrite(copied / "tokenizer.json", add)
    assert fingerprint(copied) == fingerprint(tiny_folder)


@pytest.mark.parametrize(
    ("setting", "value"), [("num_attention_heads", 4), ("hidden_act", "relu"), ("layer_norm_eps", 0.1)]
)
def test_the_same_weights_in_another_network_are_another_encoder(
    tiny_folder: Path, copied: Path, setting: str, value: Any
) -> None:
    rewrite(copied / "config.json", lambda record: record.update({setting: value}))
    texts = ["ba be bi", "da de"]
    one, other = (load_encoder(str(folder), max_seq_length=32).encode(texts) for folder in (tiny_folder, copied))
    assert abs(one - other).max() > 1e-4
    assert fingerprint(copied) != fingerprint(tiny_folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden_dropout_prob", 0.7),
        ("transformers_version", "4.0.0"),
        ("_name_or_path", "/elsewhere"),
    ],
)
def test_what_moves_no_vector_of_a_trained_network_is_no_part_of_it(
    tiny_folder: Path, copied: Path, setting: str, value: Any
) -> None:
    rewrite(copied / "config.json", lambda record: record.update({setting: value}))
    assert fingerprint(copied) == fingerprint(tiny_folder)


def test_code_that_an_encoder_brings_along_is_part_of_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`encoder.revision` moves to a commit that mends the network's code: the same weights give other vectors."""
    package = tmp_path / "transformers_modules" / "shop"
    package.mkdir(parents=True)
    (package / "pooling.py").write_text(
        "from torch import nn\n\nfrom .rotary import BASE\n\n\nclass Pooled(nn.Identity):\n    pass\n"
    )
    (package / "rotary.py").write_text("BASE = 10_000\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pooling = importlib.import_module("transformers_modules.shop.pooling")
    model = load_encoder(str(tiny_folder), max_seq_length=32)
    without = model_fingerprint(model)
    model.append(pooling.Pooled())
    found = model_fingerprint(model)
    assert model_fingerprint(model) == found != without
    (package / "classifier.py").write_text("WIDTH = 1\n")
    assert model_fingerprint(model) == found, "another file of the repository, which something else loaded"
    (package / "rotary.py").write_text("BASE = 20_000\n")
    assert model_fingerprint(model) != found
