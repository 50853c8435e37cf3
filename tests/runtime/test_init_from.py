"""What `train.init_from` may name, each refusal in one line."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beeray.config import Config, validate_config
from beeray.console import Console
from beeray.data.scored import open_scored
from beeray.errors import BeerayError
from beeray.runtime.lineage import learned_validation
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.warm_start import WarmStart, check_model_prefix, find_warm_start
from beeray.verbs import embed, evaluate

SAVED_PREFIX = {"prompts": {"document": "passage: "}, "default_prompt_name": "document"}


def a_config(folder: Path, name: str = "today", **train: Any) -> Config:
    return validate_config({"name": name, "runs_dir": str(folder), "data": {"source": "shop"}, "train": train})


def finished(folder: Path, name: str = "yesterday") -> Path:
    run = RunFolder(a_config(folder, name))
    run.claim("store")
    run.model.mkdir()
    (run.model / "modules.json").write_text("[]")
    run.items.write_bytes(b"")
    run.finish({})
    return run.path


def test_a_run_its_model_and_any_encoders_folder_may_be_begun_with(tmp_path: Path) -> None:
    run = finished(tmp_path)
    expected = (str(run / "model"), str(run / "items.parquet"))
    for given in (run, run / "model"):
        found = find_warm_start(a_config(tmp_path, init_from=str(given)))
        assert found is not None and (found.model, found.items) == expected
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "modules.json").write_text("[]")
    plain = str(tmp_path / "plain")
    assert find_warm_start(a_config(tmp_path, init_from=plain)) == WarmStart(plain, plain, None)
    assert find_warm_start(a_config(tmp_path)) is None


def test_the_encoder_that_is_begun_with_stands_in_the_encoders_place(tmp_path: Path) -> None:
    config = a_config(tmp_path, init_from=str(finished(tmp_path)))
    found = find_warm_start(config)
    assert found is not None and found.start_of(config).encoder.name == found.model != config.encoder.name
    assert found.start_of(config).encoder.max_seq_length == config.encoder.max_seq_length


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("begun", r"that run is not finished; finish it first, or name another"),
        ("today", r"is this run's own folder"),
        ("nowhere", r"neither a run nor an encoder is there; give the folder of a finished run"),
    ],
)
def test_what_cannot_be_begun_with_is_refused(tmp_path: Path, given: str, expected: str) -> None:
    RunFolder(a_config(tmp_path, "begun")).claim("store")
    with pytest.raises(BeerayError, match=expected) as caught:
        find_warm_start(a_config(tmp_path, init_from=str(tmp_path / given)))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("train.init_from ")


@pytest.mark.parametrize(
    ("saved", "prefix", "fits"),
    [
        ({}, "", True),
        ({}, "passage: ", False),
        ({"prompts": {"document": "passage: "}, "default_prompt_name": "document"}, "passage: ", True),
        ({"prompts": {"document": "passage: "}, "default_prompt_name": "document"}, "", False),
        ({"prompts": {"query": "query: "}, "default_prompt_name": None}, "", True),
    ],
)
def test_a_run_goes_on_with_the_prefix_that_it_was_trained_with(
    tmp_path: Path, saved: dict[str, Any], prefix: str, fits: bool
) -> None:
    run = finished(tmp_path)
    (run / "model" / "config_sentence_transformers.json").write_text(json.dumps(saved))
    config = a_config(tmp_path, init_from=str(run))
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"prefix": prefix})})
    if fits:
        assert find_warm_start(config) is not None
    else:
        with pytest.raises(BeerayError, match=rf"encoder\.prefix is '{prefix}': what .* was trained with '.*'; set"):
            find_warm_start(config)


@pytest.mark.parametrize(("saved", "prefix"), [({}, "passage: "), (SAVED_PREFIX, ""), (SAVED_PREFIX, "query: ")])
def test_a_runs_model_is_scored_and_published_with_its_prefix_alone(
    tmp_path: Path, saved: dict[str, Any], prefix: str
) -> None:
    model = finished(tmp_path) / "model"
    (model / "config_sentence_transformers.json").write_text(json.dumps(saved))
    config = a_config(tmp_path)
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"prefix": prefix})})
    said = rf"encoder\.prefix is '{prefix}': what .* was trained with '.*'; set"
    with pytest.raises(BeerayError, match=said):
        evaluate.execute(config, argparse.Namespace(model=str(model)), Console())
    with pytest.raises(BeerayError, match=said):
        embed.plan_job(config, str(model), Console())
    with pytest.raises(BeerayError, match=said):
        check_model_prefix(config, str(model.parent), "runs/yesterday")
    elsewhere = tmp_path / "model"
    shutil.copytree(model, elsewhere)
    check_model_prefix(config, str(elsewhere), "--model")


def test_an_encoders_folder_that_names_no_prefix_may_begin_with_any(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    config = a_config(tmp_path, init_from=str(tmp_path))
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"prefix": "passage: "})})
    assert find_warm_start(config) is not None


@pytest.mark.parametrize("given", ["today", "today/model", "link", "yesterday/../today", "link/model"])
def test_the_runs_own_folder_is_refused_by_any_name(tmp_path: Path, given: str) -> None:
    finished(tmp_path), finished(tmp_path, "today")
    (tmp_path / "link").symlink_to(tmp_path / "today")
    with pytest.raises(BeerayError, match="is this run's own folder; name another"):
        find_warm_start(a_config(tmp_path, init_from=str(tmp_path / given)))


def test_a_trial_of_a_sweep_of_the_same_name_may_be_begun_with(tmp_path: Path) -> None:
    trial = finished(tmp_path / "today" / "trials", "trial-003")
    config = a_config(tmp_path, init_from=str(trial))
    RunFolder(config).clear()
    found = find_warm_start(config)
    assert found is not None and found.model == str(trial / "model") and (trial / "model").is_dir()
    with pytest.raises(BeerayError, match="is this run's own folder; name another"):
        find_warm_start(a_config(tmp_path / "today" / "trials", "trial-003", init_from=str(trial)))


def test_a_run_whose_beginning_has_changed_since_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(a_config(tmp_path, init_from="runs/yesterday"))
    folder.claim("store", "1234")
    folder.claim("store", "1234")
    with pytest.raises(BeerayError, match=r"was started from encoder 1234, in train\.init_from .* there is now 5678"):
        folder.claim("store", "5678")


def test_old_items_are_only_those_of_the_store_that_the_run_was_claimed_for(tmp_path: Path) -> None:
    folder = RunFolder(a_config(tmp_path))
    folder.claim("store")
    assert folder.old_items_of("store") == ""
    folder.old_items.write_bytes(b"")
    assert folder.old_items_of("store") == str(folder.old_items)
    assert folder.old_items_of("another") == ""


def test_scores_say_by_which_list_old_items_were_told_and_whether_validation_was_trained_on(tmp_path: Path) -> None:
    folder = RunFolder(a_config(tmp_path, with_validation=True))
    folder.claim("store")
    assert folder.meaning("store", None) == {}
    folder.old_items.write_bytes(b"one list")
    one = folder.meaning("store", learned_validation(str(folder.model)))
    folder.old_items.write_bytes(b"another")
    other = folder.meaning("store", False)
    assert (one["trained_on_validation"], other["trained_on_validation"]) == (True, False)
    assert one["old_items_digest"] != other["old_items_digest"]
    assert folder.meaning("another", None) == {} and learned_validation("some/encoder") is None


def test_that_a_run_before_it_learned_from_validation_data_is_not_forgotten(
    tmp_path: Path,
) -> None:
    def begun(name: str, own: bool, before: str | None) -> str:
        train = {"init_from": before} if before else {}
        folder = RunFolder(a_config(tmp_path, name, with_validation=own, **train))
        folder.claim("store", before and "1234", learned_validation(before) if before else None)
        return str(folder.model)

    clean, learned = begun("clean", False, None), begun("learned", True, None)
    after_it = begun("after-it", False, learned)
    expected = {
        clean: False,
        learned: True,
        after_it: True,
        begun("later", False, after_it): True,
        begun("after-clean", False, clean): False,
        begun("after-a-folder", False, str(tmp_path / "plain")): False,
    }
    assert {model: learned_validation(model) for model in expected} == expected
    marker = tmp_path / "after-it" / "run.json"
    kept = json.loads(marker.read_text())
    marker.write_text(json.dumps({key: value for key, value in kept.items() if not key.startswith("init_trained")}))
    assert learned_validation(after_it) is None, "of a version that did not note it"


def test_before_training_has_learned_what_the_run_began_with_had(tmp_path: Path) -> None:
    columns = {"user_index": [0], "split": ["validation"], "ranking": ["held_out"], "ndcg@10": [0.5]}
    for name, learned in (("one", True), ("two", False), ("three", None)):
        folder = RunFolder(a_config(tmp_path, name, init_from="elsewhere"))
        folder.claim("store", "1234", learned)
        pq.write_table(pa.table(columns), folder.path / "scores-before.parquet")
        assert open_scored(f"{name}:before", str(tmp_path)).trained_on_validation is learned


@pytest.mark.parametrize("saved", ["", "{", "[]", "3", '{"prompts": 3, "default_prompt_name": "x"}', "[" * 5000])
def test_a_folder_whose_settings_are_damaged_is_refused(tmp_path: Path, saved: str) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    (folder / "config_sentence_transformers.json").write_text(saved)
    with pytest.raises(BeerayError) as caught:
        find_warm_start(a_config(tmp_path, init_from=str(folder)))
    assert "config_sentence_transformers.json is damaged (" in str(caught.value)
    assert str(caught.value).isprintable()
