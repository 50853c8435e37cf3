"""`python -m beeray.protocol --config C`: train, score, fit baselines, compare; cold start, time split or zero-shot."""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    parser = verb_parser("protocol", "Train, score, fit the baselines and compare, in one command.")
    parser.add_argument("--fresh", action="store_true", help="start the run and the baselines over")
    return run_verb("protocol", parser)


if __name__ == "__main__":
    sys.exit(main())
