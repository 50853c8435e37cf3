"""Everything that was scored under a run's name: the run, its encoder before, baselines, other encoders."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from beeray.data.scored import EVALUATIONS, METRICS, TRAINED_ON_VALIDATION

Record = dict[str, Any]

BASELINES = {
    "baseline-popularity": "Popularity",
    "baseline-item_knn": "Item kNN",
    "baseline-ease": "EASE",
    "baseline-elsa": "ELSA",
    "baseline-untouched": "Untouched encoder",
    "baseline-frozen_head": "Frozen encoder + head",
}
RANKINGS = {
    "held_out": "held-out items",
    "catalog": "whole catalog",
    "filtered": "first of the whole catalog's ranking, those that nobody has in the window dropped",
    "window": "items of the window alone",
    "new_items": "only new items asked for",
    "old_items": "only items known before asked for",
}
OWN = ("trained", "before")
"""Labels of what the run's record tells of."""
KINDS = ("baseline", "before", "other", "trained")
"""From the first row of a table to the last."""
SHOWN = ("coverage", "gini", "popularity", "target_popularity")


def described(ranking: str) -> str:
    """A ranking in words; `held_out@64` is one by the first 64 numbers of the embeddings."""
    name, _, width = ranking.partition("@")
    where = RANKINGS.get(name, name)
    return f"{where}, first {width} numbers of the embeddings" if width else where


@dataclass(frozen=True)
class Measurement:
    """One scored thing.

    Attributes:
        label: of its folder; `trained` and `before` for the run's own.
        name: for people.
        kind: one of `KINDS`.
        metrics: `{split: {ranking: record}}`.
        learned_validation: whether it learned from validation data; None where that is not known.
    """

    label: str
    name: str
    kind: str
    metrics: Record
    learned_validation: bool | None = None


def collect_measurements(folder: Path, record: Record | None) -> tuple[list[Measurement], list[str]]:
    """All that was scored, in the order in which to show it, and what had to be left out.

    Args:
        folder: the run's.
        record: its metrics.json; None for one that was never trained.
    """
    found: list[Measurement] = []
    notes: list[str] = []
    if record is not None:
        learned = record.get(TRAINED_ON_VALIDATION)
        found.append(Measurement("trained", "Trained", "trained", record.get("metrics", {}), learned))
        if "metrics_before" in record:
            name = "After the head start" if "head" in record else "Before training"
            found.append(Measurement("before", name, "before", record["metrics_before"]))
    evaluations: list[tuple[str, float, Record]] = []
    for path in sorted((folder / EVALUATIONS).glob(f"*/{METRICS}")):
        try:
            evaluations.append((path.parent.name, path.stat().st_mtime, {**json.loads(path.read_bytes())}))
        except (ValueError, TypeError):
            notes.append(f"{path.parent.name}: its {METRICS} cannot be read")
    newest = max(evaluations, key=lambda one: one[1], default=("", 0.0, {}))[2]
    store = (newest if record is None else record).get("store_fingerprint")
    for label, _, other in evaluations:
        try:
            measurement = _evaluation(label, other, record, store)
            if not isinstance(measurement, str):
                measurement = replace(measurement, learned_validation=other.get(TRAINED_ON_VALIDATION))
        except (ValueError, KeyError, TypeError, AttributeError):
            notes.append(f"{label}: its {METRICS} cannot be read")
            continue
        if isinstance(measurement, str):
            notes.append(measurement)
        else:
            _add(found, measurement)
    known = list(BASELINES)
    places = {label: place for place, label in enumerate(known)}
    found.sort(key=lambda one: (KINDS.index(one.kind), places.get(one.label, len(known)), one.name))
    return found, sorted(notes)


def _add(found: list[Measurement], one: Measurement) -> None:
    """Add a measurement; what was measured again of the run's own only adds what its record lacks."""
    place = next((place for place, own in enumerate(found) if own.label == one.label and one.label in OWN), None)
    if place is None:
        found.append(one)
    else:
        found[place] = replace(found[place], metrics=_merged(found[place].metrics, one.metrics))


def _merged(ours: Record, theirs: Record) -> Record:
    """Ours, and what theirs has beyond it; nothing of theirs where the two are of other users or lists."""
    if any(ours.get(of) != theirs.get(of) for of in ("users", "kept", "cut")):
        return ours
    both = {
        name: _merged(value, theirs[name])
        for name, value in ours.items()
        if isinstance(value, dict) and isinstance(theirs.get(name), dict)
    }
    return {**ours, **both, **{name: value for name, value in theirs.items() if name not in ours}}


