"""Several systems that scored the same users, compared question by question: a split, a ranking, a metric, a system.

Systems are joined on user, split, ranking and, where a store has several, domain: there the users of all domains that
all systems have are compared first, then each domain's. Imports neither torch nor Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beeray.core.significance import holm, paired_bootstrap
from beeray.data.scored import KEYS, Scored
from beeray.errors import RunError

RANKINGS = ("held_out", "catalog", "filtered")
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Choice:
    """Which questions are asked; what is not named is asked wherever all systems have it."""

    splits: tuple[str, ...] = ()
    rankings: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How they are answered."""

    num_bootstrap: int = 10_000
    seed: int = 0
    alpha: float = 0.05


MOST_BOOTSTRAP = 200_000
"""Resamples that are taken without being asked for."""
MOST_ASKED = 10_000_000
"""Resamples that may be asked for: a quarter of a GiB, and p down to 2e-7."""
EVERYTHING, BY_DEFAULT = Choice(), Settings()
Group = tuple[str, str, str]
"""split, ranking, domain (empty where the store has one, and for the users of all)."""


def compare(systems: Sequence[Scored], choice: Choice = EVERYTHING, settings: Settings = BY_DEFAULT) -> dict[str, Any]:
    """Compare systems with the first of them.

    Where so many questions are asked that no p of `settings.num_bootstrap` resamples could stand Holm's correction,
    the least number that can is taken.

    Returns:
        the settings; `systems`, a name, folder and fingerprint each; `tables`, one a split, ranking and domain (of
        several domains first one of all, with their names as `domains`), with its users and metrics, and for each
        metric a row a system: `mean`, `low`, `high` and, but for the reference, `difference` (mean, low, high),
        `relative`, `p`, `p_holm` and `verdict`; `hypotheses`, how many Holm's correction is over; `num_bootstrap`,
        and `num_bootstrap_asked` where that was too few; `not_alike`, why groups that all
        systems have were left out, if any were; `warnings`, what flatters a system, if anything is known to.

    Raises:
        RunError: other stores, no user, ranking or metric in common, too many questions, or what was asked for measures
            different things of the systems.
    """
    check_stores(systems)
    names = distinct_names(systems)
    metrics = _common_metrics(systems, choice.metrics)
    groups, unlike = _common_groups(systems, choice)
    asked, number = settings.num_bootstrap, len(groups) * len(metrics) * (len(systems) - 1)
    settings = replace(settings, num_bootstrap=_enough_bootstrap(number, settings))
    tables = [
        _table([one.table for one in systems], group, metrics, names, settings, domains) for group, domains in groups
    ]
    flattered = _flattered(systems, names, {split for (split, _, _), _ in groups})
    rows = [row for table in tables for rows in table["metrics"].values() for row in rows[1:]]
    for row, adjusted in zip(rows, holm(np.array([row["p"] for row in rows])), strict=True):
        row["p_holm"] = float(adjusted)
        gained = "better" if row["difference"]["mean"] > 0 else "worse"
        row["verdict"] = gained if adjusted <= settings.alpha else "undecided"
    return {
        "reference": names[0],
        "systems": [
            {"name": name, "folder": str(one.folder), "store_fingerprint": one.store_fingerprint}
            for name, one in zip(names, systems, strict=True)
        ],
        "hypotheses": len(rows),
        "alpha": settings.alpha,
        "num_bootstrap": settings.num_bootstrap,
        **({"num_bootstrap_asked": asked} if asked < settings.num_bootstrap else {}),
        "seed": settings.seed,
        **({"not_alike": unlike} if unlike else {}),
        **({"warnings": flattered} if flattered else {}),
        "tables": tables,
    }


def _flattered(systems: Sequence[Scored], names: Sequence[str], splits: set[str]) -> list[str]:
    """What is known to flatter systems on these splits: that some of what is held out was trained on before."""
    lines = []
    for name, one in zip(names, systems, strict=True):
        seen = ", ".join(f"{number:,} of {split}" for split, number in one.seen.items() if number and split in splits)
        if seen:
            lines.append(f"{name} was trained on some of what is held out ({seen}), which flatters its figures")
    return lines


def _enough_bootstrap(hypotheses: int, settings: Settings) -> int:
    """Resamples with which something can be found: the smallest p there is, times the hypotheses, is at most alpha.

    Raises:
        RunError: more than `MOST_BOOTSTRAP`, and than were asked for.
    """
    needed = math.ceil(2 * hypotheses / settings.alpha)
    if needed > max(MOST_BOOTSTRAP, settings.num_bootstrap):
        raise RunError(
            f"{hypotheses:,} hypotheses at alpha {settings.alpha:g} need {needed:,} resamples of users to find "
            f"anything, and {MOST_BOOTSTRAP:,} are the most that are taken unasked; ask fewer questions (--split, "
            f"--ranking, --metric, fewer systems){', or give that --num-bootstrap' if needed <= MOST_ASKED else ''}"
        )
    return max(needed, settings.num_bootstrap)


