"""What is tried next: by Optuna's TPE, told of every trial that the sweep's folder knows, or by an even spread.

Ray Tune's own `OptunaSearch` keeps its study in memory and pickles it now and then, so a kill would lose trials or
repeat them. Here the study is made from the folder at each start, and the sampler is seeded for each trial by
(seed, number of the trial): the next trial depends on nothing but the trials that have ended, killed or not.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from beeray.config import Config, Dimension, at_point, own_point, search_space
from beeray.errors import ConfigError, EncoderError
from beeray.runtime.sweep.folder import COMPLETE, INVALID, STOPPED, SweepFolder, Trial
from beeray.runtime.sweep.quasi_random import quasi_random_point

OBJECTIVE, EPOCH = "objective", "epoch"
"""What a trial reports to Ray Tune as."""
PROPOSALS, DRAWS = 4, 100
"""Points that are proposed, and that are then drawn at random, until one has not been tried."""


def num_left(config: Config, trials: Sequence[Trial]) -> int:
    """How many trials of a sweep are to be gone on with or drawn, when there are these."""
    return sum(not trial.over for trial in trials) + max(0, config.tune.num_trials - len(trials))


class Sweep:
    """The trials of a sweep: those that were, those to go on with, those to draw.

    Args:
        config: of the sweep.
        folder: knows earlier trials and takes new ones.
        finished: the config that a trial runs with, of its number and its config.
    """

    def __init__(self, config: Config, folder: SweepFolder, finished: Callable[[Trial, Config], Config]) -> None:
        self.config, self.folder, self.finished = config, folder, finished
        self.space = search_space(config)
        self.trials = folder.load()
        self._distributions = {key: distribution(dimension) for key, dimension in self.space.items()}
        self._seed = config.seed if config.tune.seed is None else config.tune.seed
        self._asked: dict[int, optuna.trial.Trial] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction = StudyDirection.MAXIMIZE if config.tune.mode == "max" else StudyDirection.MINIMIZE
        self._study = optuna.create_study(direction=direction)
        for trial in self.trials:
            if trial.over:
                self._study.add_trial(self._as_optuna(trial))
        self._waiting = deque(trial for trial in self.trials if not trial.over)

    @property
    def num_left(self) -> int:
        """Trials to go on with or to draw."""
        return num_left(self.config, self.trials)

    def next(self) -> tuple[Trial, Config] | None:
        """The next trial, noted in the folder, and its config; None when there are enough.

        A point that makes no valid config, or one that does not fit the encoder, is noted as a trial that is `invalid`,
        and the next one drawn.
        """
        while self._waiting or len(self.trials) < self.config.tune.num_trials:
            trial = self._waiting.popleft() if self._waiting else None
            trial = self._again(trial) if trial is not None else self._draw()
            try:
                config = self.finished(trial, at_point(self.config, trial.values))
            except (ConfigError, EncoderError) as error:
                trial.status, trial.reason = INVALID, str(error)
                self.ended(trial)
                continue
            self.folder.save(trial)
            return trial, config
        return None

    def ended(self, trial: Trial) -> None:
        """Note in the folder and tell Optuna how a trial ended."""
        self.folder.save(trial)
        asked = self._asked.pop(trial.number)
        for epoch, metric in trial.epochs.items():
            asked.report(metric, epoch)
        state, value = _outcome(trial)
        self._study.tell(asked, value, state=state)

    def _draw(self) -> Trial:
        taken = {trial.number for trial in self.trials}
        number = next(number for number in itertools.count() if number not in taken)  # a trial's folder may be removed
        point = own_point(self.config, self.space) if number == 0 else None  # so that no sweep ends worse than it began
        if point is None and self._spreads():
            point = quasi_random_point(self.space, self._seed, number)
        if point is not None:
            self._study.enqueue_trial(self._coded(point))
        tried = [trial.values for trial in self.trials]
        for draw in range(PROPOSALS + DRAWS):
            self._study.sampler = self._sampler(number, draw)
            asked = self._study.ask(fixed_distributions=self._distributions)
            values = {key: self._decoded(key, asked.params[key]) for key in self.space}
            if values not in tried or draw == PROPOSALS + DRAWS - 1:
                break
            self._study.tell(asked, state=TrialState.FAIL)  # the same point would come to the same metric
        trial = Trial(number, values)
        self._asked[number] = asked
        self.trials.append(trial)
        self.trials.sort(key=attrgetter("number"))
        return trial

    def _spreads(self) -> bool:
        """Whether the next point is of the even spread: before TPE has enough to go by, it would draw at random."""
        known = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return self.config.tune.search == "qmc" or len(known) < self.config.tune.random_trials

    def _sampler(self, number: int, draw: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self._seed, number, draw]).generate_state(1)[0])
        if draw >= PROPOSALS or self.config.tune.search == "qmc":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.config.tune.random_trials)

    def _again(self, trial: Trial) -> Trial:
        """A trial that a killed command began: the same values; it goes on from its checkpoints."""
        self._study.enqueue_trial(self._coded(trial.values))
        self._asked[trial.number] = self._study.ask(fixed_distributions=self._distributions)
        return trial

    def _as_optuna(self, trial: Trial) -> optuna.trial.FrozenTrial:
        state, value = _outcome(trial)
        return optuna.trial.create_trial(
            state=state,
            value=value,
            params=self._coded(trial.values),
            distributions=self._distributions,
            intermediate_values=dict(trial.epochs),
        )

    def _coded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Choices by their place, since Optuna takes no lists."""
        return {
            key: dimension.probes.index(values[key]) if dimension.kind == "choice" else values[key]
            for key, dimension in self.space.items()
        }

    def _decoded(self, key: str, value: Any) -> Any:
        dimension = self.space[key]
        return dimension.probes[value] if dimension.kind == "choice" else value


class SweepSearch(Searcher):
    """Ray Tune's view of a sweep: it asks for points; how trials end the sweep is told by `SweepProgress`.

    Args:
        started: is told of every trial that is handed out.
        stopping: whether the command is about to end, so that nothing new is begun.
    """

    def __init__(
        self, sweep: Sweep, started: Callable[[Trial, Config], None], stopping: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode=sweep.config.tune.mode)
        self.sweep, self.started, self.stopping = sweep, started, stopping

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Number and config of the next trial, as Ray Tune's point."""
        following = None if self.stopping() else self.sweep.next()
        if following is None:
            return str(Searcher.FINISHED)
        trial, config = following
        self.started(trial, config)
        return {"number": trial.number, "config": config.model_dump_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: see the class."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder is what a sweep resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune keeps a copy of what it was started with; nobody reads it


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna has it."""
    if dimension.kind == "choice":
        return CategoricalDistribution(tuple(range(len(dimension.probes))))
    low, high = dimension.bounds
    log = dimension.kind.startswith("log")
    if "integer" in dimension.kind:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _outcome(trial: Trial) -> tuple[TrialState, float | None]:
    if trial.status == COMPLETE:
        return TrialState.COMPLETE, trial.metric
    if trial.status == STOPPED:  # TPE ranks them behind the complete ones, by the epoch they came to
        return TrialState.PRUNED, None
    return TrialState.FAIL, None


def point_of(config: Mapping[str, Any]) -> tuple[int, Config]:
    """Number and config of the trial, from Ray Tune's point."""
    return int(config["number"]), Config.model_validate(json.loads(config["config"]))
