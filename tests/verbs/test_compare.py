"""Comparing runs by the command: what is joined, what is refused, what a reader and a program get."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PACKAGE = Path(__file__).resolve().parents[2]
USERS = 60


def a_table(gain: float, *, users: int = USERS, rankings: tuple[str, ...] = ("held_out", "catalog")) -> pa.Table:
    """Two metrics of every user in each ranking; `gain` is added to ndcg@10, with noise of its own."""
    own = np.random.default_rng(int(1000 * gain) % 1009)
    base = np.random.default_rng(1).random(users)
    parts = [
        {
            "user_index": np.arange(users),
            "split": ["test"] * users,
            "ranking": [ranking] * users,
            "recall@5": np.full(users, 0.5),
            "ndcg@10": base + gain + 0.01 * own.normal(size=users),
        }
        for ranking in rankings
    ]
    return pa.concat_tables([pa.table(part) for part in parts])


def write(folder: Path, table: pa.Table, fingerprint: str = "aaaa", **about: Any) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "scores.parquet")
    (folder / "metrics.json").write_text(json.dumps({"store_fingerprint": fingerprint, **about}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run with three evaluations, and runs that do not fit it."""
    first = tmp_path / "runs" / "first"
    write(first, a_table(0.0))
    write(first / "evaluations" / "untouched-32", a_table(-0.2))
    write(first / "evaluations" / "baseline-ease", a_table(0.1))
    write(tmp_path / "runs" / "second", a_table(0.002))
    write(tmp_path / "runs" / "elsewhere", a_table(0.0), fingerprint="bbbb")
    write(tmp_path / "runs" / "fewer", a_table(0.3, users=40, rankings=("held_out",)))
    return tmp_path


