"""The gate between a new model and the one that serves: not worse, and not possibly much worse.

Both scored the same users, so the difference is resampled over users (`core.significance`). Two things refuse a model:

    worse      the 95 % interval of new − serving lies below zero as a whole: a loss is proven, however small
    uncertain  the interval reaches below −max_loss · serving: a loss larger than that is not ruled out

Doubt counts against the new model, since what serves is known to work. Several domains are judged one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from beeray.config import Config
from beeray.data.scored import Scored
from beeray.errors import ConfigError
from beeray.runtime.comparison import RANKINGS, Choice, Settings, compare
from beeray.runtime.rankings import all_rankings

OF_A_LIST = ("old_items", "new_items")
"""Rankings that are made only where a run begins with another that left its list of items."""
WORSE, UNCERTAIN, PASSED = "worse", "uncertain", "not worse"


@dataclass(frozen=True)
class Judged:
    """One domain's difference (or that of all users) and what it means.

    Attributes:
        domain: empty where there is one.
        serving, new: mean of the metric.
        difference, low, high: of new − serving, with the 95 % interval.
        allowed: the largest loss that need not be ruled out, as a positive number.
        finding: `worse`, `uncertain` or `not worse`.
    """

    domain: str
    users: int
    serving: float
    new: float
    difference: float
    low: float
    high: float
    allowed: float
    finding: str


@dataclass(frozen=True)
class Verdict:
    """Whether a new model may be published, and why."""

    split: str
    ranking: str
    metric: str
    judged: tuple[Judged, ...]

    @property
    def publish(self) -> bool:
        """Whether no domain refuses."""
        return all(one.finding == PASSED for one in self.judged)

    def record(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "judged": [asdict(one) for one in self.judged], "publish": self.publish}

    def lines(self) -> list[str]:
        """A line a domain: both means, the difference with its interval, and what it means."""
        return [self._line(one) for one in self.judged]

    def _line(self, one: Judged) -> str:
        meaning = {
            PASSED: "not worse",
            WORSE: "worse: refused",
            UNCERTAIN: f"a loss of more than {one.allowed:.4f} is not ruled out: refused",
        }[one.finding]
        where = "/".join(filter(None, (self.split, self.ranking, one.domain)))
        return (
            f"gate: {self.metric} of {where}, {one.users:,} users: new {one.new:.4f}, serving {one.serving:.4f}, "
            f"difference {one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]: {meaning}"
        )


def judge(serving: Scored, new: Scored, config: Config) -> Verdict:
    """Judge a new model by what `config.nightly` asks.

    Raises:
        ConfigError: the metric, split or ranking was not measured.
        RunError: the two scored other users.
    """
    nightly, metric, split = config.nightly, gate_metric(config), gate_split(config)
    ranking = nightly.ranking or _first_ranking(new, split)
    settings = Settings(num_bootstrap=nightly.num_bootstrap, seed=config.seed)
    # what the serving model alone learned from validation data makes the gate stricter: no reason to stop a night
    serving = replace(serving, trained_on_validation=new.trained_on_validation)
    compared = compare([serving, new], Choice((split,), (ranking,), (metric,)), settings)
    tables = [one for one in compared["tables"] if "domains" not in one]  # each domain is judged, not all together
    return Verdict(split, ranking, metric, tuple(_judged(tables, metric, nightly.max_loss)))


def _judged(tables: Sequence[dict[str, Any]], metric: str, max_loss: float) -> list[Judged]:
    judged = []
    for table in tables:
        serving, new = table["metrics"][metric]
        difference = new["difference"]
        allowed = max_loss * serving["mean"]
        finding = WORSE if difference["high"] < 0 else UNCERTAIN if difference["low"] < -allowed else PASSED
        judged.append(
            Judged(
                table.get("domain", ""),
                table["users"],
                serving["mean"],
                new["mean"],
                difference["mean"],
                difference["low"],
                difference["high"],
                allowed,
                finding,
            )
        )
    return judged


def gate_metric(config: Config) -> str:
    """The metric that is compared; ConfigError where it is none of those measured."""
    measured = [f"ndcg@{k}" for k in config.evaluate.ndcg_at] + [f"recall@{k}" for k in config.evaluate.recall_at]
    asked = config.nightly.metric or measured[0]
    if asked not in measured:
        raise ConfigError(f"nightly.metric is {asked!r}: evaluate measures {', '.join(measured)}; name one of them")
    return asked


def gate_split(config: Config) -> str:
    """The split whose users are compared; ConfigError where it is not scored."""
    splits = config.evaluate.splits
    if not splits:
        raise ConfigError("evaluate.splits is empty: there is nothing to compare by; give validation, test or both")
    asked = config.nightly.split or ("test" if "test" in splits else splits[0])
    if asked not in splits:
        raise ConfigError(f"nightly.split is {asked!r}: evaluate.splits has {', '.join(splits)}; add it there")
    if asked == "validation" and config.trains_on_validation:
        raise ConfigError(
            "nightly.split: the gate would compare on validation data, which is trained on; set nightly.split: test "
            "(and have it in evaluate.splits), or train.with_validation: false"
        )
    return asked


def check_ranking(config: Config) -> None:
    """Refuse a ranking that evaluation does not make; ConfigError names those that it does."""
    asked, made = config.nightly.ranking, all_rankings(config)
    if asked in OF_A_LIST:
        raise ConfigError(
            f"nightly.ranking is {asked!r}: old items are told from new ones only where the serving model's run left a "
            f"list of its items, so a night would train and could not judge; name one of {', '.join(made)}"
        )
    if asked is not None and asked not in made:
        raise ConfigError(
            f"nightly.ranking is {asked!r}: with split.kind {config.split.kind} evaluation makes {', '.join(made)}; "
            "name one of them"
        )


def _first_ranking(scored: Scored, split: str) -> str:
    rows = scored.table.select(["split", "ranking"]).group_by(["split", "ranking"]).aggregate([]).to_pylist()
    there = [row["ranking"] for row in rows if row["split"] == split]
    return next((name for name in RANKINGS if name in there), RANKINGS[0])
