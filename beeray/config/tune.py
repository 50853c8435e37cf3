"""The sweep: which keys are searched over which values, how many trials, when a trial is stopped."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator

from beeray.config.section import Section

PRESETS = ("lr", "max_output", "batch_size")
RANGES = ("uniform", "loguniform", "integer", "loginteger")


class Dimension(Section):
    """The values of one key: exactly one of these."""

    uniform: tuple[float, float] | None = None
    """Numbers between the two."""
    loguniform: tuple[float, float] | None = None
    """Numbers between the two, evenly on a logarithmic scale; both above 0."""
    integer: tuple[int, int] | None = None
    """Both ends included, as in `loginteger`."""
    loginteger: tuple[int, int] | None = None
    """Whole numbers, evenly on a logarithmic scale; both above 0."""
    choice: tuple[Any, ...] | None = None
    """These values, of any type that the key takes."""

    @property
    def kind(self) -> str:
        """Which of the fields is set."""
        return next(name for name in (*RANGES, "choice") if getattr(self, name) is not None)

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends of a range."""
        low, high = getattr(self, self.kind)
        return low, high

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that show whether the key takes what is asked of it: all choices, or both ends."""
        return tuple(getattr(self, self.kind))

    @property
    def within(self) -> float | None:
        """A number between the ends that is not whole; None where none is drawn."""
        if self.kind not in ("uniform", "loguniform"):
            return None
        low, high = self.bounds
        return low + (high - low) / math.pi

    @property
    def num_values(self) -> int | None:
        """How many values there are; None where there is no end of them."""
        if self.kind == "choice":
            return len(self.probes)
        low, high = self.bounds
        return int(high - low) + 1 if "integer" in self.kind else None

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        if self.kind == "choice":
            return value in self.probes
        low, high = self.bounds
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high and ("integer" not in self.kind or value == int(value))

    def mistake(self) -> str | None:
        """What is wrong with it; None when nothing is."""
        given = [name for name in (*RANGES, "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            return f"must have exactly one of {', '.join((*RANGES, 'choice'))}; it has {', '.join(given) or 'none'}"
        values = self.probes
        if self.kind == "choice":
            twice = [value for place, value in enumerate(values) if value in values[:place]]
            return "choice is empty" if not values else f"choice has {twice[0]!r} twice" if twice else None
        if not self.bounds[0] < self.bounds[1]:
            return f"{self.kind} is [{values[0]}, {values[1]}]: the first must be below the second"
        if self.kind.startswith("log") and self.bounds[0] <= 0:
            return f"{self.kind} is [{values[0]}, {values[1]}]: a logarithmic range begins above 0"
        return None


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al., arXiv 1810.05934): which trials are not worth going on with."""

    grace_epochs: int = Field(1, ge=1)
    """No trial is stopped before so many epochs."""
    reduction_factor: float = Field(2, gt=1)
    """At epochs `grace_epochs` times its powers, a trial that is not among the best one in so many is stopped."""


class TuneConfig(Section):
    """What `beeray.tune` searches; `config/space.py` checks it against the rest of the tree."""

    space: dict[str, Dimension] = Field(default_factory=dict)
    """Dotted config keys and their values, e.g. `{train.lr: {loguniform: [1e-5, 1e-3]}}`."""
    presets: tuple[Literal["lr", "max_output", "batch_size"], ...] | None = None
    """Ready-made dimensions of `train.…`, beside `space`; all three where nothing else is searched."""
    num_trials: int = Field(20, ge=1)
    """Of the whole sweep, invalid and failed ones included; no more than the space has points."""
    metric: str | None = None
    """As epochs report it, e.g. `validation/ndcg@100`; the first of `evaluate.ndcg_at` (or `recall_at`) unless set."""
    mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest metric is the best."""
    max_concurrent: int | None = Field(None, ge=1)
    """Trials at once, at most, which an autoscaling cluster is asked to hold; as many as the cluster holds unless set.
    With 1, a seed fixes which trials there are."""
    asha: AshaConfig | None = AshaConfig()
    """Early stopping; null lets every trial run to its end."""
    search: Literal["tpe", "qmc"] = "tpe"
    """Optuna's TPE, which goes by the trials before; or an even spread (a Sobol sequence), whatever they came to."""
    random_trials: int = Field(8, ge=1)
    """Trials that must have ended before Optuna's TPE has something to go by; points are an even spread until then."""
    seed: int | None = Field(None, ge=0)
    """Of the search, not of training; the config's `seed` unless set."""
    keep_models: Literal["best", "all", "none"] = "best"
    """Whose trained encoders stay on disk."""

    @field_validator("presets", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        unknown = [one for one in value or () if one not in PRESETS] if isinstance(value, list | tuple) else []
        if unknown:
            raise ValueError(f"tune.presets has {unknown[0]!r}; there are {', '.join(PRESETS)}")
        return value
