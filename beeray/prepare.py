"""`python -m beeray.prepare --config C`: raw tables → prepared store."""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    return run_verb("prepare", verb_parser("prepare", "Raw tables to a prepared store."))


if __name__ == "__main__":
    sys.exit(main())
