"""What an encoder was trained on is no measure of it: a sweep refuses, an evaluation counts and warns."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beeray.config import Config, validate_config
from beeray.console import Console
from beeray.data.growth import write_lists
from beeray.data.parts import write_part
from beeray.data.store import Store, StoreMeta
from beeray.errors import ConfigError
from beeray.runtime.lineage import learned_validation
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.run_start import begin_run
from beeray.runtime.sweep.measurable import check_held_out, check_validation_users
from beeray.runtime.warm_start import find_warm_start
from beeray.verbs import evaluate
from beeray.verbs.evaluate import held_out_but_trained_on


def a_config(folder: Path, name: str, splits: tuple[str, ...] = ("test",), **train: Any) -> Config:
    tree = {"name": name, "runs_dir": str(folder), "data": {"source": "shop"}}
    return validate_config(tree | {"train": train, "evaluate": {"splits": list(splits)}})


def a_store(folder: Path, labels: list[int], kind: str = "item", domain: str = "a", text: str = "text") -> Store:
    (folder / "catalog").mkdir(parents=True)
    ids = [str(number) for number in range(len(labels))]
    table = pa.table(
        {
            "item_id": ids,
            "domain": [domain] * len(ids),
            "split": pa.array(labels, pa.int8()),
            "content_hash": pa.array([f"{text} {one}".encode().ljust(16)[:16] for one in ids], pa.binary(16)),
        }
    )
    write_part(table, str(folder / "catalog" / "part-00000.parquet"))
    users = {"train": 4, "train+validation": 4}
    return Store(str(folder), StoreMeta("0", kind, [domain], len(ids), 4, 0, {}, {}, {}, users))


def a_run(config: Config, store: Store, listed: bool = True) -> str:
    """A finished run on a store, and whether it left lists."""
    run = RunFolder(config)
    run.claim("store")
    run.model.mkdir()
    (run.model / "modules.json").write_text("[]")
    if listed:
        write_lists(store, config.trains_on_validation, str(run.items))
    run.finish({})
    return str(run.path)


def a_later_run(config: Config, store: Store) -> tuple[str, dict[str, Any], str]:
    """A finished run that began with what `train.init_from` names: its folder, what it noted of that, what it said."""
    run, said = RunFolder(config), io.StringIO()
    warm = find_warm_start(config)
    inputs = begin_run(config, run, store, "", Console(said, said), warm=warm, fingerprint="1234")
    run.model.mkdir()
    (run.model / "modules.json").write_text("[]")
    run.finish({})
    assert inputs.init_from is not None
    return str(run.path), inputs.init_from, said.getvalue()


def shown(check: Any, *arguments: Any) -> tuple[Any, str]:
    """What a check returns, and what it says."""
    said = io.StringIO()
    return check(*arguments, Console(said, said)), said.getvalue()


def test_a_sweep_is_not_measured_on_what_its_encoder_was_trained_on(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", [0, 0, 1, 1, 2])
    learned = a_run(a_config(tmp_path, "learned", with_validation=True), store)
    with pytest.raises(ConfigError) as caught:
        check_held_out(find_warm_start(a_config(tmp_path, "s", init_from=learned)), store, Console())
    assert str(caught.value) == (
        f"train.init_from {learned!r}: it was trained on items that are held out now (2 of validation), and a sweep "
        "ranks its trials by them; name a run that held them out (train.with_validation: false, on this store), or "
        "leave train.init_from out"
    )
    clean = a_run(a_config(tmp_path, "clean"), store)
    assert shown(check_held_out, find_warm_start(a_config(tmp_path, "s", init_from=clean)), store) == (None, "")
    grown = a_store(tmp_path / "grown", [1, 0, 0, 2, 0, 0])  # clean was trained on the first
    with pytest.raises(ConfigError, match=r"trained on items that are held out now \(1 of validation\)"):
        check_held_out(find_warm_start(a_config(tmp_path, "s", init_from=clean)), grown, Console())
    assert shown(check_held_out, None, store) == (None, "")


def test_a_sweep_says_where_nothing_tells_what_its_encoder_was_trained_on(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", [0, 1, 2])
    unlisted = a_run(a_config(tmp_path, "unlisted"), store, listed=False)
    _, said = shown(check_held_out, find_warm_start(a_config(tmp_path, "s", init_from=unlisted)), store)
    assert "left no note of the items that it was trained on" in said


def test_an_evaluation_of_a_run_on_another_split_counts_what_it_was_trained_on(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", [0, 0, 1, 2, 2])
    other = a_store(tmp_path / "other", [2, 2, 0, 1, 0])
    model = a_run(a_config(tmp_path, "theirs"), store) + "/model"
    config = a_config(tmp_path, "mine")
    counts, said = shown(held_out_but_trained_on, config, model, other)
    assert counts == {"held_out_but_trained_on": {"test": 2}}
    assert said == ("warning: it was trained on items that are held out now (2 of test), which flatters its figures\n")
    assert shown(held_out_but_trained_on, config, model, store) == ({"held_out_but_trained_on": {"test": 0}}, "")
    both = a_config(tmp_path, "mine", ("validation", "test"))
    assert shown(held_out_but_trained_on, both, model, other)[0]["held_out_but_trained_on"] == {
        "validation": 0,
        "test": 2,
    }
    of_users = a_store(tmp_path / "users", [0, 0, 0, 0, 0], "user")
    counts, said = shown(held_out_but_trained_on, config, model, of_users)
    assert counts == {} and "left no note of the users that it was trained on" in said
    assert shown(held_out_but_trained_on, config, "some/encoder", other) == ({}, "")


def test_an_encoder_that_learned_from_another_stores_validation_data_has_not_learned_from_this_ones(
    tmp_path: Path,
) -> None:
    store = a_store(tmp_path / "store", [0, 1, 2, 2])
    model = a_run(a_config(tmp_path, "theirs", with_validation=True), store) + "/model"
    both = a_config(tmp_path, "mine", ("validation", "test"))

    def learned(labels: list[int], kind: str = "item") -> bool | None:
        other = a_store(tmp_path / f"{kind}-{labels}", labels, kind)
        counts, _ = shown(held_out_but_trained_on, both, model, other)
        return evaluate._learned_validation(model, counts)

    assert learned([0, 0, 1, 2]) is False  # it was trained on the first two items
    assert learned([0, 1, 1, 2]) is True
    assert learned([0, 1, 2, 2]) is True
    assert learned([0, 0, 1, 2], "user") is True, "what of its users it was trained on is not known"
    assert evaluate._learned_validation("some/encoder", {}) is None


def test_a_run_that_began_with_a_copied_model_does_not_know_what_was_trained_on_and_nor_do_those_after_it(
    tmp_path: Path,
) -> None:
    """The copied model was trained on items that the later runs hold out: nothing may call them clean."""
    first = a_store(tmp_path / "first", [0, 0, 1, 2])
    store = a_store(tmp_path / "store", [1, 2, 0, 0])
    origin = a_run(a_config(tmp_path, "origin"), first)
    shutil.copytree(f"{origin}/model", tmp_path / "copied")
    after, noted, said = a_later_run(a_config(tmp_path, "after", init_from=str(tmp_path / "copied")), store)
    assert noted.keys() == {"folder", "fingerprint"} and "is not known, and may be held out now" in said
    later, noted, said = a_later_run(a_config(tmp_path, "later", init_from=after), store)
    assert (noted["old_items"], noted["new_items"]) == (4, 0), "old items are told from new all the same"
    assert "held_out_but_trained_on_before" not in noted
    assert "it left no note of the items that it was trained on, so they may be held out now" in said
    both = a_config(tmp_path, "mine", ("validation", "test"))
    for run in (after, later):
        model = f"{run}/model"
        counts, said = shown(held_out_but_trained_on, both, model, store)
        assert counts == {} and "left no note of the items that it was trained on" in said
        assert evaluate._learned_validation(model, counts) is None and learned_validation(model) is None
        assert "trained_on_validation" not in RunFolder(both).meaning("0", learned_validation(model))
        assert json.loads(Path(run, "run.json").read_text())["init_trained_on_validation"] is None
        _, said = shown(check_held_out, find_warm_start(a_config(tmp_path, "s", init_from=run)), store)
        assert "left no note of the items that it was trained on" in said
    own = a_config(tmp_path, "own", init_from=later, with_validation=True)
    assert learned_validation(a_later_run(own, store)[0]) is True, "of itself a run knows"


def test_lists_of_earlier_versions_count_as_whole(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", [0, 0, 1, 2])
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "modules.json").write_text("[]")
    run, _, _ = a_later_run(a_config(tmp_path, "after", init_from=str(tmp_path / "copied")), store)
    write_lists(store, False, f"{run}/items.parquet")  # as they wrote it
    assert learned_validation(run) is False
    counts, _ = shown(held_out_but_trained_on, a_config(tmp_path, "mine"), run, store)
    assert counts == {"held_out_but_trained_on": {"test": 0}}


@pytest.mark.parametrize(("fingerprint", "kept_as"), [(None, "original"), ("1234", "")])
@pytest.mark.parametrize("told", [True, False])
def test_the_untouched_encoder_is_not_kept_as_the_one_that_a_run_began_with_elsewhere(
    tmp_path: Path, fingerprint: str | None, kept_as: str, told: bool
) -> None:
    """Also where the evaluation is not given what the run was."""
    begun = a_config(tmp_path, "mine", **({"init_from": "runs/yesterday"} if fingerprint else {}))
    config = begun if told else a_config(tmp_path, "mine")
    RunFolder(begun).claim("store", fingerprint)
    assert evaluate._kept_as(config, "untouched") == kept_as
    assert evaluate._kept_as(config, "model") == "trained"
    assert evaluate._kept_as(config, "baseline-ease") == ""


def test_before_a_run_the_config_says_what_it_begins_with(tmp_path: Path) -> None:
    assert evaluate._kept_as(a_config(tmp_path, "mine"), "untouched") == "original"
    assert evaluate._kept_as(a_config(tmp_path, "mine", init_from="runs/yesterday"), "untouched") == ""


def test_a_domain_of_another_name_hides_nothing_that_was_trained_on(tmp_path: Path) -> None:
    """`goodlens` calls `books` what is `goodbooks` alone."""
    theirs = a_config(tmp_path, "theirs", with_validation=True)
    run = a_run(theirs, a_store(tmp_path / "books", [0, 0, 1, 2], domain="books"))
    goodbooks = a_store(tmp_path / "goodbooks", [0, 0, 1, 2], domain="goodbooks")
    with pytest.raises(ConfigError, match=r"trained on items that are held out now \(1 of validation\)"):
        check_held_out(find_warm_start(a_config(tmp_path, "s", init_from=run)), goodbooks, Console())
    both = a_config(tmp_path, "mine", ("validation", "test"))
    counts, said = shown(held_out_but_trained_on, both, f"{run}/model", goodbooks)
    assert counts == {
        "held_out_but_trained_on": {"validation": 1, "test": 0},
        "domains_it_did_not_name": ["goodbooks"],
    }
    assert said.splitlines()[0] == (
        f"{run}: it was trained on books; of items of goodbooks it is known by id and text alone whether they were "
        "among them under another name"
    )
    assert evaluate._learned_validation(f"{run}/model", counts) is True
    films = a_store(tmp_path / "films", [0, 0, 1, 2], domain="films", text="film")
    counts, _ = shown(held_out_but_trained_on, both, f"{run}/model", films)
    assert counts["held_out_but_trained_on"] == {"validation": 0, "test": 0}
    assert evaluate._learned_validation(f"{run}/model", counts) is None, "they may have had another text"
    users = a_store(tmp_path / "users", [0, 0, 1, 2], "user", domain="films")
    counts, said = shown(held_out_but_trained_on, both, f"{run}/model", users)
    assert evaluate._learned_validation(f"{run}/model", counts) is None
    assert (
        counts == {"domains_it_did_not_name": ["films"]}
        and said.count("\n") == 1
        and "of users of films it is not known" in said
    )
    assert shown(check_held_out, find_warm_start(a_config(tmp_path, "s", init_from=run)), users)[1].count("\n") == 1


def test_a_sweep_of_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a `time` split where no user comes back, every trial would score 0."""
    store = a_store(tmp_path / "store", [0, 0], "time")
    (tmp_path / "store" / "users").mkdir()

    def with_users(splits: list[list[int]]) -> None:
        rows = {
            "user_index": pa.array(range(len(splits)), pa.int32()),
            "split": pa.array([0] * len(splits), pa.int8()),
            "item_indices": pa.array([[0, 1]] * len(splits), pa.list_(pa.int32())),
            "splits": pa.array(splits, pa.list_(pa.int8())),
        }
        write_part(pa.table(rows), str(tmp_path / "store" / "users" / "part-00000.parquet"))

    monkeypatch.setattr(Store, "check_unchanged", lambda self: None)
    config = a_config(tmp_path, "s")
    with_users([[0, 0], [1, 1], [2, 2]])
    with pytest.raises(ConfigError, match=r"^tune: no user of store .* has a history and a target in validation, so"):
        check_validation_users(config, store)
    with_users([[0, 0], [0, 1]])
    check_validation_users(config, store)
