"""Going on tomorrow: a store that has grown by items and interactions, a run that begins with yesterday's encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from test_resume import beyond_a_checkpoint

from beeray.core.fingerprint import model_fingerprint
from beeray.data.store import Store

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

NUM_OLD, NUM_NEW = 120, 30
GROWN = ("data.catalog.path=grown-catalog.parquet", "data.interactions.path=grown.parquet", "data.store=stores/grown")
STILL = ("train.lr=1e-12", "train.max_steps=1", "evaluate.before=true", "evaluate.splits=[test]", "split.test=40")


@pytest.fixture(scope="module")
def tomorrow(world: World, trained: Done) -> Done:
    """One step, so small that it moves nothing: what is exported is what was begun with."""
    world.write_grown_tables(NUM_NEW)
    done = world.run("train", "name=tomorrow", "train.init_from=runs/first", *GROWN, *STILL)
    assert done.code == 0, done.err
    return done


def test_it_begins_with_yesterdays_weights_and_not_with_the_encoders(world: World, tomorrow: Done) -> None:
    assert world.distance("first", "tomorrow") < 1e-6
    untouched, begun = load_file(world.folder / "encoder" / "model.safetensors"), world.parameters("tomorrow")
    assert max(float((untouched[name] - begun[name]).abs().max()) for name in begun) > 1e-3
    model = SentenceTransformer(str(world.path("first") / "model"), device="cpu")
    assert tomorrow.record["init_from"]["fingerprint"] == model_fingerprint(model)
    assert tomorrow.record["init_from"]["folder"] == "runs/first"


def test_what_is_embedded_before_the_first_step_is_what_was_exported(tomorrow: Done) -> None:
    before, after = tomorrow.record["metrics_before"]["test"], tomorrow.record["metrics"]["test"]
    assert before.keys() == after.keys() == {"held_out", "catalog", "old_items", "new_items"}
    for ranking in before:
        assert before[ranking]["ndcg@10"]["mean"] == pytest.approx(after[ranking]["ndcg@10"]["mean"], abs=0.02)
    assert tomorrow.record["neighbours_kept"]["mean"] > 0.99
    assert "semantic neighbours kept: " in tomorrow.err


def test_old_and_new_items_are_asked_for_among_the_same_candidates(world: World, tomorrow: Done) -> None:
    scores = pq.read_table(world.path("tomorrow") / "scores.parquet").to_pylist()
    users = {
        ranking: {row["user_index"] for row in scores if row["ranking"] == ranking}
        for ranking in ("held_out", "old_items", "new_items")
    }
    assert users["old_items"] | users["new_items"] == users["held_out"]
    assert users["old_items"] != users["held_out"] != users["new_items"]
    test = tomorrow.record["metrics"]["test"]
    assert {test[ranking]["candidates"] for ranking in users} == {40}
    assert test["old_items"]["ndcg@10"] != test["new_items"]["ndcg@10"]
    assert "candidates, only items that are new since the earlier run asked for: recall@5" in tomorrow.err


def test_held_out_items_that_yesterday_was_trained_on_are_counted_and_warned_of(world: World, tomorrow: Done) -> None:
    yesterday, today = (Store.open(str(world.folder / "stores" / name)) for name in ("shared", "grown"))
    labels = dict(zip(yesterday.item_ids().to_pylist(), yesterday.item_labels().tolist(), strict=True))
    today_ids, today_labels = today.item_ids().to_pylist(), today.item_labels().tolist()
    trained = sum(labels.get(item) == 0 for item, label in zip(today_ids, today_labels, strict=True) if label == 2)
    found = tomorrow.record["init_from"]
    assert found["held_out_but_trained_on_before"]["test"] == trained > 0
    assert (found["old_items"], found["new_items"]) == (NUM_OLD, NUM_NEW)
    assert f"begin with runs/first: {NUM_OLD} items that it knew, {NUM_NEW} new" in tomorrow.err
    assert "warning: it was trained on items that are held out now (" in tomorrow.err
    assert f"{trained} of test), which flatters" in tomorrow.err


def test_a_run_without_a_beginning_has_no_groups_and_counts_neighbours_among_its_reports_items(trained: Done) -> None:
    assert trained.record["metrics"]["test"].keys() == {"held_out", "catalog"}
    assert "init_from" not in trained.record
    kept = trained.record["neighbours_kept"]
    assert (kept["k"], kept["among"], kept["items"]) == (10, NUM_OLD, NUM_OLD) and 0 < kept["mean"] < 1


@pytest.mark.long
def test_a_killed_run_goes_on_from_its_checkpoint_and_not_from_yesterdays_encoder(world: World, trained: Done) -> None:
    arguments = ("train.init_from=runs/first", "train.checkpoint_every_steps=2", "evaluate.splits=[]", *GROWN)
    world.write_grown_tables(NUM_NEW)
    assert world.run("train", "name=unbroken", *arguments).code == 0
    process = world.start("train", "name=broken", *arguments)
    world.wait_until(lambda: beyond_a_checkpoint(world, "broken"), process)
    world.kill(process)
    done = world.run("train", "name=broken", *arguments)
    assert "resumed from the checkpoint after step " in done.err
    assert world.distance("unbroken", "broken") < 1e-6 < world.distance("first", "broken")
