"""From per-rank scores and step records to what a run reports, with figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from beeray.config import Config, EvaluateConfig, validate_config
from beeray.runtime.results import (
    flat_means,
    headline,
    merge_ranks,
    neighbours_line,
    scores_table,
    summarise_neighbours,
    summarise_scores,
    summarise_training,
    summarise_workers,
)
from beeray.runtime.split_scores import SplitScores

EVALUATE = EvaluateConfig(num_bootstrap=200)


def a_config(**train: bool) -> Config:
    return validate_config({"name": "mine", "data": {"source": "shop"}, "train": train})


def scores(
    split: str, users: list[int], *rows: tuple[float, float], ranking: str = "held_out", domain: str | None = None
) -> SplitScores:
    table = np.array(rows, dtype=np.float64).reshape(len(users), 2)
    return SplitScores(split, ranking, ["recall@2", "ndcg@3"], np.array(users, dtype=np.int64), table, 7, domain)


RANK_0 = [scores("test", [0, 2], (0.0, 0.25), (1.0, 0.75)), scores("validation", [2], (0.5, 0.5))]
RANK_1 = [scores("test", [1, 3], (1.0, 0.25), (1.0, 0.75)), scores("validation", [])]


def test_ranks_are_put_together_split_by_split_with_users_in_order() -> None:
    test, validation = merge_ranks([*RANK_0, *RANK_1])
    assert (test.split, test.user_index.tolist()) == ("test", [0, 1, 2, 3])
    assert test.scores.tolist() == [[0.0, 0.25], [1.0, 0.25], [1.0, 0.75], [1.0, 0.75]]
    assert (validation.split, validation.user_index.tolist(), validation.num_candidates) == ("validation", [2], 7)


def test_means_are_over_users_of_all_ranks_and_intervals_hold_them() -> None:
    summary = summarise_scores(merge_ranks([*RANK_0, *RANK_1]), EVALUATE)
    test = summary["test"]["held_out"]
    assert (test["users"], test["candidates"]) == (4, 7)
    assert test["recall@2"]["mean"] == 0.75  # (0 + 1 + 1 + 1) / 4
    assert test["ndcg@3"]["mean"] == 0.5  # (¼ + ¼ + ¾ + ¾) / 4
    assert test["recall@2"]["low"] < 0.75 < test["recall@2"]["high"] <= 1.0
    validation = summary["validation"]["held_out"]
    assert validation["recall@2"] == {"mean": 0.5, "low": 0.5, "high": 0.5}, "one user: nothing to resample"


def test_a_split_without_a_user_has_no_metric_rather_than_a_zero() -> None:
    summary = summarise_scores([scores("test", [])], EVALUATE)
    assert summary == {"test": {"held_out": {"users": 0, "candidates": 7}}}
    assert flat_means(summary) == {}
    (line,) = headline(summary, a_config(), None)
    assert line == "test, 0 users, 7 held-out items: no user has a target"


def test_flat_means_and_headlines_name_split_ranking_and_metric() -> None:
    both = [scores("test", [0], (1.0, 0.5)), scores("test", [0], (0.25, 0.125), ranking="catalog")]
    summary = summarise_scores(both, EVALUATE)
    assert flat_means(summary) == {
        "test/held_out/recall@2": 1.0,
        "test/held_out/ndcg@3": 0.5,
        "test/catalog/recall@2": 0.25,
        "test/catalog/ndcg@3": 0.125,
    }
    assert headline(summary, a_config(), None) == [
        "test, 1 users, 7 held-out items: recall@2 1.0000 [1.0000, 1.0000]  ndcg@3 0.5000 [0.5000, 0.5000]",
        "test, 1 users, 7 items of the whole catalog: recall@2 0.2500 [0.2500, 0.2500]  ndcg@3 0.1250 [0.1250, 0.1250]",
    ]


def test_a_headline_says_when_validation_was_trained_on() -> None:
    summary = summarise_scores([scores("validation", [0], (1.0, 0.5)), scores("test", [0], (1.0, 0.5))], EVALUATE)
    validation, test = headline(summary, a_config(), True)
    assert validation.startswith("validation (trained on), 1 users")
    assert test.startswith("test, 1 users")
    for learned in (False, None):
        assert headline(summary, a_config(), learned)[0].startswith("validation, 1 users")


def test_what_is_kept_once_ranked_is_told_beside_the_candidates() -> None:
    both = [
        scores("test", [0], (1.0, 0.5), ranking=ranking, domain=name)
        for ranking in ("catalog", "filtered")
        for name in "ab"
    ]
    both[2:] = [replace(one, num_kept=number) for one, number in zip(both[2:], (2, 3), strict=True)]
    test = summarise_scores(merge_ranks(both), EVALUATE)["test"]
    assert "kept" not in test["catalog"]
    assert (test["filtered"]["candidates"], test["filtered"]["kept"]) == (14, 5)
    assert {name: one["kept"] for name, one in test["filtered"]["domains"].items()} == {"a": 2, "b": 3}
    line = next(line for line in headline({"test": test}, a_config(), None) if "filtered" in line)
    assert line.startswith(
        "test, 2 users, 14 items (filtered), 5 of its window kept once ranked of 2 domains: recall@2"
    )
    assert flat_means({"test": test})["test/filtered/ndcg@3"] == 0.5


def test_the_table_has_a_row_a_user_and_split() -> None:
    table = scores_table(merge_ranks([*RANK_0, *RANK_1]))
    assert table.to_pylist()[0] == {
        "user_index": 0,
        "split": "test",
        "ranking": "held_out",
        "recall@2": 0.0,
        "ndcg@3": 0.25,
    }
    assert table["split"].to_pylist() == ["test"] * 4 + ["validation"]


def test_several_domains_are_told_together_and_one_by_one() -> None:
    ranks = [
        scores("test", [0], (0.0, 0.25), domain="films"),
        scores("test", [2, 4], (1.0, 0.5), (1.0, 0.75), domain="books"),
        scores("test", [1], (1.0, 0.75), domain="films"),
        scores("test", [], domain="books"),
    ]
    films, books = merge_ranks(ranks)
    assert (films.domain, films.user_index.tolist(), books.user_index.tolist()) == ("films", [0, 1], [2, 4])
    summary = summarise_scores([films, books], EVALUATE)
    record = summary["test"]["held_out"]
    assert (record["users"], record["candidates"]) == (4, 14)
    assert record["recall@2"]["mean"] == 0.75  # (0 + 1 + 1 + 1) / 4, not the mean of 0.5 and 1
    assert {name: one["recall@2"]["mean"] for name, one in record["domains"].items()} == {"films": 0.5, "books": 1.0}
    assert record["domains"]["books"].keys() == {"users", "candidates", "recall@2", "ndcg@3"}
    assert record["domains"]["books"]["candidates"] == 7
    assert flat_means(summary) == {
        "test/held_out/recall@2": 0.75,
        "test/held_out/ndcg@3": 0.5625,
        "test/held_out/films/recall@2": 0.5,
        "test/held_out/films/ndcg@3": 0.5,
        "test/held_out/books/recall@2": 1.0,
        "test/held_out/books/ndcg@3": 0.625,
    }
    lines = headline(summary, a_config(), None)
    assert [line.partition(" users")[0] for line in lines] == ["test, 4", "test, films, 2", "test, books, 2"]
    assert lines[0].startswith("test, 4 users, 14 held-out items of 2 domains: recall@2 0.7500 [")
    assert lines[2].startswith("test, books, 2 users, 7 held-out items: recall@2 1.0000 [")
    table = scores_table([films, books])
    assert table["domain"].to_pylist() == ["films", "films", "books", "books"]
    assert table.column_names == ["user_index", "split", "ranking", "domain", "recall@2", "ndcg@3"]


def step(loss: float, items: int, tokens: int, step_s: float) -> dict[str, float]:
    return {
        "loss": loss,
        "items": items,
        "tokens": tokens,
        "padded_tokens": 2 * tokens,
        "recomputed_tokens": 5,
        "step_s": step_s,
        "wait_s": 0.25 * step_s,
        "mfu": 0.5 / step_s,
    }


def test_throughput_is_of_all_steps_together_and_the_median_is_of_single_ones() -> None:
    steps = [step(1.5, 10, 100, 4.0), step(1.4, 20, 300, 1.0), step(1.2, 30, 200, 1.0)]
    workers = [
        {"cpu_s": 3.0, "peak_memory_bytes": 100, "peak_gpu_memory_bytes": 0},
        {"cpu_s": 4.5, "peak_memory_bytes": 300, "peak_gpu_memory_bytes": 7},
    ]
    summary = summarise_training(steps, workers)
    assert summary == {
        "steps": 3,
        "first_loss": 1.5,
        "last_loss": 1.2,
        "encoded_items": 60,
        "tokens": 600,
        "padded_tokens": 1200,
        "recomputed_tokens": 15,
        "step_s_median": 1.0,
        "wait_s_median": 0.25,
        "mfu_median": 0.5,
        "train_s": 6.0,
        "items_per_s": pytest.approx(10.0),  # 60 items in 6 s, not the mean of 2.5, 20 and 30
        "tokens_per_s": pytest.approx(100.0),
        "workers": 2,
        "worker_cpu_s": 7.5,
        "peak_memory_bytes": 300,
        "peak_gpu_memory_bytes": 7,
    }


def test_no_worker_that_reported_is_nothing_used() -> None:
    assert summarise_workers([]) == {
        "workers": 0,
        "worker_cpu_s": 0.0,
        "peak_memory_bytes": 0,
        "peak_gpu_memory_bytes": 0,
    }


def test_neighbours_kept_are_a_mean_over_items_with_its_interval_and_a_line() -> None:
    summary = summarise_neighbours(np.array([1.0, 0.5, 0.0, 0.5]), EVALUATE, "mini", 7000)
    assert (summary["k"], summary["items"], summary["mean"]) == (10, 4, 0.5)
    assert 0 <= summary["low"] < 0.5 < summary["high"] <= 1
    record = {"original": "mini", "k": 10, "among": 7000, "items": 2000, "mean": 0.5, "low": 0.25, "high": 0.75}
    assert neighbours_line(record) == (
        "semantic neighbours kept: 0.5000 [0.2500, 0.7500] of each item's 10 nearest among 7,000 under mini, 2,000 "
        "items"
    )


@pytest.mark.parametrize(
    ("ranking", "said"),
    [
        ("held_out@64", "7 held-out items, first 64 numbers"),
        ("new_items", "7 candidates, only items that are new since the earlier run asked for"),
        ("catalog@8", "7 items of the whole catalog, first 8 numbers"),
    ],
)
def test_further_rankings_are_told_apart_in_words(ranking: str, said: str) -> None:
    summary = summarise_scores([scores("test", [0], (1.0, 0.5), ranking=ranking)], EVALUATE)
    assert headline(summary, a_config(), None)[0].startswith(f"test, 1 users, {said}: recall@2 1.0000")


def test_the_cut_is_told_where_one_length_alone_is_measured() -> None:
    one = replace(scores("test", [0], (1.0, 0.5), ranking="filtered"), num_kept=2)
    evaluate = EVALUATE.model_copy(update={"recall_at": (20,), "ndcg_at": ()})
    assert summarise_scores([one], evaluate)["test"]["filtered"]["cut"] == 20
