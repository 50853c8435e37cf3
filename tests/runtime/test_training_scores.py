"""At the end of training the catalog is embedded once, and every figure is that of embedding it for each purpose."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_encoder import SYLLABLES, ListTokens, build_tiny_encoder

from beeray.config import Config, validate_config
from beeray.core.encoder import Encoder, load_encoder
from beeray.data.parts import write_part
from beeray.data.report_items import ITEMS, REPORT_FOLDER
from beeray.data.store import META, Store, StoreMeta
from beeray.data.store_meta import DomainMeta
from beeray.runtime.checkpoints import Position
from beeray.runtime.original import Original
from beeray.runtime.scoring import embed_catalog
from beeray.runtime.task import WorkerTask
from beeray.runtime.training_scores import TrainingScores
from beeray.runtime.worker import score

CPU = torch.device("cpu")
NUM_ITEMS, NUM_USERS = 40, 24
LABELS = np.array([0] * 12 + [1] * 4 + [2] * 4, dtype=np.int8)
"""Of the items of each half, which are a domain each where there are two."""
END = Position(epoch=2, step=10)


class Task(WorkerTask):
    """Keeps what it would send."""

    def send(self, kind: str, **event: Any) -> None:
        sent: list[dict[str, Any]] = self.monitor
        sent.append({"kind": kind, **event})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("scores") / "encoder", dropout=0.1)


@pytest.fixture
def tokens(folder: Path) -> Any:
    return a_catalog(folder, some_texts())


def some_texts() -> list[str]:
    """Texts of one to seven words, so that a text's batch depends on what else is embedded."""
    return [" ".join(SYLLABLES[item : item + 1 + item % 7]) for item in range(NUM_ITEMS)]


def a_catalog(folder: Path, texts: list[str]) -> Any:
    """Their tokens, as the token store of an encoder has them."""
    catalog = ListTokens.of_texts(folder, texts)
    catalog.num_items = NUM_ITEMS  # type: ignore[attr-defined]
    return catalog


