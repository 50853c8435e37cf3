"""Scoring an encoder by itself: the figures of training, once more from the exported folder, and others' encoders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from beeray.data.store import Store

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def untouched(world: World, trained: Done) -> Done:
    return world.run("evaluate", "name=first", "--model", "untouched", "report.enabled=true")


def same_scores(one: Path, other: Path) -> bool:
    """Whether two per-user tables have the same users and, to 1e-9, the same scores."""
    left, right = pq.read_table(one), pq.read_table(other)
    assert left.column_names == right.column_names and len(left) == len(right) > 0
    for name in ("user_index", "split", "ranking"):
        assert left[name].to_pylist() == right[name].to_pylist()
    return all(np.abs(left[name].to_numpy() - right[name].to_numpy()).max() < 1e-9 for name in ("recall@5", "ndcg@10"))


def test_the_exported_model_scores_what_training_reported_user_by_user(world: World, trained: Done) -> None:
    done = world.run("evaluate", "name=first")
    assert done.record["metrics"] == trained.record["metrics"]
    assert done.record["model"] == trained.record["model"]
    folder = world.path("first")
    assert same_scores(folder / "evaluations" / "model-16" / "scores.parquet", folder / "scores.parquet")
    assert len(done.out.splitlines()) == 1
    assert json.loads((folder / "evaluations" / "model-16" / "metrics.json").read_text()) == done.record


@pytest.mark.long
def test_the_encoder_before_training_scores_otherwise(world: World, trained: Done, untouched: Done) -> None:
    assert untouched.record["model"] == str(world.folder / "encoder")
    folder = world.path("first")
    assert not same_scores(folder / "evaluations" / "untouched-16" / "scores.parquet", folder / "scores.parquet")
    assert untouched.record["metrics"] != trained.record["metrics"]
    assert ">Untouched encoder<" in (folder / "report.html").read_text(encoding="utf-8")
    assert untouched.err.splitlines()[-1] == "report: runs/first/report.html"


@pytest.mark.long
def test_a_folder_is_scored_like_the_same_encoder_under_another_name(world: World, untouched: Done) -> None:
    done = world.run("evaluate", "name=first", "--model", "encoder", "cluster.num_workers=1")
    scores = Path(done.record["scores"])
    assert re.fullmatch(r"encoder-[0-9a-f]{8}-16", scores.parent.name)
    assert same_scores(scores, world.path("first") / "evaluations" / "untouched-16" / "scores.parquet")
    for split, rankings in untouched.record["metrics"].items():
        for ranking, record in rankings.items():
            assert done.record["metrics"][split][ranking]["ndcg@10"]["mean"] == pytest.approx(
                record["ndcg@10"]["mean"], abs=1e-9
            )
            for name in ("coverage@5", "gini@5", "popularity@5", "target_popularity"):  # of one worker and of two
                assert done.record["metrics"][split][ranking][name] == pytest.approx(record[name], abs=0.01)


def test_per_user_scores_join_with_the_stores_users_and_average_to_what_is_printed(world: World, trained: Done) -> None:
    store = Store.open(str(world.folder / "stores" / "shared"))
    users = {user["user_index"]: user for path in store.user_paths() for user in pq.read_table(path).to_pylist()}
    scores = pq.read_table(world.path("first") / "scores.parquet").to_pylist()
    for label, split in ((1, "validation"), (2, "test")):
        for ranking in ("held_out", "catalog"):
            rows = [row for row in scores if row["split"] == split and row["ranking"] == ranking]
            with_target = {index for index, user in users.items() if label in user["splits"] and 0 in user["splits"]}
            assert [row["user_index"] for row in rows] == sorted(with_target)
            record = trained.record["metrics"][split][ranking]
            assert record["users"] == len(rows)
            mean = sum(row["recall@5"] for row in rows) / len(rows)
            assert record["recall@5"]["mean"] == pytest.approx(mean, abs=1e-12)
            assert f"{split}, {len(rows)} users" in trained.err and f"recall@5 {mean:.4f}" in trained.err
    assert all(users[row["user_index"]]["user_id"].startswith("user-") for row in scores)


def test_a_run_without_a_model_is_refused_in_one_line(world: World) -> None:
    refused = world.run("evaluate", "name=never")
    assert refused.complaint.startswith("beeray evaluate: run 'never': ")
    assert "the run is not finished; train it, or give --model PATH" in refused.complaint
    assert len(refused.err.splitlines()) == 1
    assert not world.path("never").exists()


@pytest.mark.long
def test_a_run_that_is_scored_on_another_draw_says_what_of_it_was_trained_on(world: World, trained: Done) -> None:
    own = world.run("evaluate", "name=first", "--model", "runs/first/model")
    assert not any(own.record["held_out_but_trained_on"].values()) and "was trained on" not in own.err
    other = world.run("evaluate", "name=redrawn", "seed=9", "data.store=stores/redrawn", "--model", "runs/first/model")
    yesterday, today = (Store.open(str(world.folder / "stores" / name)) for name in ("shared", "redrawn"))
    seen = int(((yesterday.item_labels() == 0) & (today.item_labels() == 2)).sum())
    assert other.record["held_out_but_trained_on"]["test"] == seen > 0
    assert f"{seen} of test), which flatters its figures" in other.err
