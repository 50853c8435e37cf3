"""What `beeray.compare` does: which of several systems ranks better, and how sure that is.

Starts no Ray and imports no torch: the work is one process reading files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from beeray.console import Console
from beeray.data.scored import open_scored
from beeray.errors import RunError
from beeray.runtime.comparison import MOST_ASKED, Choice, Settings, compare
from beeray.runtime.comparison_table import comparison_csv, comparison_text

WRITERS = {".json": lambda record: json.dumps(record, indent=2) + "\n", ".csv": comparison_csv}


def execute(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare all systems with the first; prints the table, and writes it where `--out` says."""
    settings = checked_settings(arguments)
    out = Path(arguments.out) if arguments.out else None
    if out is not None and out.suffix not in WRITERS:
        raise RunError(f"--out {arguments.out!r}: its end says what is written; give one of {', '.join(WRITERS)}")
    if len(arguments.runs) < 2:
        raise RunError(f"{arguments.runs[0]!r} alone: give at least two runs or evaluations, the reference first")
    choice = Choice(tuple(arguments.split or ()), tuple(arguments.ranking or ()), tuple(arguments.metric or ()))
    record = compare([open_scored(run, arguments.runs_dir) for run in arguments.runs], choice, settings)
    console.show(comparison_text(record))
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(WRITERS[out.suffix](record), encoding="utf-8")
        except OSError as error:
            raise RunError(f"--out {arguments.out!r}: {error.strerror}; give a file that can be written") from None
        console.line(f"written: {out}")
    return record


def checked_settings(arguments: argparse.Namespace) -> Settings:
    """The settings of the command line; RunError where one is out of range."""
    if arguments.num_bootstrap < 100:
        raise RunError(f"--num-bootstrap {arguments.num_bootstrap}: p cannot be smaller than 2 / it; give 100 or more")
    if arguments.num_bootstrap > MOST_ASKED:
        raise RunError(f"--num-bootstrap {arguments.num_bootstrap:,}: give {MOST_ASKED:,} at most; 10,000 is usual")
    if not 0 < arguments.alpha < 1:
        raise RunError(f"--alpha {arguments.alpha:g}: must be between 0 and 1, e.g. 0.05")
    if arguments.seed < 0:
        raise RunError(f"--seed {arguments.seed}: must be 0 or more")
    return Settings(arguments.num_bootstrap, arguments.seed, arguments.alpha)
