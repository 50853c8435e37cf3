"""A signal in a sweep: who is waited for, what is said, and that a stopped trial has neither failed nor ended."""

from __future__ import annotations

import io
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune as ray_tune

from beeray.config import Config, validate_config
from beeray.console import Console
from beeray.errors import RunError, UnansweredError
from beeray.interruption import Interrupted
from beeray.runtime.monitor import listening
from beeray.runtime.shared_folder import what_is_not_shared
from beeray.runtime.sweep.folder import FAILED, RUNNING, SweepFolder, Trial
from beeray.runtime.sweep.pausing import Pausing, TrialWishes
from beeray.runtime.sweep.progress import SweepProgress
from beeray.runtime.sweep.search import Sweep, SweepSearch
from beeray.runtime.sweep.trial import OUTCOME, PAUSED, REASON, SweepInputs, TrialEvents
from beeray.verbs import tune

HOW_FAR = "stopped after step 7 of 40, with a checkpoint"


def at_steps(pausing: Pausing, *numbers: int) -> None:
    """Trials that have begun, and are at their steps."""
    for number in numbers:
        pausing.begun(number)
        pausing.hear({"trial": number, "saves": True})


def ended_by(pausing: Pausing) -> Interrupted:
    with pytest.raises(Interrupted) as caught:
        pausing.check()
    return caught.value


def test_the_command_ends_when_every_trial_at_its_steps_has_saved_and_says_how_far_each_came() -> None:
    pausing = Pausing()
    at_steps(pausing, 3, 2)
    pausing.begun(4)  # it is starting its workers: there is nothing to wait for
    pausing.check()
    pausing.request(signal.SIGTERM, None)
    assert pausing.asked
    pausing.check()
    pausing.ended(3, "trial-003 stopped after step 9 of 40, with a checkpoint")
    pausing.check()
    pausing.ended(2, f"trial-002 {HOW_FAR}")
    ended = ended_by(pausing)
    assert ended.exit_code == 143
    assert ended.said == f"trial-002 {HOW_FAR}; trial-003 stopped after step 9 of 40, with a checkpoint"


def test_a_signal_ends_a_sweep_at_once_where_no_trial_has_something_to_save_and_so_does_a_second_ctrl_c() -> None:
    pausing = Pausing()
    pausing.begun(0)
    with pytest.raises(Interrupted) as caught:
        pausing.request(signal.SIGTERM, None)
    assert (caught.value.exit_code, caught.value.said, pausing.asked) == (143, "stopped by SIGTERM", False)
    pausing.hear({"trial": 0, "saves": True})
    pausing.hear({"trial": 0, "saves": False})  # it scores what was trained, which is in its last checkpoint
    with pytest.raises(Interrupted):
        pausing.request(signal.SIGINT, None)

    at_steps(pausing, 1)
    pausing.request(signal.SIGINT, None)
    with pytest.raises(Interrupted) as caught:
        pausing.request(signal.SIGINT, None)
    assert caught.value.exit_code == 130


@pytest.mark.parametrize("how", ["ended", "its driver died", "at its end"])
def test_a_trial_that_will_not_save_any_more_is_not_waited_for(how: str) -> None:
    pausing = Pausing()
    at_steps(pausing, 0)
    pausing.request(signal.SIGINT, None)
    if how == "ended":
        pausing.ended(0)
        pausing.hear({"trial": 0, "saves": True})  # heard too late
    elif how == "its driver died":
        pausing.begun(0)
    else:
        pausing.hear({"trial": 0, "saves": False})
    assert (ended_by(pausing).exit_code, ended_by(pausing).said) == (130, "interrupted")


def a_config(folder: Path) -> Config:
    space = {"train.lr": {"loguniform": [1e-5, 1e-2]}}
    train = {"lr": 1e-3, "batch_size": 32, "max_output": 100, "epochs": 8}
    tree = {"name": "s", "runs_dir": str(folder), "data": {"source": "shop"}, "train": train}
    return validate_config({**tree, "tune": {"space": space, "num_trials": 3}})


def a_sweep(config: Config) -> Sweep:
    return Sweep(config, SweepFolder(config), lambda trial, at_point: at_point)


class Heard:
    """Stands in for MLflow: which trials it was told of as ended."""

    def __init__(self) -> None:
        self.ended_trials: list[tuple[int, str]] = []

    def started(self, trial: Trial, config: Config) -> None:
        return

    def ended(self, trial: Trial) -> None:
        self.ended_trials.append((trial.number, trial.status))


def test_a_stopped_trial_is_noted_as_running_and_is_the_first_to_go_on(tmp_path: Path) -> None:
    config, pausing, heard = a_config(tmp_path), Pausing(), Heard()
    sweep = a_sweep(config)
    console = Console(io.StringIO(), io.StringIO())
    progress = SweepProgress(sweep, heard, console, lambda: None, pausing, lambda: None)  # type: ignore[arg-type]
    search = SweepSearch(sweep, progress.started, lambda: pausing.asked)
    for one in ("first", "second"):
        assert isinstance(search.suggest(one), dict)
    for number in (0, 1):
        pausing.hear({"trial": number, "saves": True})
    pausing.request(signal.SIGTERM, None)
    assert search.suggest("third") == "FINISHED", "nothing is begun that would be stopped at once"

    def ends(number: int, **result: str) -> None:
        progress.on_trial_complete(1, [], SimpleNamespace(config={"number": number}, last_result=result))

    ends(1, **{OUTCOME: FAILED, REASON: "out of memory"})
    progress.on_step_end(1, [])
    ends(0, **{OUTCOME: PAUSED, REASON: HOW_FAR})
    with pytest.raises(Interrupted, match=f"trial-000 {HOW_FAR}"):
        progress.on_step_end(2, [])
    assert heard.ended_trials == [(1, FAILED)]

    resumed = a_sweep(config)
    assert [(trial.status, trial.reason) for trial in resumed.trials] == [(RUNNING, None), (FAILED, "out of memory")]
    again = resumed.next()
    assert again is not None
    assert (again[0].number, again[0].values) == (0, sweep.trials[0].values)


