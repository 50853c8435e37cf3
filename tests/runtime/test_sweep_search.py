"""Which trials there are: the same of the same seed, killed or not; and what is told to Optuna and to ASHA again."""

from __future__ import annotations

import argparse
import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from tiny_encoder import build_tiny_encoder

from beeray.config import Config, Dimension, num_points, search_space, validate_config
from beeray.console import Console
from beeray.core.encoder import load_encoder, save_encoder
from beeray.core.head import append_head
from beeray.errors import ConfigError, RunError
from beeray.runtime.sweep.folder import COMPLETE, FAILED, INVALID, RUNNING, STOPPED, SweepFolder, Trial
from beeray.runtime.sweep.page import sweep_page
from beeray.runtime.sweep.quasi_random import quasi_random_point, value_at
from beeray.runtime.sweep.search import EPOCH, OBJECTIVE, Sweep, SweepSearch, distribution, point_of
from beeray.runtime.sweep.stopping import stopping
from beeray.verbs import tune
from beeray.verbs.tune import fitting_config

SPACE = {"train.lr": {"loguniform": [1e-5, 1e-2]}, "train.max_output": {"choice": [50, 100, 200]}}


def a_config(folder: Path, space: dict[str, Any] | None = None, **tune: Any) -> Config:
    tune = {"space": space or SPACE, "num_trials": 12, "random_trials": 3} | tune
    train = {"lr": 0.5, "batch_size": 32, "max_output": 100, "epochs": 8}
    return validate_config(
        {"name": "s", "runs_dir": str(folder), "data": {"source": "shop"}, "train": train, "tune": tune}
    )


def a_sweep(config: Config) -> Sweep:
    return Sweep(config, SweepFolder(config), lambda trial, at_point: at_point)


def quality(trial: Trial) -> float:
    """A hill with its top at lr 1e-3 and the middle choice."""
    lr, items = trial.values["train.lr"], trial.values["train.max_output"]
    return float(1 / (1 + abs(lr - 1e-3) * 1e3) + (items == 100))


def run(sweep: Sweep, num_trials: int) -> list[dict[str, Any]]:
    """Go on with a sweep, one trial at a time; every third is stopped after its first epoch."""
    for _ in range(num_trials):
        following = sweep.next()
        if following is None:
            break
        trial, _ = following
        trial.heard(1, quality(trial))
        trial.status = STOPPED if trial.number % 3 == 2 else COMPLETE
        sweep.ended(trial)
    return [trial.values for trial in sweep.trials]


def test_the_same_seed_gives_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    folders = {"one": 1, "same": 1, "other": 2}
    one, same, other = (run(a_sweep(a_config(tmp_path / name, seed=seed)), 12) for name, seed in folders.items())
    assert len(one) == 12 and one == same
    assert one != other


def test_a_sweep_that_was_killed_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole = run(a_sweep(a_config(tmp_path / "whole")), 12)
    config = a_config(tmp_path / "killed")
    run(a_sweep(config), 7)
    assert a_sweep(config).num_left == 5
    assert run(a_sweep(config), 12) == whole
    assert a_sweep(config).next() is None


def test_a_trial_whose_folder_was_removed_is_drawn_again_under_its_own_number(tmp_path: Path) -> None:
    config = a_config(tmp_path, num_trials=6, random_trials=6)
    whole = run(a_sweep(config), 6)
    shutil.rmtree(tmp_path / "s" / "trials" / "trial-002")
    assert [trial.number for trial in a_sweep(config).trials] == [0, 1, 3, 4, 5]
    assert run(a_sweep(config), 1) == whole
    assert [trial.number for trial in a_sweep(config).trials] == list(range(6))


def test_trials_differ_and_gather_where_it_is_better(tmp_path: Path) -> None:
    trials = run(a_sweep(a_config(tmp_path, num_trials=40)), 40)
    assert len({trial["train.lr"] for trial in trials}) == 40
    late = [trial["train.max_output"] for trial in trials[20:]]
    assert late.count(100) > 10


