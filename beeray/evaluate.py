"""`python -m beeray.evaluate --config C [--model PATH]`: score an encoder on a config's held-out data."""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    parser = verb_parser("evaluate", "Score an encoder on held-out interactions.")
    parser.add_argument("--model", help="folder or hub name; 'untouched': before training; default: what was trained")
    return run_verb("evaluate", parser)


if __name__ == "__main__":
    sys.exit(main())