def check_stores(systems: Sequence[Scored]) -> None:
    """Refuse systems whose users are not the same; RunError names both."""
    first = systems[0]
    for other in systems[1:]:
        if other.store_fingerprint != first.store_fingerprint:
            raise RunError(
                f"{other.name} was scored on store {other.store_fingerprint}, {first.name} on store "
                f"{first.store_fingerprint}: other data, rules or split, so their users cannot be paired; score both "
                "on one store (beeray.evaluate --config C --model PATH)"
            )


def distinct_names(systems: Sequence[Scored]) -> list[str]:
    """What each system is called in a table: its label if all are of one run, its whole name, or its folder.

    Raises:
        RunError: one is given twice.
    """
    folders = [(one.folder.resolve(), one.label) for one in systems]
    twice = next((one.name for place, one in enumerate(systems) if folders[place] in folders[:place]), None)
    if twice is not None:
        raise RunError(f"{twice} is given twice: a system does not differ from itself")
    of_one_run = len({one.run for one in systems}) == 1
    choices = [[one.label or one.run for one in systems]] if of_one_run else []
    choices += [[one.name for one in systems], [f"{one.folder} {one.label}".strip() for one in systems]]
    return next(names for names in choices if len(set(names)) == len(names))


def _common_metrics(systems: Sequence[Scored], asked: Sequence[str]) -> list[str]:
    columns = [[name for name in one.table.column_names if name not in KEYS] for one in systems]
    common = [name for name in columns[0] if all(name in other for other in columns)]
    if not common:
        shown = "; ".join(
            f"{one.name}: {', '.join(names) or 'none'}" for one, names in zip(systems, columns, strict=True)
        )
        raise RunError(f"no metric was measured of all systems ({shown}); score them with one evaluate section")
    return _asked(common, asked, "metric")


def _common_groups(systems: Sequence[Scored], choice: Choice) -> tuple[list[tuple[Group, list[str]]], list[str]]:
    """The groups to compare, each with its domains' names if it is of several, and why others are left out."""
    found = [_groups(one.table) for one in systems]
    common = [group for group in found[0] if all(group in other for other in found)]
    if not common:
        shown = "; ".join(
            f"{one.name}: {', '.join(' '.join(filter(None, group)) for group in groups) or 'none'}"
            for one, groups in zip(systems, found, strict=True)
        )
        raise RunError(f"no ranking was scored of all systems ({shown})")
    unlike = {name: why for name, why in _unlike(systems).items() if any(name in group[:2] for group in common)}
    if "validation" not in choice.splits and any(group[0] != "validation" for group in common):
        unlike |= _learned_by_all(systems, common)
    alike = [group for group in common if not unlike.keys() & set(group[:2])]
    asked = [why for name, why in unlike.items() if name in (*choice.splits, *choice.rankings)]
    if asked or not alike:
        raise RunError("; ".join(asked or dict.fromkeys(unlike.values())))
    splits = _asked([split for split, _, _ in alike], choice.splits, "split")
    rankings = _asked([ranking for _, ranking, _ in alike], choice.rankings, "ranking")
    chosen = [group for group in alike if group[0] in splits and group[1] in rankings]
    return list(_with_all_domains(chosen)), list(dict.fromkeys(unlike.values()))


def _with_all_domains(groups: Sequence[Group]) -> Iterator[tuple[Group, list[str]]]:
    """The groups, and before those of several domains one of all of them together with their names."""
    together: dict[tuple[str, str], list[str]] = {}
    for split, ranking, domain in groups:
        together.setdefault((split, ranking), []).append(domain)
    for (split, ranking), domains in together.items():
        if len(domains) > 1:
            yield (split, ranking, ""), domains
        for domain in domains:
            yield (split, ranking, domain), []