def test_a_trial_that_was_running_is_the_first_to_go_on_with_its_values(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    killed = a_sweep(config)
    run(killed, 4)
    begun = killed.next()
    assert begun is not None and begun[0].number == 4
    begun[0].heard(1, 0.5)  # not in the folder: the driver writes a trial when it starts and when it ends

    resumed = a_sweep(config)
    assert [trial.status for trial in resumed.trials] == [COMPLETE, COMPLETE, STOPPED, COMPLETE, RUNNING]
    again = resumed.next()
    assert again is not None
    assert (again[0].number, again[0].values, again[0].epochs) == (4, begun[0].values, {})
    following = resumed.next()
    assert following is not None and following[0].number == 5


def note(folder: SweepFolder, number: int, **changes: Any) -> None:
    """Change what is noted of a trial."""
    file = folder.trials / f"trial-{number:03d}" / "trial.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def run_of_choices(config: Config, num_trials: int) -> list[dict[str, Any]]:
    """Values of the first trials of a sweep, each ended."""
    sweep = a_sweep(config)
    for _ in range(num_trials):
        following = sweep.next()
        assert following is not None
        following[0].heard(1, 0.1 * following[0].number)
        following[0].status = COMPLETE
        sweep.ended(following[0])
    return [dict(trial.values) for trial in sweep.trials]


def test_values_that_an_earlier_version_noted_as_text_are_gone_on_with(tmp_path: Path) -> None:
    space = {"train.lr": {"choice": ["1e-5", "1e-3"]}, "train.head": {"choice": [None, {"units": "8"}]}}
    config = a_config(tmp_path, space, num_trials=4)
    folder = SweepFolder(config)
    as_text = {1e-5: "1e-5", 1e-3: "1e-3", None: None}
    for number, values in enumerate(run_of_choices(config, 3)):
        head = values["train.head"] and {"units": "8"}
        note(folder, number, values={"train.lr": as_text[values["train.lr"]], "train.head": head})
    note(folder, 2, status=RUNNING)

    resumed = a_sweep(config)
    folder.check_trials()
    assert [trial.status for trial in resumed.trials] == [COMPLETE, COMPLETE, RUNNING]
    again, fourth = resumed.next(), resumed.next()
    assert again is not None and fourth is not None and again[0].number == 2
    assert again[1].train.lr == again[0].values["train.lr"] in (1e-5, 1e-3)
    points = [json.dumps(trial.values) for trial in resumed.trials]
    assert len(set(points)) == 4, "points that were tried are known"
    assert "trial-001" in sweep_page("s", folder.load(), resumed.space, "m", "max")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train.lr": 1e-3, "train.max_output": 70}, r"has train\.max_output 70, where tune\.space has \{'choice'"),
        ({"train.lr": 0.5, "train.max_output": 50}, r"has train\.lr 0\.5, where tune\.space has \{'loguniform'"),
        ({"train.lr": 1e-3}, r"has no train\.max_output, where tune\.space has \{'choice'"),
        ({"train.lr": 1e-3, "train.max_output": 50, "seed": 3}, r"has seed 3, where tune\.space has nothing"),
    ],
)
def test_a_trial_outside_the_space_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], said: str
) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(tune, "ray_session", started)
    config = a_config(tmp_path)
    SweepFolder(tune.measurable(config, Console())).claim()
    run(a_sweep(config), 3)
    note(SweepFolder(config), 1, values=values)
    with pytest.raises(RunError, match=f"trial-001 {said}") as caught:
        tune.execute(config, argparse.Namespace(fresh=False, retry_failed=False), Console())
    assert "\n" not in str(caught.value) and str(caught.value).endswith("start over with --fresh")


