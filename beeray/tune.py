"""`python -m beeray.tune --config C`: search the config's `tune.space` with trials that are training runs of their own.

The store and the token store are prepared once. Run again, a sweep goes on where it was killed.
"""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    parser = verb_parser("tune", "Search hyper-parameters on the validation split; run again to resume.")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier sweep of this name left")
    parser.add_argument("--retry-failed", action="store_true", help="run trials again that failed")
    return run_verb("tune", parser)


if __name__ == "__main__":
    sys.exit(main())
