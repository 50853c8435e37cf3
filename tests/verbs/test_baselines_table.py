"""Which baselines are fitted, which runs stand beside them in their table, and what MLflow gets, without Ray."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from beeray.config import Baseline, Config, validate_config
from beeray.console import Console
from beeray.data.scored import Scored
from beeray.errors import ConfigError, RunError
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.tracked_evaluation import evaluation_tracked
from beeray.verbs import baselines, protocol
from beeray.verbs.baselines import own_model


@pytest.mark.parametrize(
    ("scored", "asked", "store", "said"),
    [
        (["validation", "test"], ["validation", "test"], "store-a", ""),
        (["test"], ["validation", "test"], "store-a", ""),  # the table is of test alone
        (["validation"], ["validation", "test"], "store-a", "run 'mine' was not scored on test: left out of the table"),
        (["test"], ["validation"], "store-a", "was not scored on validation: left out of the table; beeray.evaluate"),
        (["test"], ["test"], "store-b", "was scored on another store"),
    ],
)
def test_a_run_that_was_scored_on_other_splits_is_left_out_in_a_line(
    tmp_path: Path, scored: list[str], asked: list[str], store: str, said: str
) -> None:
    tree = {"name": "mine", "runs_dir": str(tmp_path), "data": {"source": "shop"}, "evaluate": {"splits": asked}}
    config, shown = validate_config(tree), io.StringIO()
    run = RunFolder(config)
    run.claim("store-a")
    run.model.mkdir()
    columns = {"user_index": list(range(len(scored))), "split": scored, "ranking": ["held_out"] * len(scored)}
    pq.write_table(pa.table({**columns, "ndcg@10": [0.5] * len(scored)}), run.scores)
    run.finish({"store_fingerprint": "store-a"})
    own = own_model(config, store, Console(shown, shown))
    assert len(own) == (0 if said else 1)
    assert said in shown.getvalue() and bool(shown.getvalue()) == bool(said)


def scored_on_validation(run: str, label: str, learned: bool | None, folder: Path) -> Scored:
    ndcg = np.random.default_rng(len(run + label)).random(50)
    columns = {"user_index": list(range(50)), "split": ["validation"] * 50, "ranking": ["held_out"] * 50}
    return Scored(run, label, folder / run / label, "store-a", pa.table({**columns, "ndcg@10": ndcg}), None, learned)


@pytest.mark.parametrize(
    ("with_validation", "first", "shown", "said"),
    [
        (False, {"mine": True}, ["baseline-ease", "baseline-untouched"], "mine was trained on validation data"),
        (False, {"mine": False}, ["mine", "baseline-ease", "baseline-untouched"], ""),
        (False, {"mine": None}, ["mine", "baseline-ease", "baseline-untouched"], ""),
        (
            True,
            {"mine": False},
            [],
            "mine was not trained on validation data",
        ),
        (
            True,
            {"other": True, "mine": False},
            ["other", "mine:baseline-ease"],
            "mine was not",
        ),
    ],
)
def test_who_alone_was_trained_on_validation_is_left_out_of_a_table_of_validation_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_validation: bool,
    first: dict[str, bool | None],
    shown: list[str],
    said: str,
) -> None:
    def baseline(folder: str) -> Scored:
        label = Path(folder).name
        return scored_on_validation("mine", label, with_validation if label == "baseline-ease" else None, tmp_path)

    monkeypatch.setattr(baselines, "open_scored", baseline)
    evaluate, train = {"splits": ["validation"]}, {"with_validation": with_validation}
    tree = {"name": "mine", "runs_dir": str(tmp_path), "data": {"source": "shop"}, "evaluate": evaluate, "train": train}
    err = io.StringIO()
    systems = [scored_on_validation(name, "", learned, tmp_path) for name, learned in first.items()]
    record = baselines.compared(validate_config(tree), ["ease", "untouched"], systems, Console(io.StringIO(), err))
    assert ([one["name"] for one in record["systems"]] if record is not None else []) == shown
    lines = [line for line in err.getvalue().splitlines() if "left out of the table" in line]
    untouched = "mine:baseline-untouched was not trained on validation data"
    assert [line.startswith(start) for line, start in zip(lines, [said, untouched], strict=False)] == [True] * len(
        lines
    )
    assert len(lines) == bool(said) + with_validation


def test_baselines_that_mlflow_does_not_have_are_logged_by_a_later_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(baselines, "store_fingerprint", lambda config: "store-a")
    config = validate_config({"name": "mine", "runs_dir": str(tmp_path), "data": {"source": "shop"}})
    which, console = baselines.chosen(config, "popularity,ease"), Console(io.StringIO(), io.StringIO())
    scores = pa.table({"user_index": [0], "split": ["test"], "ranking": ["held_out"], "ndcg@10": [0.5]})
    for name in which:
        record = {"digest": baselines.digest(name, config, "store-a"), "metrics": {}}
        RunFolder(config).keep_evaluation(f"baseline-{name}", scores, record)
    answers, asked = ["no answer", None, None], []

    def tracked(config: Config, label: str, folder: Path, *_: object) -> str | None:
        asked.append(label)
        (folder / "mlflow_run.json").write_text('{"run_id": "1", "whole": true}' if answers[0] is None else "{}")
        return answers.pop(0)

    monkeypatch.setattr(baselines, "track_evaluation", tracked)
    for _ in range(3):
        baselines.ensure(config, which, console)
    assert asked == ["baseline-popularity", "baseline-popularity", "baseline-ease"]
    RunFolder(config).keep_evaluation("baseline-ease", scores, record)
    assert not evaluation_tracked(baselines.folder_of("ease", config)), "what MLflow has is of the scores before"


def test_another_weight_of_a_domain_is_another_head_and_nothing_else() -> None:
    def digest(name: Baseline, **weights: float) -> str:
        domains = {one: {"source": "shop", "weight": weight} for one, weight in weights.items()}
        return baselines.digest(name, validate_config({"name": "a", "data": {"domains": domains}}), "store-a")

    assert digest("frozen_head", films=1, books=1) != digest("frozen_head", films=1, books=4)
    assert digest("frozen_head", films=4, books=1) != digest("frozen_head", films=1, books=4)
    for name in ("ease", "untouched"):
        assert digest(name, films=1, books=1) == digest(name, films=1, books=4)


class _Matrix:
    """As much of a store as says whether a baseline fits into memory: 24 items, all with interactions."""

    def training_interactions(self, with_validation: bool) -> sparse.csr_matrix:
        return sparse.csr_matrix(np.eye(24, dtype=np.float32))


def test_ease_is_left_out_of_too_large_a_catalog_unless_it_was_asked_for_by_name(tmp_path: Path) -> None:
    tree = {"name": "mine", "data": {"source": "shop"}, "baselines": {"ease": {"max_items": 23}}}
    config, shown = validate_config({**tree, "runs_dir": str(tmp_path)}), io.StringIO()
    console = Console(shown, shown)
    assert baselines._without_text(["ease"], config, _Matrix(), console, False) == ["ease"]  # type: ignore[arg-type]
    (line,) = shown.getvalue().splitlines()
    assert line.startswith("ease is left out: baselines.ease.max_items is 23: 24 items have interactions, and EASE")
    with pytest.raises(RunError, match="max_items is 23: 24 items"):
        baselines._without_text(["ease"], config, _Matrix(), console, True)  # type: ignore[arg-type]


def test_a_protocol_that_scores_nothing_is_refused_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"name": "mine", "runs_dir": str(tmp_path), "data": {"source": "shop"}, "evaluate": {"splits": []}}
    monkeypatch.setattr(protocol, "ray_session", lambda *_: pytest.fail("it went on"))
    with pytest.raises(ConfigError, match=r"evaluate\.splits is empty: there is nothing to score"):
        protocol.execute(validate_config(tree), argparse.Namespace(fresh=False), Console(io.StringIO(), io.StringIO()))