def a_store(path: Path, *, domains: bool) -> Store:
    """An item split; each user has eight items of one half of the catalog."""
    generator = np.random.default_rng(0)
    labels = np.tile(LABELS, 2)
    (path / "catalog").mkdir(parents=True)
    (path / "users").mkdir()
    write_part(pa.table({"split": pa.array(labels)}), str(path / "catalog" / "part-00000.parquet"))
    for half in (0, 1):
        users = np.arange(NUM_USERS // 2) + half * NUM_USERS // 2
        items = [np.sort(generator.permutation(20)[:12]) + 20 * half for _ in users]
        rows = {
            "user_index": pa.array(users, pa.int32()),
            "split": pa.array(np.zeros(len(users), np.int8)),
            "item_indices": pa.array(items, pa.list_(pa.int32())),
            "splits": pa.array([labels[one] for one in items], pa.list_(pa.int8())),
        }
        write_part(pa.table(rows), str(path / "users" / f"part-{half:03d}-00000.parquet"))
    meta = StoreMeta("f", "item", ["a"], NUM_ITEMS, NUM_USERS, 288, {}, {}, {}, {})
    if domains:
        halves = [
            DomainMeta(name, 20, 12, 144, {}, {}, {}, {}, first_item=20 * place, first_user=12 * place)
            for place, name in enumerate("ab")
        ]
        by_domain = [dataclasses.asdict(one) for one in halves]
        meta = dataclasses.replace(meta, domains=["a", "b"], by_domain=by_domain)
    (path / META).write_text(json.dumps(dataclasses.asdict(meta)), encoding="utf-8")
    return Store.open(str(path))


def a_config(**sections: Any) -> Config:
    tree: dict[str, Any] = {"name": "a", "data": {"source": "shop"}, "encoder": {"max_seq_length": 32}}
    tree["train"] = {"evaluate_every_epochs": 1, "matryoshka_dims": [8, 16], "token_budget": 64}
    tree["evaluate"] = {"recall_at": [5], "ndcg_at": [10], "full_catalog": True, "neighbours_at": 3}
    return validate_config({**tree, **{key: tree.get(key, {}) | section for key, section in sections.items()}})


class Run:
    """The end of a run: an encoder with the weights that it has learned, and what its scores ask for and send."""

    def __init__(self, config: Config, folder: Path, store: Store, tokens: Any) -> None:
        self.encoder = Encoder(load_encoder(str(folder), max_seq_length=32), config.train.precision).train()
        self.tokens, self.store = tokens, store
        self.sent: list[dict[str, Any]] = []
        self.task = Task(config, store.path, "", self.sent, str(folder))
        self.scores = TrainingScores(self.task, self.encoder, store, tokens, CPU, starts_with_head=False)
        tokens.gathered.clear()

    def embedded(self) -> int:
        """Items embedded since the run began."""
        return sum(len(items) for items in self.tokens.gathered)

    def learn(self) -> None:
        """Move the weights, as a further epoch does."""
        with torch.no_grad():
            for parameter in self.encoder.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def embed_for_each(self, original: Original) -> None:
        """Validate and score, each with embeddings of its own."""
        self.scores.validate(END)
        score(self.task, self.encoder, self.store, self.tokens, CPU, "after", original=original.neighbours)

    def figures(self) -> dict[str, Any]:
        """All that was sent of validation, final scores and neighbours."""
        found: dict[str, Any] = {}
        for event in self.sent:
            if event["kind"] == "epoch":
                found["validation"] = event["metrics"]
            if event["kind"] == "neighbours":
                found["neighbours"] = event["kept"].tolist()
            if event["kind"] == "scores":
                found |= {
                    f"{one.split}/{one.ranking}/{one.domain}": (one.user_index.tolist(), one.scores.tolist(), one.shown)
                    for one in event["scores"]
                }
        return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("measured", [False, True])
def test_the_catalog_is_embedded_once_for_the_last_validation_and_the_final_scores_which_stay_the_same(
    tmp_path: Path, folder: Path, tokens: Any, precision: str, measured: bool
) -> None:
    store = a_store(tmp_path / "store", domains=False)
    config = a_config(train={"precision": precision})
    original = Original(neighbours=np.tile(np.array([0, 1, 2], np.int32), (NUM_ITEMS, 1)) if measured else None)
    twice = Run(config, folder, store, tokens)
    twice.embed_for_each(original)
    assert twice.embedded() == 2 * NUM_ITEMS
    once = Run(config, folder, store, tokens)
    once.scores.after(END, original)
    assert once.embedded() == NUM_ITEMS
    assert once.figures() == twice.figures()
    names = {"validation", *(["neighbours"] if measured else [])}
    names |= {f"{split}/{ranking}/None" for split in ("validation", "test") for ranking in ("held_out", "catalog")}
    names |= {f"{split}/held_out@{width}/None" for split in ("validation", "test") for width in (8, 16)}
    assert once.figures().keys() == names
    assert once.encoder.training, "as it was found"
    timings = [event["timings"] for event in once.sent if event["kind"] == "scores"]
    assert len(timings) == 1 and timings[0]["embed_s"] > 0.0, "the seconds of the embedding that the scores are of"
    shown = [event["items"] for event in once.sent if event["kind"] == "embed"]
    assert shown[-1] == NUM_ITEMS, "the bar comes to its end"


def test_an_epoch_before_the_end_lends_nothing_since_its_weights_were_others(
    tmp_path: Path, folder: Path, tokens: Any
) -> None:
    store = a_store(tmp_path / "store", domains=False)
    run = Run(a_config(), folder, store, tokens)
    earlier = run.scores.validate(Position(epoch=1, step=5))
    run.learn()
    run.scores.after(END, Original())
    assert run.embedded() == 2 * NUM_ITEMS
    fresh = Run(a_config(), folder, store, tokens)
    fresh.learn()
    fresh.embed_for_each(Original())
    assert run.figures() == fresh.figures()
    assert run.figures()["validation"] != earlier


def test_without_validation_the_catalog_is_embedded_for_the_final_scores(
    tmp_path: Path, folder: Path, tokens: Any
) -> None:
    run = Run(a_config(train={"evaluate_every_epochs": None}), folder, a_store(tmp_path / "s", domains=False), tokens)
    run.scores.after(END, Original())
    assert run.embedded() == NUM_ITEMS
    assert "validation" not in run.figures() and "test/held_out/None" in run.figures()


@pytest.mark.parametrize("scored_before", [True, False])
@pytest.mark.parametrize("splits", [["test"], []])
def test_the_report_has_both_encoders_whether_or_not_anything_was_scored_before_training(
    tmp_path: Path, folder: Path, tokens: Any, splits: list[str], scored_before: bool
) -> None:
    store = a_store(tmp_path / "store", domains=False)
    items = tmp_path / "run" / REPORT_FOLDER
    items.mkdir(parents=True)
    write_part(pa.table({"item_index": pa.array([3, 5, 30], pa.int32())}), str(items / ITEMS))
    config = a_config(train={"evaluate_every_epochs": None}, evaluate={"splits": splits, "before": True})
    run = Run(config, folder, store, tokens)
    run.task = dataclasses.replace(run.task, run_dir=str(tmp_path / "run"))
    run.scores = TrainingScores(run.task, run.encoder, store, tokens, CPU, starts_with_head=False)
    if scored_before:
        run.scores.before(Original())
        assert (items / "original.npy").exists() == bool(splits)
    run.learn()
    run.scores.after(END, Original())
    original, trained = (np.load(items / f"{name}.npy").astype(np.float32) for name in ("original", "trained"))
    untouched = Run(config, folder, store, tokens).encoder.eval()
    expected = embed_catalog(untouched, config, store, tokens, CPU).numpy()[[3, 5, 30]]
    np.testing.assert_allclose(original, expected, atol=2e-3)
    assert trained.shape == original.shape and np.abs(trained - original).max() > 0.01


@pytest.mark.parametrize("measured", [False, True])
def test_final_scores_of_some_domains_are_of_their_items_alone_unless_the_whole_catalog_is_needed_anyway(
    tmp_path: Path, folder: Path, tokens: Any, measured: bool
) -> None:
    store = a_store(tmp_path / "store", domains=True)
    data = {"source": None, "domains": {name: {"source": "shop"} for name in "ab"}}
    config = a_config(data=data, evaluate={"domains": ["b"]})
    original = Original(neighbours=np.zeros((NUM_ITEMS, 3), dtype=np.int32) if measured else None)
    twice, once = Run(config, folder, store, tokens), Run(config, folder, store, tokens)
    twice.embed_for_each(original)
    tokens.gathered.clear()
    once.scores.after(END, original)
    assert once.embedded() == (NUM_ITEMS if measured else NUM_ITEMS + 20)
    assert once.figures() == twice.figures()
    assert "test/held_out/b" in once.figures() and "test/held_out/a" not in once.figures()
