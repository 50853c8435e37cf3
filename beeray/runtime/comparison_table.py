"""A comparison as a person reads it, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

COLUMNS = ("split", "ranking", "domain", "users", "metric", "system", "mean", "low", "high")
DIFFERENCE_COLUMNS = ("difference", "difference_low", "difference_high", "relative", "p", "p_holm", "verdict")


def comparison_text(record: dict[str, Any]) -> str:
    """An aligned table of what `comparison.compare` found, the method in its last lines."""
    width = max(len(one["name"]) for one in record["systems"])
    lines: list[str] = []
    for table in record["tables"]:
        domain = f", {table['domain']}" if "domain" in table else ""
        domain = f", all of {', '.join(table['domains'])}" if "domains" in table else domain
        left_out = f" ({table['users_left_out']:,} left out)" if "users_left_out" in table else ""
        lines += [f"{table['split']}, {table['ranking']}{domain}: {table['users']:,} users{left_out}"]
        for metric, rows in table["metrics"].items():
            lines += [f"  {metric}", *(f"    {_row_text(row, width, record['num_bootstrap'])}" for row in rows)]
        lines.append("")
    return "\n".join([*lines, *_method(record)])


def _row_text(row: dict[str, Any], width: int, num_bootstrap: int) -> str:
    shown = f"{row['system']:<{width}}  {row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
    if "difference" not in row:
        return f"{shown}  reference"
    difference = row["difference"]
    relative = f"{row['relative']:+.1%}" if row["relative"] is not None else "–"
    smallest = 2 / (num_bootstrap + 1)
    return (
        f"{shown}  {difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]  {relative:>8}"
        f"  p {_p_text(row['p'], smallest)}  Holm {_p_text(row['p_holm'], 0.0)}  {row['verdict']}"
    )


def _p_text(p: float, smallest: float) -> str:
    return f"≤{p:.4f}" if p <= smallest else f" {p:.4f}"


def _method(record: dict[str, Any]) -> list[str]:
    number = record["hypotheses"]
    unlike = [f"{why}." for why in record.get("not_alike", ())]
    unlike += [f"Warning: {what}." for what in record.get("warnings", ())]
    if not number:
        return unlike
    over = f"the {number} hypotheses of this table" if number > 1 else "the one hypothesis of this table"
    asked = record.get("num_bootstrap_asked")
    least = f", the least that can decide so many hypotheses: {asked:,} could not" if asked is not None else ""
    return [
        f"Differences from {record['reference']}. 95 % intervals and two-sided p: paired bootstrap, "
        f"{record['num_bootstrap']:,} resamples of users (seed {record['seed']}){least}.",
        f"Holm's correction over {over}; verdicts at {record['alpha']:g} by the corrected p; intervals are not "
        "corrected.",
        *unlike,
    ]


def comparison_csv(record: dict[str, Any]) -> str:
    """One line a split, ranking, metric and system; the reference's differences are empty, and so is the domain of
    all."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*COLUMNS, *DIFFERENCE_COLUMNS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat_rows(record))
    return stream.getvalue()


def _flat_rows(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for table in record["tables"]:
        where = {name: table[name] for name in COLUMNS[:4] if name in table}
        for metric, rows in table["metrics"].items():
            for row in rows:
                flat = {**where, "metric": metric, **row}
                difference = flat.pop("difference", None)
                if difference is not None:
                    flat["difference"] = difference["mean"]
                    flat |= {f"difference_{end}": difference[end] for end in ("low", "high")}
                yield flat