def test_the_configs_own_values_come_first_where_they_are_in_the_space(tmp_path: Path) -> None:
    inside = a_config(tmp_path / "inside", SPACE | {"train.lr": {"loguniform": [1e-2, 0.5]}})
    assert run(a_sweep(inside), 1) == [{"train.lr": 0.5, "train.max_output": 100}]
    assert run(a_sweep(a_config(tmp_path / "outside")), 1)[0]["train.lr"] <= 1e-2


def test_a_point_that_is_no_valid_config_is_noted_counts_and_the_next_is_drawn(tmp_path: Path) -> None:
    space = {"train.batch_size": {"integer": [4, 60]}, "cluster.num_workers": {"choice": [1, 4]}}
    sweep = a_sweep(a_config(tmp_path, space))
    started = []
    while (following := sweep.next()) is not None:
        trial, config = following
        assert config.train.batch_size % config.cluster.num_workers == 0
        trial.heard(1, 0.5)
        trial.status = COMPLETE
        sweep.ended(trial)
        started.append(trial.number)
    invalid = [trial for trial in SweepFolder(sweep.config).load() if trial.status == INVALID]
    assert invalid and started
    assert sorted([*started, *(trial.number for trial in invalid)]) == list(range(12))
    assert "must be a multiple of cluster.num_workers" in str(invalid[0].reason)


def an_encoder_with_a_head(folder: Path) -> Path:
    """Its folder; the head has 6 units."""
    model = load_encoder(str(build_tiny_encoder(folder / "encoder")), max_seq_length=32)
    append_head(model, 6)
    save_encoder(model, folder / "headed")
    return folder / "headed"


def test_a_point_that_does_not_fit_the_encoder_that_it_begins_with_is_not_started(tmp_path: Path) -> None:
    headed = an_encoder_with_a_head(tmp_path)
    space = {"train.head.units": {"choice": [6, 256]}, "train.freeze_layers": {"choice": [1, 3]}}
    config = a_config(tmp_path, space, num_trials=4)
    train = config.train.model_copy(update={"init_from": str(headed)})
    encoder = config.encoder.model_copy(update={"max_seq_length": 32})
    config = config.model_copy(update={"train": train, "encoder": encoder})
    sweep = Sweep(config, SweepFolder(config), functools.partial(fitting_config, SweepFolder(config), None))
    following = sweep.next()
    while following is not None:
        following[0].status = COMPLETE
        following[0].heard(1, 0.5)
        sweep.ended(following[0])
        following = sweep.next()
    ended = {tuple(trial.values.values()): (trial.status, trial.reason) for trial in sweep.trials}
    assert ended.pop((6, 1)) == (COMPLETE, None)
    assert [status for status, _ in ended.values()] == [INVALID] * 3
    assert "train.head.units is 256: the encoder that train.init_from names has a head of 6" in str(ended[256, 1][1])
    assert "train.freeze_layers is 3: the encoder has 2 layers" in str(ended[6, 3][1])


ONE_HEAD, TWO_HEADS = {"choice": [{"units": 6}, {"units": 7}]}, {"choice": [{"units": 6}, {"units": 6, "steps": 9}]}


