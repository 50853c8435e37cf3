"""`python -m beeray.baselines --config C [--only ease,item_knn]`: what a fine-tuned encoder must beat."""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    parser = verb_parser("baselines", "Fit and score baselines as the encoder is scored, and compare all.")
    parser.add_argument("--only", metavar="NAMES", help="only these, by commas; default: baselines.which")
    parser.add_argument("--fresh", action="store_true", help="fit again what is there already")
    return run_verb("baselines", parser)


if __name__ == "__main__":
    sys.exit(main())
