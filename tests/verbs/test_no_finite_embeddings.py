"""An encoder that gives one text no numbers is scored by no command, and a run that ends in it is not finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import a_catalog
from safetensors.torch import load_file, save_file
from tiny_encoder import WORDS, build_tiny_encoder

from beeray.data.store import Store

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]
ONE_WORD = (
    "encoder.name=overflows",
    "data.catalog.path=one-word.parquet",
    "data.store=stores/one-word",
    "name=overflows",
)
UNMEASURED = ("evaluate.before=false", "evaluate.neighbours=false")


@dataclass(frozen=True)
class Bad:
    """What the commands are given: an item that is held out, whose text alone has a word that overflows."""

    said: str


@pytest.fixture(scope="module")
def bad(world: World, trained: Done) -> Bad:
    labels = Store.open(str(world.folder / "stores" / "shared")).item_labels()
    catalog = a_catalog()
    store_ids = Store.open(str(world.folder / "stores" / "shared")).item_ids().to_pylist()
    held_out = next(item for item, label in zip(store_ids, labels, strict=True) if label == 2)
    place = catalog["sku"].index(held_out)
    catalog["title"][place] = f"z {catalog['title'][place]}"
    pq.write_table(pa.table(catalog), world.folder / "one-word.parquet")
    weights = next(build_tiny_encoder(world.folder / "overflows").glob("**/*.safetensors"))
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name][5 + WORDS.index("z")] = 3e38  # behind the special tokens
    save_file(tensors, weights, metadata={"format": "pt"})
    return Bad(
        f"embeddings of 1 of 120 items are no finite numbers ('{held_out}'), and no user could be scored by them"
    )


def test_an_encoder_that_gives_an_item_no_numbers_is_not_scored(world: World, bad: Bad) -> None:
    done = world.run("evaluate", *ONE_WORD, "--model", "untouched")
    assert done.complaint == (
        f"beeray evaluate: the encoder: {bad.said}; give another encoder, or train.precision: fp32, or correct the "
        "texts of these items"
    )
    assert not (world.path("overflows") / "evaluations").exists()
    baseline = world.run("baselines", *ONE_WORD, "--only", "untouched")
    assert bad.said in baseline.complaint


def test_a_run_that_ends_in_such_a_model_keeps_its_checkpoints_and_is_not_finished(world: World, bad: Bad) -> None:
    done = world.run("train", *ONE_WORD, *UNMEASURED)
    assert done.complaint.startswith(
        f"beeray train: train.lr 0.002: the encoder: {bad.said}, after step 15, so the run is"
    )
    for _ in range(2):
        folder = world.path("overflows")
        assert list(folder.glob("checkpoints/checkpoint_*")) and not (folder / "metrics.json").exists()
        assert not (folder / "model").exists() and not (folder / "scores.parquet").exists()
        again = world.run("train", *ONE_WORD, *UNMEASURED)
        assert again.complaint == done.complaint
        assert "resumed" in again.err