@pytest.mark.parametrize(
    ("begins_with", "space", "refused"),
    [
        ("headed", {"train.head.lr": {"loguniform": [1e-4, 1e-2]}}, "train.head.lr"),
        ("headed", {"train.head.units": {"choice": [6]}, "train.head.steps": {"choice": [0, 9]}}, "train.head.steps"),
        ("headed", {"train.head": {"choice": [None, {"units": 6}]}}, "train.head"),
        ("headed", {"train.head": TWO_HEADS}, "train.head"),
        ("headed", {"train.head": ONE_HEAD}, None),  # the other makes an invalid trial
        ("headed", {"train.head.units": {"choice": [6, 7]}}, None),
        ("headed", {"train.lr": {"choice": [1e-4, 1e-3]}}, None),
        ("encoder", {"train.head.lr": {"loguniform": [1e-4, 1e-2]}}, None),
        (None, {"train.head": TWO_HEADS}, None),
    ],
)
def test_how_a_head_is_trained_is_not_searched_where_one_is_brought_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins_with: str | None, space: dict[str, Any], refused: str | None
) -> None:
    class Started(Exception):
        pass

    def started(*_: Any, **__: Any) -> None:
        raise Started

    monkeypatch.setattr(tune, "ray_session", started)
    an_encoder_with_a_head(tmp_path)
    tree = a_config(tmp_path / "runs", space, num_trials=2).model_dump(mode="json")
    tree["encoder"] |= {"name": str(tmp_path / "headed"), "max_seq_length": 32}
    tree["train"]["init_from"] = begins_with and str(tmp_path / begins_with)
    with pytest.raises(ConfigError if refused else Started) as caught:
        tune.execute(validate_config(tree), argparse.Namespace(fresh=False, retry_failed=False), Console())
    if refused:
        said = str(caught.value)
        assert said.startswith(f"tune.space has {refused!r}, but train.init_from '{tmp_path}/headed' brings a head")
        assert "would train the same model; leave the key out" in said and "\n" not in said


def test_failed_trials_do_not_stop_the_search(tmp_path: Path) -> None:
    sweep = a_sweep(a_config(tmp_path, num_trials=8, random_trials=1))
    for _ in range(8):
        following = sweep.next()
        assert following is not None
        following[0].status, following[0].reason = FAILED, "out of memory"
        sweep.ended(following[0])
    assert [trial.reason for trial in SweepFolder(sweep.config).load()] == ["out of memory"] * 8
    assert sweep.next() is None


def test_ray_tune_is_handed_number_and_config_and_told_when_there_are_enough(tmp_path: Path) -> None:
    started: list[int] = []
    search = SweepSearch(a_sweep(a_config(tmp_path, num_trials=1)), lambda trial, config: started.append(trial.number))
    point = search.suggest("any")
    assert isinstance(point, dict)
    number, config = point_of(point)
    assert number == 0 and started == [0]
    assert config.train.max_output in (50, 100, 200) and 1e-5 <= config.train.lr <= 1e-2
    assert search.suggest("other") == "FINISHED"


def test_dimensions_become_optunas_distributions(tmp_path: Path) -> None:
    space = {
        "train.weight_decay": {"uniform": [0, 1]},
        "train.lr": {"loguniform": [1e-5, 1e-2]},
        "train.epochs": {"integer": [1, 4]},
        "train.batch_size": {"loginteger": [8, 64]},
        "train.scheduler": {"choice": ["constant", "cosine"]},
    }
    of = {key: distribution(one) for key, one in a_sweep(a_config(tmp_path, space)).space.items()}
    ends = {key: (one.low, one.high, one.log) for key, one in of.items() if hasattr(one, "log")}
    assert ends == {
        "train.weight_decay": (0.0, 1.0, False),
        "train.lr": (1e-5, 1e-2, True),
        "train.epochs": (1, 4, False),
        "train.batch_size": (8, 64, True),
    }
    assert getattr(of["train.scheduler"], "choices", None) == (0, 1)


class Told:
    """As much of Ray Tune's trial as a scheduler looks at."""

    def __init__(self, number: int) -> None:
        self.config = {"number": number}


def decision(scheduler: TrialScheduler, epoch: int, metric: float, number: int = 99) -> str:
    told = Told(number)
    scheduler.on_trial_add(None, told)
    return str(scheduler.on_trial_result(None, told, {EPOCH: epoch, OBJECTIVE: metric}))