def test_a_trial_tells_when_it_comes_to_its_steps_and_when_it_leaves_them() -> None:
    told: list[bool] = []
    reported: list[dict[str, Any]] = []
    events = TrialEvents(reported.append, told.append, Console(io.StringIO(), io.StringIO()), 10, 1)
    events({"kind": "ready", "rank": 0, "at": 1.0})
    assert told == []
    start = {"kind": "start", "num_steps": 3, "steps_per_epoch": 3, "peak_tflops": 1.0, "at": 1.0}
    events(start | {"step": 0})
    events(start | {"step": 2})  # its workers were replaced
    assert told == [True]
    events({"kind": "embed", "when": "after", "items": 1})
    assert told == [True, False]


@pytest.mark.parametrize("lost", [{"kind": "ready", "rank": 0, "at": 2.0}, {"kind": "lost"}])
def test_while_new_workers_come_up_there_is_nothing_to_save(lost: dict[str, Any]) -> None:
    told: list[bool] = []
    events = TrialEvents(lambda _: None, told.append, Console(io.StringIO(), io.StringIO()), 10, 2)
    start = {"kind": "start", "num_steps": 3, "steps_per_epoch": 3, "peak_tflops": 1.0, "at": 1.0}
    events({"kind": "ready", "rank": 0, "at": 1.0})
    events(start | {"step": 0})
    events({"kind": "ready", "rank": 1, "at": 1.5})  # late: it is of the same attempt
    assert told == [True]
    events(lost)
    assert told == [True, False]
    events(start | {"step": 0})
    assert told == [True, False, True]


@pytest.mark.parametrize(
    ("raised", "report"),
    [
        (Interrupted(signal.SIGTERM, HOW_FAR), {OUTCOME: PAUSED, REASON: HOW_FAR}),
        (RunError("no room"), {OUTCOME: FAILED, REASON: "no room"}),
    ],
)
def test_a_trial_that_was_asked_to_stop_reports_how_far_it_came_and_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, report: dict[str, str]
) -> None:
    reports: list[dict[str, Any]] = []

    def end(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(tune, "_run_trial", end)
    monkeypatch.setattr(ray_tune, "report", reports.append)
    config = {"number": 0, "config": a_config(tmp_path).model_dump_json()}
    (tmp_path / "marker").touch()  # the folder of the trial's is the sweep's
    tune.run_trial(config, SweepInputs("store", {}, "validation/ndcg@100", marker="marker"))
    assert reports == [report]


@pytest.mark.parametrize(("times", "outcome"), [(2, None), (3, FAILED)])
def test_a_trial_whose_store_does_not_answer_for_a_while_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, outcome: str | None
) -> None:
    reports: list[dict[str, Any]] = []
    tries: list[int] = []

    def run(*_: Any) -> None:
        tries.append(1)
        if len(tries) <= times:
            raise UnansweredError("s3://warehouse/store: http://warehouse does not answer")
        ray_tune.report({OUTCOME: "well"})

    monkeypatch.setattr(tune, "STORE_PATIENCE_S", 0.0)
    monkeypatch.setattr(tune, "_run_trial", run)
    monkeypatch.setattr(ray_tune, "report", reports.append)
    trial = a_config(tmp_path)
    trial = trial.model_copy(update={"cluster": trial.cluster.model_copy(update={"max_failures": 2})})
    (tmp_path / "marker").touch()
    sweep_inputs = SweepInputs("store", {}, "validation/ndcg@100", marker="marker")
    tune.run_trial({"number": 0, "config": trial.model_dump_json()}, sweep_inputs)
    assert [report[OUTCOME] for report in reports] == [outcome or "well"]
    assert len(tries) == 3


def test_a_trial_in_a_folder_that_the_sweep_s_command_does_not_see_fails_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[dict[str, Any]] = []
    trials = tmp_path / "runs" / "sweep" / "trials"
    trials.mkdir(parents=True)
    monkeypatch.setattr(tune, "what_is_not_shared", partial(what_is_not_shared, patience_s=0.0))
    monkeypatch.setattr(tune, "_run_trial", lambda *_: pytest.fail("it trained"))
    monkeypatch.setattr(ray_tune, "report", reports.append)
    config = {"number": 0, "config": a_config(trials).model_dump_json()}
    tune.run_trial(config, SweepInputs("store", {}, "validation/ndcg@100", marker=".training-elsewhere"))
    assert [report[OUTCOME] for report in reports] == [FAILED]
    assert reports[0][REASON].startswith(f"runs_dir '{tmp_path / 'runs'}': what this command writes to {trials} is not")
    assert list(trials.iterdir()) == []


@pytest.mark.slow
def test_the_wish_goes_to_trials_and_what_they_would_save_comes_back(ray_session: None) -> None:
    pausing, deadline = Pausing(), time.monotonic() + 60
    with listening(pausing.hear, lambda: pausing.asked) as monitor:
        trials = [TrialWishes(monitor, number) for number in range(20)]  # more than the monitor has threads
        for number, trial in enumerate(trials):
            pausing.begun(number)
            if number < 3:
                trial.tell(True)
            assert not trial.stop()
        pausing.request(signal.SIGTERM, None)  # else it would interrupt: what was told is heard
        while not all(trial.stop() for trial in trials):
            assert time.monotonic() < deadline
            time.sleep(0.1)
