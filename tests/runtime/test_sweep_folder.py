"""What a sweep leaves and finds again: trials, the table, best.yaml; what is refused under the same name."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from beeray.config import Config, at_point, load_config, validate_config
from beeray.data.preparation import store_fingerprint
from beeray.errors import RunError
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.sweep.best import write_best
from beeray.runtime.sweep.demand import largest_demand, token_variants
from beeray.runtime.sweep.folder import COMPLETE, FAILED, RUNNING, STOPPED, SweepFolder, Trial, best_of, ranked
from beeray.runtime.sweep.table import table_lines, write_table
from beeray.runtime.sweep.trial import reason_of, trial_config

SPACE = {"train.lr": {"loguniform": [1e-5, 1e-2]}, "train.max_output": {"choice": [50, 100]}}


def a_config(folder: Path, space: dict[str, Any] | None = None, tune: dict[str, Any] | None = None) -> Config:
    tree = {"name": "s", "runs_dir": str(folder), "data": {"source": "shop"}, "evaluate": {"splits": ["test"]}}
    return validate_config(tree | {"tune": {"space": space or SPACE, "num_trials": 4} | (tune or {})})


def some_trials() -> list[Trial]:
    values = {"train.lr": 1e-3, "train.max_output": 50}
    return [
        Trial(0, values, COMPLETE, {1: 0.2, 2: 0.3}, 0.3, wall_s=12.34),
        Trial(1, values, STOPPED, {1: 0.9}, 0.9),
        Trial(2, values | {"train.lr": 0.0123456}, COMPLETE, {1: 0.1, 2: 0.5}, 0.5, mlflow_run_id="abc"),
        Trial(3, values, FAILED, reason="the loss became nan"),
    ]


def test_trials_are_read_as_they_were_written_and_torn_ones_are_not_there(tmp_path: Path) -> None:
    folder = SweepFolder(a_config(tmp_path))
    for trial in reversed(some_trials()):
        folder.save(trial)
    (folder.trials / "trial-004").mkdir()
    (folder.trials / "trial-004" / "trial.json.partial").write_text("{")
    assert folder.load() == some_trials()


def test_a_trial_that_was_running_is_read_with_the_epochs_that_it_has_done(tmp_path: Path) -> None:
    folder = SweepFolder(a_config(tmp_path))
    folder.save(Trial(0, {}, RUNNING))
    for epoch in (1, 2, 2):  # the second was done again after a kill
        folder.run(Trial(0, {})).log_validation({"epoch": epoch, "step": 5 * epoch, "validation/ndcg@100": 0.1})
    assert folder.load()[0].epochs == {1: 0.1, 2: 0.1}


def test_a_sweep_is_finished_when_it_says_so_and_no_more_is_wanted(tmp_path: Path) -> None:
    folder = SweepFolder(a_config(tmp_path))
    for trial in some_trials():
        folder.save(trial)
    assert folder.finished() is None, "killed before its last trial was tracked"
    folder.finish("abc")
    assert folder.finished() == {"mlflow_run_id": "abc"}
    assert SweepFolder(a_config(tmp_path, tune={"num_trials": 5})).finished() is None
    folder.save(Trial(3, {}, RUNNING))
    assert folder.finished() is None


def test_the_best_is_the_best_of_those_that_ran_to_their_end(tmp_path: Path) -> None:
    trials = some_trials()
    assert best_of(trials, "max") is trials[2]
    assert best_of(trials, "min") is trials[0]
    assert best_of(trials[3:], "max") is None
    assert [trial.number for trial in ranked(trials, "max")] == [2, 0, 1, 3]
    diverged = Trial(4, {}, COMPLETE, {1: float("nan")}, float("nan"))
    assert best_of([diverged, trials[0]], "max") is trials[0]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"space": {"train.lr": {"loguniform": [1e-5, 1e-3]}}}, "tune.space.train.lr"),
        ({"tune": {"seed": 9}}, "tune.seed: None → 9"),
        ({"tune": {"asha": None}}, "tune.asha"),
        ({"tune": {"metric": "validation/recall@20"}}, "tune.metric: None → 'validation/recall@20'"),
    ],
)
def test_another_search_under_the_same_name_is_refused_with_the_keys(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    SweepFolder(a_config(tmp_path)).claim()
    SweepFolder(a_config(tmp_path)).check_config()
    with pytest.raises(RunError, match="was started with another config") as caught:
        SweepFolder(a_config(tmp_path, **change)).check_config()
    assert key in str(caught.value) and "--fresh" in str(caught.value)


def test_another_training_config_is_refused_and_more_trials_are_not(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    SweepFolder(config).claim()
    slower = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 9})})
    with pytest.raises(RunError, match=r"train\.epochs: 5 → 9"):
        SweepFolder(slower).check_config()
    changed = {"num_trials": 40, "max_concurrent": 1, "keep_models": "all"}
    SweepFolder(a_config(tmp_path, tune=changed)).check_config()


def test_other_domains_to_score_within_are_refused(tmp_path: Path) -> None:
    SweepFolder(a_config(tmp_path)).claim()
    config = a_config(tmp_path)
    other = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"domains": ("films",)})})
    assert other.evaluate != config.evaluate
    with pytest.raises(RunError, match=r"evaluate\.domains"):
        SweepFolder(other).check_config()


@pytest.mark.parametrize(
    ("store", "encoder", "said"),
    [
        ("store-b", "model-a", "trial-000: store store-a → store-b"),
        ("store-a", "model-b", "trial-000: encoder of train.init_from model-a → model-b"),
        ("store-a", None, "encoder of train.init_from model-a → None"),
    ],
)
def test_trials_of_other_data_are_not_gone_on_with(tmp_path: Path, store: str, encoder: str | None, said: str) -> None:
    folder = SweepFolder(a_config(tmp_path))
    for number in range(2):
        folder.save(Trial(number, {}, COMPLETE if number else FAILED))
    folder.run(Trial(0, {})).claim("store-a", "model-a")  # the other is one that never started
    folder.check_data("store-a", "model-a")
    with pytest.raises(RunError, match="was begun on other data") as caught:
        folder.check_data(store, encoder)
    assert said in str(caught.value) and str(caught.value).endswith("start over with --fresh")


def test_a_run_and_a_sweep_of_one_name_leave_each_other_alone(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    sweep, run = SweepFolder(config), RunFolder(config)
    sweep.claim()
    run.claim("fingerprint")
    sweep.table.write_text("")
    (run.path / "model").mkdir()
    run.clear()
    assert {path.name for path in run.path.iterdir()} == {"trials", "trials.csv"}
    run.claim("fingerprint")
    sweep.clear()
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "run.json"}


@pytest.mark.parametrize(("keep", "kept"), [("best", [2, 4]), ("all", [0, 2, 4]), ("none", [4])])
def test_checkpoints_of_trials_that_did_not_fail_go_and_models_as_asked(
    tmp_path: Path, keep: str, kept: list[int]
) -> None:
    folder = SweepFolder(a_config(tmp_path, tune={"keep_models": keep}))
    trials = [*some_trials(), Trial(4, {}, RUNNING)]
    for number in (0, 2, 4):
        (folder.run_dir(trials[number]) / "model").mkdir(parents=True)
    diverged = Trial(5, {}, FAILED, reason="the loss became nan")
    trials.append(diverged)
    for trial in trials:
        (folder.run_dir(trial) / "checkpoints").mkdir(parents=True)
    folder.run(diverged).keep_not_finite({"step": 3})
    folder.tidy(trials, best_of(trials, "max"))
    assert [trial.number for trial in trials if (folder.run_dir(trial) / "model").is_dir()] == kept
    assert [trial.number for trial in trials if (folder.run_dir(trial) / "checkpoints").is_dir()] == [3, 4]


def test_failed_trials_alone_are_retried_and_judged_by_their_last_attempt(tmp_path: Path) -> None:
    folder = SweepFolder(a_config(tmp_path))
    for trial in some_trials():
        folder.save(trial)
    folder.run(Trial(3, {})).keep_not_finite({"step": 3})
    folder.retry_failed()
    assert [trial.status for trial in folder.load()] == [COMPLETE, STOPPED, COMPLETE, RUNNING]
    assert folder.load()[3].reason is None and not (folder.run_dir(Trial(3, {})) / "not_finite.json").exists()


def test_the_reason_of_a_failed_trial_names_what_goes_on_with_it(tmp_path: Path) -> None:
    from beeray.runtime.launch import _what_failed

    reason = reason_of(RunError(_what_failed(RuntimeError("out of memory"), a_config(tmp_path).cluster)))
    assert reason.endswith("(out of memory); give --retry-failed to go on from the last checkpoint")


def test_the_table_has_the_best_first_and_whole_figures(tmp_path: Path) -> None:
    keys = ["train.lr", "train.max_output"]
    write_table(tmp_path / "trials.csv", some_trials(), keys, "validation/ndcg@10", "max")
    with open(tmp_path / "trials.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["trial-002", "trial-000", "trial-001", "trial-003"]
    assert rows[0]["train.lr"] == "0.0123456" and rows[0]["validation/ndcg@10"] == "0.5"
    assert (rows[0]["mlflow_run_id"], rows[1]["wall_s"], rows[3]["reason"]) == ("abc", "12.3", "the loss became nan")
    lines = table_lines(some_trials(), keys, "validation/ndcg@10", "max")
    assert lines[0].split() == ["trial", "status", "validation/ndcg@10", "epochs", *keys]
    assert lines[1].split() == ["trial-002", "complete", "0.5000", "2", "0.012346", "50"]
    many = [Trial(number, {}, COMPLETE, {1: 0.1}, 0.1) for number in range(25)]
    assert table_lines(many, [], "m", "max")[-1] == "and 5 more in trials.csv"


def test_the_best_config_loads_with_the_trials_values_and_scores_validation(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    folder, best = SweepFolder(config), some_trials()[2]
    folder.save(best)
    (folder.run_dir(best) / "config.yaml").write_text(yaml.safe_dump({"cluster": {"threads_per_worker": 3}}))
    write_best(folder, config, best, "validation/ndcg@10")
    loaded = load_config(str(folder.best))
    assert (loaded.name, loaded.train.lr, loaded.train.max_output) == ("s-best", 0.0123456, 50)
    assert loaded.store_path == config.store_path
    assert loaded.evaluate.splits == ("validation", "test")
    assert loaded.cluster.threads_per_worker == 3
    assert loaded.tune.space == {}
    differing = {key for key, value in loaded.result_keys().items() if config.result_keys()[key] != value}
    assert differing == {"train.lr", "train.max_output"}
    assert "validation/ndcg@10 0.5" in folder.best.read_text().splitlines()[0]


def test_a_trial_is_an_ordinary_run_below_the_sweep_that_scores_validation_alone(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    trial = trial_config(SweepFolder(config), 2, Trial(7, {}), config)
    assert trial.run_dir == tmp_path / "s" / "trials" / "trial-007"
    assert trial.store_path == config.store_path
    assert trial.evaluate.splits == ("validation",)
    assert trial.cluster.threads_per_worker == 2
    assert Config.model_validate_json(trial.model_dump_json()) == trial


def test_one_token_store_serves_all_lengths_and_each_prefix_has_its_own(tmp_path: Path) -> None:
    space = {
        "encoder.max_seq_length": {"integer": [16, 64]},
        "evaluate.max_seq_length": {"choice": [None, 128]},
        "encoder.prefix": {"choice": ["", "passage: "]},
        "cluster.num_workers": {"choice": [1, 4]},
    }
    config = a_config(tmp_path, space)
    variants = token_variants(config)
    assert list(variants) == [(config.encoder.name, ""), (config.encoder.name, "passage: ")]
    assert {variant.longest_seq_length for variant in variants.values()} == {128}
    assert largest_demand(config).cluster.num_workers == 4
    assert list(token_variants(a_config(tmp_path)).values()) == [a_config(tmp_path)]


def test_the_best_weight_of_a_domain_is_in_the_config_that_is_left(tmp_path: Path) -> None:
    key = "data.domains.books.weight"
    tree = {"name": "s", "runs_dir": str(tmp_path), "data": {"domains": {"books": {"source": "shop"}}}}
    config = validate_config(tree | {"tune": {"space": {key: {"choice": [1, 4]}}}})
    folder, trial = SweepFolder(config), Trial(0, {key: 4.0}, COMPLETE, {1: 0.5}, 0.5)
    ran = trial_config(folder, None, trial, at_point(config, trial.values))
    assert (ran.data.weight_of("books"), ran.data.store) == (4.0, config.store_path)
    RunFolder(ran).claim("store-a")
    write_best(folder, config, trial, "validation/ndcg@10")
    best = load_config(str(folder.best))
    assert (best.data.weight_of("books"), best.data.store) == (4.0, config.store_path)
    assert store_fingerprint(best) == store_fingerprint(config)


@pytest.mark.parametrize("relative", [False, True])
def test_a_sweep_that_begins_with_one_of_its_own_trials_is_not_started_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    folder = SweepFolder(a_config(tmp_path))
    folder.save(Trial(2, {}, COMPLETE, {1: 0.2}, 0.2))
    own = str(folder.trials / "trial-002")
    if relative:  # to the shared disk
        monkeypatch.setenv("BEERAY_ROOT", str(tmp_path))
        own = str(Path(own).relative_to(tmp_path))
    with pytest.raises(RunError, match=r"trial-002: --fresh would remove it .* another name=…"):
        folder.check_spared(own)
    assert (folder.trials / "trial-002").is_dir()
    folder.check_spared(str(tmp_path / "another-run"))
    folder.check_spared(None)


def test_trials_are_cleared_in_one_go_and_what_a_kill_left_of_that_is_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they removed one by one, those that a kill left would be ranked with another sweep's."""
    folder = SweepFolder(a_config(tmp_path))
    folder.claim()
    folder.save(Trial(2, {}, COMPLETE, {1: 0.2}, 0.2))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *given, **settings: None)  # killed there
        folder.clear()
    assert folder.load() == [] and not folder.trials.exists()
    (left,) = folder.path.iterdir()
    assert left.name.startswith(".cleared-trials-")
    folder.claim()
    folder.clear()
    assert list(folder.path.iterdir()) == []


def test_trials_of_which_nothing_tells_what_they_searched_are_not_gone_on_with(tmp_path: Path) -> None:
    folder = SweepFolder(a_config(tmp_path))
    folder.check_config()
    folder.save(Trial(2, {}, COMPLETE, {1: 0.2}, 0.2))
    with pytest.raises(RunError, match=r"has trials, but no sweep\.yaml that tells what they searched; bring it back"):
        folder.check_config()