def _evaluation(label: str, other: Record, record: Record | None, ours: str | None) -> Measurement | str:
    """An evaluation, under a label of `OWN` where the run's record tells of the same; a note if it is of other data.

    Args:
        ours: fingerprint of the store whose figures are shown.
    """
    theirs = other.get("store_fingerprint")
    if ours and theirs and ours != theirs:
        return f"{label}: measured on another store ({theirs}), so it is not shown"
    length = other.get("text_length")
    same_length = record is None or length is None or length == record.get("text_length")
    suffix = "" if same_length else f" ({length} tokens)"
    label = str(other.get("label") or label)
    if label in BASELINES or label.startswith("baseline-"):
        name = BASELINES.get(label, label.removeprefix("baseline-").replace("_", " "))
        return Measurement(label, name + suffix, "baseline", other["metrics"])
    stem = label.removesuffix(f"-{length}")
    if stem == "model":
        own = record is not None and same_length
        return Measurement("trained" if own else label, f"Trained{suffix}", "trained", other["metrics"])
    if stem == "untouched":
        if "init_from" in (record or {}):  # before training was what it names
            return Measurement(label, f"Untouched encoder{suffix}", "other", other["metrics"])
        own = record is not None and same_length and "metrics_before" in record and "head" not in record
        return Measurement("before" if own else label, f"Untouched encoder{suffix}", "before", other["metrics"])
    return Measurement(label, _model_name(str(other.get("model", stem))) + suffix, "other", other["metrics"])


def _model_name(model: str) -> str:
    """A model's folder, or the run's that it lies in."""
    path = Path(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def rows(measurements: list[Measurement]) -> list[Record]:
    """One row a model, split, ranking and domain (`""`: all users).

    Returns:
        `{key, name, kind, split, ranking, domain, of, users, candidates, metrics: {name: [mean, low, high]},
        shown: {k, coverage, gini, popularity, target_popularity}, learned_validation}`, and `kept` and `cut` where
        candidates were dropped once ranked; test before validation. Rows of one `key` may be held against each other:
        `of` tells those apart that are of the users of other domains, or whose rankings were cut at another length.
    """
    flat: list[Record] = []
    for one in measurements:
        for split, rankings in one.metrics.items():
            for ranking, record in rankings.items():
                if ranking == "filtered" and "kept" not in record:
                    ranking = "window"  # of a version that ranked these alone and named it so
                for domain, part in {"": record, **record.get("domains", {})}.items():
                    flat.append({"name": one.name, "kind": one.kind, "split": split, "ranking": ranking})
                    flat[-1] |= {"domain": domain, "domains": sorted(record.get("domains", ())) if not domain else []}
                    flat[-1] |= {"learned_validation": one.learned_validation, **_figures(part)}
    for row in flat:
        alike = [other for other in flat if all(other[key] == row[key] for key in ("split", "ranking", "domain"))]
        domains = ", ".join(row["domains"]) if any(other["domains"] != row["domains"] for other in alike) else ""
        cuts = {other.get("cut") for other in alike}
        cut = f"first {row['cut']}" if len(cuts) > 1 and "cut" in row else ""
        row["of"] = ", ".join(filter(None, (domains, cut)))
        row["key"] = "|".join([row["split"], row["ranking"], row["domain"], *([row["of"]] if row["of"] else [])])
    return sorted(flat, key=lambda row: (row["split"] != "test", row["split"]))  # stable: models stay in order


def _figures(record: Record) -> Record:
    metrics = {
        name: [value["mean"], value["low"], value["high"]]
        for name, value in record.items()
        if isinstance(value, dict) and "mean" in value and math.isfinite(value["mean"])
    }
    shown: Record = {}
    for name, value in record.items():
        stem, _, k = name.partition("@")
        if stem in SHOWN and isinstance(value, float):
            shown |= {stem: value} | ({"k": int(k)} if k else {})
    return {
        "users": record.get("users", 0),
        "candidates": record.get("candidates", 0),
        **{name: record[name] for name in ("kept", "cut") if name in record},
        "metrics": metrics,
        "shown": shown,
    }
