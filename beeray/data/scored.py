"""What was scored, read back: a run's or an evaluation's folder, with its users' metrics and the store they are of.

runs/<name>/metrics.json, scores.parquet                         what a run scored at its end
runs/<name>/scores-before.parquet                                and before training, named `<run>:before`
runs/<name>/evaluations/<label>/metrics.json, scores.parquet     what was scored since, named `<run>:<label>`
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from beeray.config.paths import found, from_root
from beeray.data.parts import read_part
from beeray.errors import RunError

KEYS = ("user_index", "split", "ranking", "domain")
"""Columns of scores that are no metric."""
METRICS, SCORES, EVALUATIONS = "metrics.json", "scores.parquet", "evaluations"
OLD_ITEMS_DIGEST, TRAINED_ON_VALIDATION = "old_items_digest", "trained_on_validation"
"""What records say of what their rankings mean, where it is known."""
SEEN, SEEN_BEFORE = "held_out_but_trained_on", "held_out_but_trained_on_before"
"""How much of what is held out the encoder was trained on, by split: of an evaluation, of a run's `init_from`."""
INIT_TRAINED_ON_VALIDATION = "init_trained_on_validation"
"""The same of what a run began with, in its run.json."""
BEFORE, BEFORE_FILES = "before", ("run.json", "scores-before.parquet")
TEXT_LENGTH = re.compile(r"-\d+$")
"""What an evaluation's label ends in unless it is a baseline's: tokens of a text."""


@dataclass(frozen=True)
class Scored:
    """One system's scores.

    Attributes:
        run: name of the run's folder.
        label: of the evaluation; empty for what the run scored at its end.
        folder: where the scores lie.
        store_fingerprint: of the store whose users were scored.
        table: user_index, split, ranking, perhaps domain, one float64 column a metric.
        old_items: digest of the list by which `old_items` and `new_items` were told apart; None where it is not known.
        trained_on_validation: whether the system learned from validation data; None where it is not known.
        drops_once_ranked: whether `filtered` ranks the catalog and then drops items, as versions before did not; None
            where it is not known.
        filtered_cut: how many of the catalog's ranking `filtered` leaves before it drops some; None where it is not
            known.
        seen: how much of what is held out the encoder was trained on in earlier runs, by split.
    """

    run: str
    label: str
    folder: Path
    store_fingerprint: str
    table: pa.Table
    old_items: str | None = None
    trained_on_validation: bool | None = None
    drops_once_ranked: bool | None = None
    filtered_cut: int | None = None
    seen: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `compare` takes it: `<run>` or `<run>:<label>`."""
        return f"{self.run}:{self.label}" if self.label else self.run


def open_scored(reference: str, runs_dir: str = "runs") -> Scored:
    """Open scores by name.

    Args:
        reference: a run's folder or its name in `runs_dir`, an evaluation's folder, or `RUN:LABEL`. A label may leave
            out the text length that it ends in where that is unambiguous.

    Raises:
        RunError: nothing of that name, not finished, damaged, or scores that are no numbers.
    """
    folder = _existing(reference, runs_dir)
    if folder is not None:
        inside = folder.parent.name == EVALUATIONS
        return _opened(folder, folder.parent.parent.name if inside else folder.name, folder.name if inside else "")
    run, colon, label = reference.rpartition(":")
    home = _existing(run, runs_dir) if colon else None
    if home is None:
        raise RunError(
            f"{reference!r}: no such folder, here or in {runs_dir}; give a run's folder or name, a folder under its "
            f"{EVALUATIONS}/, or RUN:LABEL"
        )
    if label == BEFORE:
        return _opened(home, home.name, BEFORE, BEFORE_FILES)
    return _opened(_evaluation(home, label), home.name, label)


def _existing(reference: str, runs_dir: str) -> Path | None:
    if not reference:
        return None
    return next((path for path in (found(reference), from_root(runs_dir) / reference) if path.is_dir()), None)


def _evaluation(home: Path, label: str) -> Path:
    folder = home / EVALUATIONS / label
    if label and folder.is_dir():
        return folder
    there = sorted(path.name for path in (home / EVALUATIONS).glob("*") if path.is_dir())
    fitting = [name for name in there if TEXT_LENGTH.sub("", name) == label]
    if len(fitting) == 1:
        return home / EVALUATIONS / fitting[0]
    why = "several evaluations of that label" if fitting else "no evaluation of that label"
    raise RunError(f"run {home}: {why} {label!r}; there are: {', '.join(there) or 'none'}")


def _opened(folder: Path, run: str, label: str, files: tuple[str, str] = (METRICS, SCORES)) -> Scored:
    record, scores = (folder / name for name in files)
    missing = next((path for path in (record, scores) if not path.is_file()), None)
    if missing is not None:
        raise RunError(f"{folder}: {missing.name} is not there: nothing was scored, or the run is not finished")
    try:
        about = json.loads(record.read_text(encoding="utf-8"))
        fingerprint = str(about["store_fingerprint"])
        filtered = [one["filtered"] for one in about.get("metrics", {}).values() if "filtered" in one]
        drops = all("kept" in one for one in filtered) if filtered else None
        cut = max((one["cut"] for one in filtered if "cut" in one), default=None)
        seen = {**(about.get(SEEN) or (about.get("init_from") or {}).get(SEEN_BEFORE) or {})}
        table = read_part(str(scores.absolute()))
        missing_columns = {"user_index", "split", "ranking"} - set(table.column_names)
        if missing_columns:
            raise KeyError(", ".join(sorted(missing_columns)))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = (str(error).splitlines() or ["empty"])[0]
        raise RunError(
            f"{folder}: {record.name} or {scores.name} is damaged ({reason[:200]}); score it again"
        ) from None
    _refuse_no_numbers(table, scores)
    learned = about.get(INIT_TRAINED_ON_VALIDATION if label == BEFORE else TRAINED_ON_VALIDATION)
    return Scored(run, label, folder, fingerprint, table, about.get(OLD_ITEMS_DIGEST), learned, drops, cut, seen)


def _refuse_no_numbers(table: pa.Table, path: Path) -> None:
    """Refuse metrics that are null, NaN or infinite: every comparison with one would call the system worse."""
    for name in table.column_names:
        if name in KEYS:
            continue
        kind = table[name].type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise RunError(f"{path}: column {name!r} is of type {kind}; it must be a number a user: score it again")
        finite = pc.fill_null(pc.is_finite(pc.cast(table[name], pa.float64())), False)
        number = len(finite) - (pc.sum(finite).as_py() or 0)
        if number:
            of = f"{number:,} of {len(finite):,} values are no finite numbers"
            raise RunError(f"{path}: column {name!r}: {of}; score it again")
