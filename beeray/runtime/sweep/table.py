"""The sweep as a table: on the console, and as trials.csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from beeray.runtime.sweep.folder import Trial, ranked
from beeray.runtime.whole_files import write_whole

SHOWN_TRIALS = 20


def shown(value: Any) -> str:
    """A value as a person reads it: five digits of a number."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def write_table(path: Path, trials: list[Trial], keys: list[str], metric: str, mode: str) -> None:
    """Write all trials, the best first, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["trial", "status", metric, "epochs", *keys, "wall_s", "mlflow_run_id", "reason"])
    for trial in ranked(trials, mode):
        values = [trial.values.get(key) for key in keys]
        ends = [round(trial.wall_s, 1), trial.mlflow_run_id or "", trial.reason or ""]
        metric_value = "" if trial.metric is None else repr(trial.metric)
        writer.writerow([trial.name, trial.status, metric_value, len(trial.epochs), *values, *ends])
    write_whole(path, text.getvalue())


def table_lines(trials: list[Trial], keys: list[str], metric: str, mode: str) -> list[str]:
    """The best trials in columns."""
    rows = [["trial", "status", metric, "epochs", *keys]]
    order = ranked(trials, mode)
    for trial in order[:SHOWN_TRIALS]:
        figure = "" if trial.metric is None else f"{trial.metric:.4f}"
        own = [shown(trial.values.get(key)) for key in keys]
        rows.append([trial.name, trial.status, figure, str(len(trial.epochs)), *own])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(order) > SHOWN_TRIALS:
        lines.append(f"and {len(order) - SHOWN_TRIALS} more in trials.csv")
    return lines