def type_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "beeray.compare", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def execute(folder: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """The command in this process, which saves its start."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from beeray.compare import main

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["compare", "--num-bootstrap", "500", *arguments])
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main()
    return code, out.getvalue(), err.getvalue()


def rows_of(record: dict[str, Any], ranking: str, metric: str) -> list[dict[str, Any]]:
    return next(table for table in record["tables"] if table["ranking"] == ranking)["metrics"][metric]


def test_a_run_its_evaluations_and_another_run_are_compared_with_the_first(runs: Path) -> None:
    done = type_command(runs, "runs/first", "first:untouched", "first:baseline-ease", "second", "--out", "t.json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((runs / "t.json").read_text()) == record
    assert record["hypotheses"] == 12  # 3 systems × 2 rankings × 2 metrics
    reference, untouched, ease, second = rows_of(record, "held_out", "ndcg@10")
    assert reference["system"] == "first" and "p" not in reference
    assert untouched["system"] == "first:untouched"
    assert untouched["difference"]["mean"] == pytest.approx(-0.2, abs=0.01)
    assert (untouched["verdict"], ease["verdict"]) == ("worse", "better")
    assert untouched["p_holm"] == pytest.approx(12 * 2 / 10_001)
    assert second["verdict"] == "undecided" and second["p_holm"] > 0.05
    assert untouched["relative"] == pytest.approx(untouched["difference"]["mean"] / reference["mean"])
    equal = rows_of(record, "catalog", "recall@5")[1]
    assert (equal["p"], equal["verdict"]) == (1.0, "undecided")
    assert "test, held_out: 60 users" in done.stdout
    assert "Holm's correction over the 12 hypotheses" in done.stdout
    line = [line for line in done.stdout.splitlines() if line.startswith("    first:untouched")][1]  # of ndcg@10
    assert line.endswith("worse") and "Holm  0.0024" in line and "p ≤0.0002" in line


def test_fewer_questions_are_a_smaller_family(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--metric", "ndcg@10", "--ranking", "held_out", "--out", "out/table.csv")
    code, out, _ = execute(runs, "first", "first:untouched-32", *asked, monkeypatch=monkeypatch)
    assert code == 0
    record = json.loads(out.splitlines()[-1])
    row = rows_of(record, "held_out", "ndcg@10")[1]
    assert record["hypotheses"] == 1 and row["p_holm"] == row["p"] == pytest.approx(2 / 501)
    assert [one["name"] for one in record["systems"]] == ["first", "untouched-32"]  # of one run
    lines = list(csv.DictReader((runs / "out" / "table.csv").open()))
    assert [(line["system"], line["verdict"]) for line in lines] == [("first", ""), ("untouched-32", "worse")]
    assert float(lines[1]["difference"]) == pytest.approx(row["difference"]["mean"])


def test_a_flag_that_is_given_twice_asks_for_both(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--metric", "ndcg@10", "--metric", "recall@5", "--ranking", "held_out")
    code, out, _ = execute(runs, "first", "second", *asked, monkeypatch=monkeypatch)
    assert code == 0 and set(json.loads(out.splitlines()[-1])["tables"][0]["metrics"]) == {"ndcg@10", "recall@5"}


def test_many_questions_take_as_many_resamples_as_can_answer_them(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 12 hypotheses at 0.01: 2 / 501 × 12 = 0.048, so 500 resamples find nothing, however large a difference is
    code, out, _ = execute(
        runs, "first", "first:untouched", "first:baseline-ease", "second", "--alpha", "0.01", monkeypatch=monkeypatch
    )
    assert code == 0
    record = json.loads(out.splitlines()[-1])
    assert (record["hypotheses"], record["num_bootstrap"], record["num_bootstrap_asked"]) == (12, 2400, 500)
    verdicts = [row["verdict"] for row in rows_of(record, "held_out", "ndcg@10")[1:]]
    assert verdicts == ["worse", "better", "undecided"]
    assert "2,400 resamples of users (seed 0), the least that can decide so many hypotheses: 500 could not" in out
    code, out, _ = execute(runs, "first", "first:untouched", monkeypatch=monkeypatch)
    assert code == 0 and "num_bootstrap_asked" not in json.loads(out.splitlines()[-1])


def test_only_what_all_have_is_compared(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = execute(runs, "first", "fewer", monkeypatch=monkeypatch)
    assert code == 0
    tables = json.loads(out.splitlines()[-1])["tables"]
    assert [(table["ranking"], table["users"], table["users_left_out"]) for table in tables] == [("held_out", 40, 20)]
    assert "40 users (20 left out)" in out


def test_domains_are_compared_together_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, gain in (("one", 0.0), ("two", 0.2)):
        table = a_table(gain, rankings=("held_out",))
        domains = pa.array(["books" if user < 20 else "films" for user in range(USERS)])
        write(tmp_path / "runs" / name, table.append_column("domain", domains))
    code, out, _ = execute(tmp_path, "one", "two", "--out", "t.csv", monkeypatch=monkeypatch)
    assert code == 0
    record = json.loads(out.splitlines()[-1])
    everybody, *tables = record["tables"]
    assert [(table["domain"], table["users"]) for table in tables] == [("books", 20), ("films", 40)]
    assert (everybody["domains"], everybody["users"], record["hypotheses"]) == (["books", "films"], 60, 6)
    means = [[row["mean"] for row in table["metrics"]["ndcg@10"]] for table in record["tables"]]
    assert means[0] == pytest.approx([(20 * books + 40 * films) / 60 for books, films in zip(*means[1:], strict=True)])
    assert "test, held_out, all of books, films: 60 users\n" in out and "test, held_out, films: 40 users\n" in out
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [line["domain"] for line in lines[::4]] == ["", "books", "films"]


def test_all_domains_together_are_those_that_all_systems_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, third in (("one", "films"), ("two", "games"), ("three", "games")):
        domains = pa.array([["books", "shoes", third][user % 3] for user in range(USERS)])
        write(tmp_path / "runs" / name, a_table(0.1, rankings=("held_out",)).append_column("domain", domains))
    for others, expected in ((["two"], [60 * 2 // 3, 20, 20]), (["two", "three"], [40, 20, 20])):
        code, out, _ = execute(tmp_path, "one", *others, monkeypatch=monkeypatch)
        tables = json.loads(out.splitlines()[-1])["tables"]
        assert code == 0 and [table["users"] for table in tables] == expected
        assert tables[0]["domains"] == ["books", "shoes"] and "users_left_out" not in tables[0]


def test_what_measures_different_things_is_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rankings = ("held_out", "old_items", "new_items")
    for name, gain, about in (
        ("one", 0.0, {"old_items_digest": "11", "trained_on_validation": True}),
        ("two", 0.2, {"old_items_digest": "22", "trained_on_validation": False}),
        ("alike", 0.2, {"old_items_digest": "11", "trained_on_validation": True}),
        ("older", 0.2, {}),
    ):
        of_test = a_table(gain, rankings=rankings)
        split = pa.array(["validation"] * len(of_test))
        of_validation = of_test.set_column(of_test.column_names.index("split"), "split", split)
        write(tmp_path / "runs" / name, pa.concat_tables([of_test, of_validation]), **about)

    def groups(*arguments: str) -> tuple[set[tuple[str, str]], str]:
        code, out, err = execute(tmp_path, "one", *arguments, monkeypatch=monkeypatch)
        tables = json.loads(out.splitlines()[-1])["tables"] if code == 0 else []
        return {(table["split"], table["ranking"]) for table in tables}, out + err

    everything = {(split, ranking) for split in ("validation", "test") for ranking in rankings}
    found, said = groups("two")
    assert found == {("test", "held_out")}
    assert "validation is not compared: one was trained on validation data and two was not; compare them" in said
    assert "old_items and new_items are not compared: one and two began with runs that knew different items" in said
    found, said = groups("alike")
    assert (
        found == {("test", ranking) for ranking in rankings} and "validation is left out: all were trained on" in said
    )
    assert groups("alike", "--split", "validation")[0] == everything - found
    found, said = groups("older")
    assert found == {("test", ranking) for ranking in rankings} and "and of older that is not known" in said
    found, said = groups("two", "--ranking", "new_items")
    assert not found and "old_items and new_items are not compared" in said
    assert not groups("two", "--split", "validation")[0]


def test_filtered_that_was_cut_at_another_length_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first 20 of the catalog's ranking, or of the first 100, the rest dropped: recall@20 means two things."""
    for name, cut in (("one", 100), ("two", 20), ("alike", 100), ("older", None)):
        filtered = {"kept": 5} | ({} if cut is None else {"cut": cut})
        about = {"metrics": {"test": {"catalog": {}, "filtered": filtered}}}
        write(tmp_path / "runs" / name, a_table(0.1, rankings=("catalog", "filtered")), **about)

    def compared(*arguments: str) -> tuple[list[str], str]:
        code, out, err = execute(tmp_path, *arguments, monkeypatch=monkeypatch)
        tables = json.loads(out.splitlines()[-1])["tables"] if code == 0 else []
        return [table["ranking"] for table in tables], out + err

    found, said = compared("one", "two")
    assert found == ["catalog"]
    assert "filtered is not compared: of two the first 20 of the catalog's ranking were filtered, of one the" in said
    assert compared("one", "alike")[0] == compared("one", "older")[0] == ["catalog", "filtered"]


def test_what_was_trained_on_before_it_was_held_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, about in (
        ("clean", {"held_out_but_trained_on": {"validation": 3, "test": 0}}),
        ("scored", {"held_out_but_trained_on": {"validation": 0, "test": 1500}}),
        ("begun", {"init_from": {"held_out_but_trained_on_before": {"test": 7}}}),
    ):
        write(tmp_path / "runs" / name, a_table(0.1), **about)
    code, out, _ = execute(tmp_path, "clean", "scored", "begun", monkeypatch=monkeypatch)
    assert code == 0 and json.loads(out.splitlines()[-1])["warnings"] == [
        "scored was trained on some of what is held out (1,500 of test), which flatters its figures",
        "begun was trained on some of what is held out (7 of test), which flatters its figures",
    ]
    assert "Warning: begun was trained on some of what is held out (7 of test), which flatters its figures." in out


def test_filtered_of_a_version_that_ranked_the_window_alone_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, gain, filtered in (
        ("one", 0.0, {"kept": 5}),
        ("two", 0.1, {}),
        ("alike", 0.2, {"kept": 5}),
        ("other", 0.3, None),
    ):
        about = {} if filtered is None else {"metrics": {"test": {"catalog": {}, "filtered": filtered}}}
        write(tmp_path / "runs" / name, a_table(gain, rankings=("catalog", "filtered")), **about)

    def compared(*arguments: str) -> tuple[list[str], str]:
        code, out, err = execute(tmp_path, *arguments, monkeypatch=monkeypatch)
        return [
            table["ranking"] for table in json.loads(out.splitlines()[-1])["tables"]
        ] if code == 0 else [], out + err

    found, said = compared("one", "two")
    assert found == ["catalog"] and "filtered is not compared: two was scored by a version that ranked" in said
    assert compared("one", "alike")[0] == compared("two", "other")[0] == ["catalog", "filtered"]
    assert compared("two", "one", "--ranking", "filtered")[0] == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["first", "elsewhere"], "elsewhere was scored on store bbbb, first on store aaaa"),
        (["first", "first"], "first is given twice"),
        (["first"], "'first' alone: give at least two"),
        (["first", "nowhere"], "'nowhere': no such folder, here or in runs"),
        (["first", "first:gone"], "no evaluation of that label 'gone'; there are: baseline-ease, untouched-32"),
        (["first", "first:before"], "run.json is not there"),
        (["first", "second", "--metric", "mrr"], "--metric 'mrr': not measured of all systems; there are: recall@5"),
        (["first", "second", "--out", "t.txt"], "--out 't.txt': its end says what is written"),
        (
            ["first", "second", "--alpha", "1e-5"],
            "4 hypotheses at alpha 1e-05 need 800,000 resamples of users to find anything, and 200,000 are the most",
        ),
        (["first", "second", "--alpha", "1e-9"], "(--split, --ranking, --metric, fewer systems)\n"),
        (["first", "second", "--num-bootstrap", "1" + 11 * "0"], "--num-bootstrap 100,000,000,000: give 10,000,000 at"),
        (["first", "second", "--alpha", "5"], "--alpha 5: must be between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    runs: Path, arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = execute(runs, *arguments, monkeypatch=monkeypatch)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("beeray compare: ") and complaint in err


def test_damaged_scores_are_told(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "runs" / "second" / "scores.parquet").write_bytes(b"no parquet")
    code, _, err = execute(runs, "first", "second", monkeypatch=monkeypatch)
    assert code == 2 and "scores.parquet is damaged" in err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_scores_that_are_no_numbers_are_refused_by_file_and_column(
    runs: Path, value: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, table = runs / "runs" / "second" / "scores.parquet", a_table(0.0)
    column = pa.array([value, *table["ndcg@10"].to_pylist()[1:]], pa.float64())
    pq.write_table(table.set_column(table.column_names.index("ndcg@10"), "ndcg@10", column), path)
    code, out, err = execute(runs, "first", "second", monkeypatch=monkeypatch)
    said = "second/scores.parquet: column 'ndcg@10': 1 of 120 values are no finite numbers; score it again"
    assert (code, out, len(err.splitlines())) == (2, "", 1) and said in err
    pq.write_table(table.append_column("note", table["split"]), path)
    code, _, err = execute(runs, "first", "second", monkeypatch=monkeypatch)
    assert code == 2 and "column 'note' is of type string" in err


def test_a_comparison_imports_neither_torch_nor_ray(runs: Path) -> None:
    program = (
        "import runpy, sys\nsys.argv = ['compare', 'first', 'second', '--num-bootstrap', '100']\n"
        "try:\n    runpy.run_module('beeray.compare', run_name='__main__')\nexcept SystemExit as end:\n"
        "    print('exit', end.code, sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=runs,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1] == "exit 0 []", done.stderr
