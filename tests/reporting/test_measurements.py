"""Which scored things the report shows, under which names, in which order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from beeray.config import validate_config
from beeray.reporting.measurements import collect_measurements, described, rows
from beeray.reporting.page import _tables
from beeray.reporting.summary import facts, headline_row, tiles


def metrics(mean: float, **more: Any) -> dict[str, Any]:
    value = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    return {"test": {"held_out": {"users": 9, "candidates": 5, "recall@2": value, **more}}}


def evaluation(folder: Path, name: str, mean: float, **more: Any) -> None:
    path = folder / "evaluations" / name
    path.mkdir(parents=True)
    record = {"metrics": metrics(mean), "store_fingerprint": "s", **more}
    (path / "metrics.json").write_text(json.dumps(record))


RECORD = {"metrics": metrics(0.5), "metrics_before": metrics(0.2), "store_fingerprint": "s", "text_length": 16}


def names(folder: Path, record: dict[str, Any] | None = RECORD) -> list[str]:
    return [one.name for one in collect_measurements(folder, record)[0]]


def test_baselines_come_first_and_the_trained_encoder_last(tmp_path: Path) -> None:
    evaluation(tmp_path, "baseline-ease", 0.4, label="baseline-ease")
    evaluation(tmp_path, "baseline-popularity", 0.1, label="baseline-popularity")
    evaluation(tmp_path, "baseline-own_idea", 0.1)
    evaluation(tmp_path, "other-1a2b3c4d-16", 0.3, text_length=16, model="/models/other")
    assert names(tmp_path) == ["Popularity", "EASE", "own idea", "Before training", "other", "Trained"]


def test_what_the_run_measured_itself_is_not_shown_twice_unless_the_text_length_differs(tmp_path: Path) -> None:
    for length in (16, 32):
        evaluation(tmp_path, f"model-{length}", 0.5, text_length=length)
        evaluation(tmp_path, f"untouched-{length}", 0.2, text_length=length)
    assert names(tmp_path) == [
        "Before training",
        "Untouched encoder (32 tokens)",
        "Trained",
        "Trained (32 tokens)",
    ]


def test_what_was_measured_again_adds_what_the_run_lacks_and_changes_nothing(tmp_path: Path) -> None:
    again = {"mean": 0.9, "low": 0.8, "high": 1.0}
    evaluation(tmp_path, "model-16", 0.6, text_length=16)
    path = tmp_path / "evaluations" / "model-16" / "metrics.json"
    record = json.loads(path.read_text())
    record["metrics"]["test"]["held_out"]["ndcg@2"] = again
    record["metrics"]["test"]["catalog"] = {"users": 9, "recall@2": again}
    record["metrics"]["validation"] = {"held_out": {"users": 4, "recall@2": again}}
    path.write_text(json.dumps(record))
    own = {**RECORD, "metrics": {"test": {**metrics(0.5)["test"], "filtered": {"users": 8, "recall@2": again}}}}
    record["metrics"]["test"]["filtered"] = {"users": 9, "ndcg@2": again}
    path.write_text(json.dumps(record))
    (trained,) = [one for one in collect_measurements(tmp_path, own)[0] if one.label == "trained"]
    assert trained.metrics["test"]["held_out"]["recall@2"]["mean"] == 0.5
    assert trained.metrics["test"]["held_out"]["ndcg@2"] == again
    assert trained.metrics["test"]["filtered"] == {"users": 8, "recall@2": again}, "of other users"
    assert trained.metrics["test"]["catalog"]["recall@2"] == again and "validation" in trained.metrics


def test_filtered_of_a_version_that_ranked_the_window_alone_is_no_row_of_todays(tmp_path: Path) -> None:
    older, newer = (
        {"users": 9, "candidates": 5, **more, **metrics(0.5)["test"]["held_out"]} for more in ({}, {"kept": 3})
    )
    evaluation(tmp_path, "model-16", 0.6, text_length=16)
    path = tmp_path / "evaluations" / "model-16" / "metrics.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "metrics": {"test": {"filtered": {**newer, "ndcg@2": {}}}}})
    )
    own = {**RECORD, "metrics": {"test": {"filtered": older}}, "metrics_before": {"test": {"filtered": newer}}}
    found = rows(collect_measurements(tmp_path, own)[0])
    assert [(row["name"], row["ranking"], row.get("kept")) for row in found] == [
        ("Before training", "filtered", 3),
        ("Trained", "window", None),
    ]
    assert described("filtered") != described("window") == "items of the window alone"


def test_models_of_other_runs_have_the_names_of_their_runs(tmp_path: Path) -> None:
    for run in ("one", "two"):
        evaluation(tmp_path, f"model-{run}-16", 0.3, text_length=16, model=f"/runs/{run}/model")
    assert names(tmp_path)[1:3] == ["one", "two"]


def test_several_domains_are_all_named() -> None:
    domains = {"films": {"source": "movielens", "path": "films"}, "books": {"source": "goodbooks", "path": "books"}}
    assert ("data", "films, books") in facts(validate_config({"name": "a", "data": {"domains": domains}}), None)


def test_before_a_head_start_is_not_the_untouched_encoder(tmp_path: Path) -> None:
    evaluation(tmp_path, "untouched-16", 0.1, text_length=16)
    assert names(tmp_path, RECORD | {"head": {}}) == ["After the head start", "Untouched encoder", "Trained"]


def test_before_a_run_that_began_with_another_is_not_the_untouched_encoder(tmp_path: Path) -> None:
    evaluation(tmp_path, "untouched-16", 0.1, text_length=16)
    record = RECORD | {"init_from": {"folder": "runs/yesterday"}}
    assert names(tmp_path, record) == ["Before training", "Untouched encoder", "Trained"]
    (tile,) = tiles(rows(collect_measurements(tmp_path, record)[0]))
    assert tile["note"] == "0.200 before training, × 2.50"
    del record["metrics_before"]
    (tile,) = tiles(rows(collect_measurements(tmp_path, record)[0]))
    assert "before training" not in str(tile)


def test_a_run_that_was_never_trained_shows_what_was_evaluated(tmp_path: Path) -> None:
    evaluation(tmp_path, "untouched-16", 0.1, text_length=16)
    assert names(tmp_path, None) == ["Untouched encoder"]
    assert names(tmp_path / "nothing", None) == []


def test_other_data_and_damage_are_left_out_and_said(tmp_path: Path) -> None:
    evaluation(tmp_path, "baseline-ease", 0.9, store_fingerprint="else")
    evaluation(tmp_path, "broken", 0.9)
    (tmp_path / "evaluations" / "broken" / "metrics.json").write_text("{")
    found, notes = collect_measurements(tmp_path, RECORD)
    assert [one.name for one in found] == ["Before training", "Trained"]
    assert notes == [
        "baseline-ease: measured on another store (else), so it is not shown",
        "broken: its metrics.json cannot be read",
    ]


def test_rows_hold_intervals_exposure_and_every_domain() -> None:
    figures = {"coverage@2": 0.5, "gini@2": 0.25, "popularity@2": 0.75, "target_popularity": 0.5}
    domains = {"books": metrics(0.7)["test"]["held_out"]}
    record = {"metrics": {**metrics(0.5, domains=domains, **figures)}}
    record["metrics"]["validation"] = {"held_out": {"users": 0, "candidates": 5}}
    whole, books, validation = rows(collect_measurements(Path("nowhere"), record)[0])
    assert whole["metrics"] == {"recall@2": [0.5, 0.4, 0.6]}
    assert whole["shown"] == {"k": 2, "coverage": 0.5, "gini": 0.25, "popularity": 0.75, "target_popularity": 0.5}
    assert (whole["domain"], books["domain"], books["metrics"]["recall@2"][0]) == ("", "books", 0.7)
    assert (validation["split"], validation["metrics"], validation["shown"]) == ("validation", {}, {})


def test_tiles_hold_the_run_against_before_and_the_best_baseline(tmp_path: Path) -> None:
    evaluation(tmp_path, "baseline-ease", 0.4)
    evaluation(tmp_path, "baseline-popularity", 0.1)
    (tile,) = tiles(rows(collect_measurements(tmp_path, RECORD)[0]))
    assert (tile["name"], tile["value"], tile["interval"]) == ("recall@2", "0.500", "0.400 – 0.600")
    assert tile["note"] == "0.200 before training, × 2.50"
    assert tile["rival"] == "best baseline 0.400 (EASE)"
    assert tiles([]) == []


def test_rankings_by_a_prefix_and_of_new_items_are_told_in_words() -> None:
    assert described("held_out@64") == "held-out items, first 64 numbers of the embeddings"
    assert described("new_items") == "only new items asked for"
    assert described("own_idea") == "own_idea"


def test_rows_of_other_users_or_another_cut_are_held_against_nobody(tmp_path: Path) -> None:
    """A run over films and books, baselines of books alone, and an evaluation whose rankings were cut at 20."""
    one = metrics(0.5)["test"]["held_out"]
    evaluation(tmp_path, "baseline-ease", 0.9, label="baseline-ease")
    evaluation(tmp_path, "other-1a2b3c4d-16", 0.9, text_length=16)
    own = {"held_out": one | {"domains": {"books": one, "films": one}}, "filtered": one | {"kept": 3, "cut": 100}}
    for name, record in (
        ("baseline-ease", {"held_out": one | {"domains": {"books": one}}}),
        ("other-1a2b3c4d-16", {"filtered": one | {"kept": 3, "cut": 20}}),
    ):
        path = tmp_path / "evaluations" / name / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"test": record}}))
    found = rows(collect_measurements(tmp_path, {**RECORD, "metrics": {"test": own}, "metrics_before": {}})[0])
    assert {(row["name"], row["key"]) for row in found} == {
        ("EASE", "test|held_out||books"),
        ("EASE", "test|held_out|books"),
        ("Trained", "test|held_out||books, films"),
        ("Trained", "test|held_out|books"),
        ("Trained", "test|held_out|films"),
        ("Trained", "test|filtered||first 100"),
        ("other-1a2b3c4d", "test|filtered||first 20"),
    }
    headline = headline_row(found)
    assert headline is not None and headline["key"] == "test|held_out||books, films", "which the page names above them"
    (tile,) = tiles(found)
    assert tile["rival"] == "", "EASE was not measured on the users of both"


def test_what_was_evaluated_under_a_name_that_was_never_trained_is_of_one_store(tmp_path: Path) -> None:
    evaluation(tmp_path, "untouched-16", 0.1, text_length=16, store_fingerprint="older")
    evaluation(tmp_path, "baseline-ease", 0.4, label="baseline-ease", store_fingerprint="newer")
    os.utime(tmp_path / "evaluations" / "untouched-16" / "metrics.json", (1, 1))
    found, notes = collect_measurements(tmp_path, None)
    assert [one.name for one in found] == ["EASE"]
    assert notes == ["untouched-16: measured on another store (older), so it is not shown"]


def test_validation_is_marked_where_what_was_scored_there_was_trained_on_it(tmp_path: Path) -> None:
    """By the records: the config may be another one by now."""
    of_validation = {"metrics": {"validation": metrics(0.5)["test"]}}
    for learned, title in ((True, "validation (trained on) · held-out items"), (False, "validation · held-out items")):
        record = RECORD | of_validation | {"metrics_before": {}, "trained_on_validation": learned}
        (table,) = _tables(rows(collect_measurements(tmp_path, record)[0]))
        assert table["title"] == title


def test_coverage_is_shown_beside_coverage_of_as_many_places(tmp_path: Path) -> None:
    evaluation(tmp_path, "baseline-ease", 0.4)
    path = tmp_path / "evaluations" / "baseline-ease" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": metrics(0.4, **{"coverage@10": 0.2})}))
    record = {**RECORD, "metrics": metrics(0.5, **{"coverage@50": 0.5}), "metrics_before": {}}
    (table,) = _tables(rows(collect_measurements(tmp_path, record)[0]))
    assert (table["k"], table["other_k"]) == (50, True)