def _unlike(systems: Sequence[Scored]) -> dict[str, str]:
    """Splits and rankings that measure different things of the systems, and why; what is unknown counts as alike.

    But for validation: beside a system that was trained on it one of which nothing is known was most likely not, as an
    encoder that no run trained.
    """
    unlike: dict[str, str] = {}
    trained = {one.trained_on_validation: one.name for one in reversed(systems)}
    if True in trained and len(trained) > 1:
        was_not = f"{trained[False]} was not" if False in trained else f"of {trained[None]} that is not known"
        unlike["validation"] = (
            f"validation is not compared: {trained[True]} was trained on validation data and {was_not}; compare them "
            "by test"
        )
    lists = {one.old_items: one.name for one in reversed(systems) if one.old_items is not None}
    if len(lists) > 1:
        first, other, *_ = reversed(lists.values())
        why = (
            f"old_items and new_items are not compared: {first} and {other} began with runs that knew different items; "
            "score both models under one run (beeray.evaluate --config C --model PATH)"
        )
        unlike |= {"old_items": why, "new_items": why}
    drops = {one.drops_once_ranked: one.name for one in systems if one.drops_once_ranked is not None}
    if len(drops) > 1:
        unlike["filtered"] = (
            f"filtered is not compared: {drops[False]} was scored by a version that ranked the window's items alone; "
            "score it again"
        )
    cuts = {one.filtered_cut: one.name for one in reversed(systems) if one.filtered_cut is not None}
    if len(cuts) > 1 and "filtered" not in unlike:
        short, long, *_ = sorted(cuts)
        unlike["filtered"] = (
            f"filtered is not compared: of {cuts[short]} the first {short} of the catalog's ranking were filtered, of "
            f"{cuts[long]} the first {long}; score both with the same evaluate.recall_at and evaluate.ndcg_at"
        )
    return unlike


def _learned_by_all(systems: Sequence[Scored], groups: Sequence[Group]) -> dict[str, str]:
    if not any(group[0] == "validation" for group in groups) or not all(one.trained_on_validation for one in systems):
        return {}
    return {"validation": "validation is left out: all were trained on it; --split validation compares them there"}


def _asked(common: Sequence[str], asked: Sequence[str], what: str) -> list[str]:
    unknown = [name for name in asked if name not in common]
    if unknown:
        there = ", ".join(dict.fromkeys(common))
        raise RunError(f"--{what} {unknown[0]!r}: not measured of all systems; there are: {there}")
    return [name for name in common if not asked or name in asked]


def _groups(table: pa.Table) -> list[Group]:
    """The groups of a table, those known of old first."""
    columns = [name for name in KEYS[1:] if name in table.column_names]
    rows = table.select(columns).group_by(columns).aggregate([]).to_pylist()
    groups = [(row["split"], row["ranking"], row.get("domain") or "") for row in rows]
    return sorted(groups, key=lambda group: (_place(SPLITS, group[0]), _place(RANKINGS, group[1]), group))


def _place(known: Sequence[str], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _rows(
    table: pa.Table, group: Group, metrics: Sequence[str], domains: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Users of a group in order, (users,), and their metrics, (users, metrics).

    Args:
        domains: the ones whose users are taken where the group is of several.
    """
    mask = pc.and_(pc.equal(table["split"], group[0]), pc.equal(table["ranking"], group[1]))
    if domains or group[2]:
        mask = pc.and_(mask, pc.is_in(table["domain"], pa.array(domains or [group[2]])))
    chosen = table.filter(mask)
    users = chosen["user_index"].to_numpy()
    order = np.argsort(users, kind="stable")
    return users[order], np.stack([chosen[name].to_numpy() for name in metrics], axis=1)[order]


def _table(
    tables: Sequence[pa.Table],
    group: Group,
    metrics: Sequence[str],
    names: Sequence[str],
    settings: Settings,
    domains: Sequence[str],
) -> dict[str, Any]:
    scored = [_rows(table, group, metrics, domains) for table in tables]
    common = scored[0][0]
    for users, _ in scored[1:]:
        common = np.intersect1d(common, users)
    where = " ".join(filter(None, group))
    if not len(common):
        raise RunError(f"{where}: no user was scored by all systems; score them on one store with one config")
    scores = np.stack([values[np.searchsorted(users, common)] for users, values in scored])
    found = paired_bootstrap(scores, num_bootstrap=settings.num_bootstrap, seed=settings.seed)
    rows: dict[str, list[dict[str, Any]]] = {}
    for column, metric in enumerate(metrics):
        rows[metric] = []
        for place, name in enumerate(names):
            row = {"system": name, **_interval(found.means[place, column], found.intervals[place, column])}
            if place:
                difference = found.differences[place - 1, column]
                reference = found.means[0, column]
                row["difference"] = _interval(difference, found.difference_intervals[place - 1, column])
                row["relative"] = float(difference / reference) if reference else None
                row["p"] = float(found.p_values[place - 1, column])
            rows[metric].append(row)
    table = {"split": group[0], "ranking": group[1], "users": len(common), "metrics": rows}
    left_out = max(len(users) for users, _ in scored) - len(common)
    whose = {"domain": group[2]} if group[2] else {"domains": list(domains)} if domains else {}
    return {**table, **whose, **({"users_left_out": left_out} if left_out else {})}


def _interval(mean: float, bounds: NDArray[np.float64]) -> dict[str, float]:
    return {"mean": float(mean), "low": float(bounds[0]), "high": float(bounds[1])}