def test_early_stopping_is_told_again_of_trials_that_have_ended(tmp_path: Path) -> None:
    trials = [Trial(number, {}, COMPLETE, {1: 0.1 * number, 2: 0.2 * number, 3: 9.0}) for number in range(1, 5)]
    config = a_config(tmp_path, asha={"grace_epochs": 1, "reduction_factor": 2})
    # the median of 0.1, 0.2, 0.3, 0.4 after epoch 1 is 0.25, of twice that after epoch 2 is 0.5
    assert decision(stopping(config, trials), 1, 0.24) == TrialScheduler.STOP
    assert decision(stopping(config, trials), 1, 0.26) == TrialScheduler.CONTINUE
    assert decision(stopping(config, trials), 2, 0.49) == TrialScheduler.STOP
    assert decision(stopping(config, trials), 2, 0.51) == TrialScheduler.CONTINUE
    assert decision(stopping(config, trials), 3, 0.01) == TrialScheduler.STOP, "judged by the rung of epoch 2"
    assert decision(stopping(config, []), 1, 0.0) == TrialScheduler.CONTINUE, "there is nothing to compare with"


def test_the_last_epoch_of_a_trial_that_ran_to_its_end_judges_nobody_killed_or_not(tmp_path: Path) -> None:
    """It was never judged itself: a short trial's last epoch, after a whole schedule, would stop all longer ones."""
    config = a_config(tmp_path, asha={"grace_epochs": 1, "reduction_factor": 2})
    short = [Trial(number, {}, COMPLETE, {1: 0.1, 2: 0.3}) for number in range(3)]
    stopped = [Trial(3, {}, STOPPED, {1: 0.1, 2: 0.3})]
    assert decision(stopping(config, short), 2, 0.22) == TrialScheduler.CONTINUE
    assert decision(stopping(config, stopped), 2, 0.22) == TrialScheduler.STOP, "that one was judged"


def test_smaller_is_better_where_the_mode_says_so_and_null_stops_nothing(tmp_path: Path) -> None:
    trials = [Trial(number, {}, COMPLETE, {1: 0.1 * number, 2: 9.0}) for number in range(1, 5)]
    assert decision(stopping(a_config(tmp_path, mode="min"), trials), 1, 0.26) == TrialScheduler.STOP
    assert decision(stopping(a_config(tmp_path, mode="min"), trials), 1, 0.24) == TrialScheduler.CONTINUE
    assert isinstance(stopping(a_config(tmp_path, asha=None), trials), FIFOScheduler)


def test_no_trial_is_stopped_before_the_grace_epochs(tmp_path: Path) -> None:
    config = a_config(tmp_path, asha={"grace_epochs": 3})
    trials = [Trial(0, {}, COMPLETE, {1: 0.9, 2: 0.9, 3: 0.9, 4: 9.0})]
    assert decision(stopping(config, trials), 2, 0.0) == TrialScheduler.CONTINUE
    assert decision(stopping(config, trials), 3, 0.89) == TrialScheduler.STOP


def test_a_trial_that_goes_on_is_not_judged_again_by_epochs_that_it_has_passed(tmp_path: Path) -> None:
    trials = [Trial(number, {}, COMPLETE, {1: 0.8, 2: 0.9, 3: 9.0}) for number in range(4)]
    trials.append(Trial(4, {}, RUNNING, {1: 0.5, 2: 0.6}))
    scheduler = stopping(a_config(tmp_path), trials)
    assert decision(scheduler, 1, 0.5, number=5) == TrialScheduler.STOP, "a new one as good as this would be stopped"
    assert decision(scheduler, 1, 0.5, number=4) == TrialScheduler.CONTINUE
    assert decision(scheduler, 2, 0.6, number=4) == TrialScheduler.STOP, "how its last epoch was judged is not known"


def test_a_point_is_tried_once_while_there_are_others(tmp_path: Path) -> None:
    space = {"train.max_output": {"choice": [50, 100]}, "train.lr": {"choice": [1e-5, 1e-4, 1e-3, 1e-2]}}
    sweep = a_sweep(a_config(tmp_path, space, num_trials=9))
    assert num_points(sweep.space) == 8
    points = [tuple(values.values()) for values in run(sweep, 9)]
    assert len(set(points[:8])) == 8
    assert points[8] in points[:8], "when all have been tried, one is again"
    assert num_points(sweep.space | {"train.epochs": Dimension(integer=(2, 4))}) == 24
    assert num_points(a_sweep(a_config(tmp_path / "endless")).space) is None


def qmc_points(folder: Path, num_trials: int = 12, **tune: Any) -> list[dict[str, Any]]:
    return run(a_sweep(a_config(folder, search="qmc", num_trials=num_trials, **tune)), num_trials)


def largest_gap(points: list[float], low: float, high: float) -> float:
    """Of a logarithmic range, the largest part of it without a point."""
    places = sorted(math.log(point / low) / math.log(high / low) for point in points)
    return max(after - before for before, after in zip([0.0, *places], [*places, 1.0], strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_quasi_random_points_leave_no_large_gap_where_random_ones_do(tmp_path: Path, seed: int) -> None:
    low, high, num_points = 1e-5, 1e-2, 16
    even = largest_gap([one["train.lr"] for one in qmc_points(tmp_path, num_points, seed=seed)], low, high)
    assert even <= 2 / num_points, "there is one in each sixteenth"
    drawn = np.random.default_rng(seed).uniform(math.log(low), math.log(high), (200, num_points))
    random = [largest_gap(np.exp(one).tolist(), low, high) for one in drawn]
    assert np.mean(random) > 1.5 * even, "of 16 random points the expected one is 0.2"


def test_quasi_random_points_are_the_seeds_whatever_the_trials_come_to_and_are_gone_on_with(tmp_path: Path) -> None:
    whole = qmc_points(tmp_path / "whole", seed=3)
    assert whole != qmc_points(tmp_path / "other", seed=4)
    assert len({one["train.lr"] for one in whole}) == 12
    assert all(3 <= sum(one["train.max_output"] == value for one in whole) <= 5 for value in (50, 100, 200))

    config = a_config(tmp_path / "killed", search="qmc", seed=3)
    run(a_sweep(config), 5)
    begun = a_sweep(config).next()
    assert begun is not None and begun[0].number == 5
    assert run(a_sweep(config), 12) == whole

    side_by_side = a_sweep(a_config(tmp_path / "at-once", search="qmc", seed=3))
    while side_by_side.next() is not None:
        continue
    assert [trial.values for trial in side_by_side.trials] == whole, "no trial has ended"
    assert qmc_points(tmp_path / "longer", 20, seed=3)[:12] == whole


def test_tpe_begins_with_quasi_random_points_and_leaves_them_when_it_has_enough_to_go_by(tmp_path: Path) -> None:
    even = qmc_points(tmp_path / "qmc", seed=3)
    begun = run(a_sweep(a_config(tmp_path / "tpe", seed=3, random_trials=5)), 12)
    assert begun[:5] == even[:5]
    assert all(one not in even for one in begun[5:])


def test_quasi_random_values_are_of_every_kind_and_within_their_ends(tmp_path: Path) -> None:
    space = {
        "train.weight_decay": {"uniform": [0, 1]},
        "train.epochs": {"integer": [1, 4]},
        "train.batch_size": {"loginteger": [8, 64]},
        "train.scheduler": {"choice": ["constant", "cosine"]},
        "train.betas": {"choice": [[0.9, 0.99], [0.8, 0.9]]},
    }
    found = search_space(a_config(tmp_path, space))
    points = [quasi_random_point(found, 1, number) for number in range(64)]
    assert all(found[key].holds(value) for point in points for key, value in point.items())
    assert [sum(point["train.epochs"] == value for point in points) for value in (1, 2, 3, 4)] == [16] * 4
    assert sum(point["train.batch_size"] <= 22 for point in points) == pytest.approx(32, abs=2), (
        "the middle of 8 and 64"
    )
    assert quasi_random_point(dict(reversed(found.items())), 1, 7) == points[7]
    assert [value_at(Dimension(loginteger=(1, 100)), place) for place in (0.0, 0.5, 1 - 1e-9)] == [1, 7, 100]
    assert value_at(Dimension(loguniform=(1e-4, 1e-2)), 0.5) == pytest.approx(1e-3)
