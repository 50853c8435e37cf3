"""`python -m beeray.demo`: in a few minutes and one screen, what training on interactions does to an encoder.

It is `beeray.train` on a generated shop (`data/sources/shop.py`) and nothing else; then it shows metrics
on products that training never saw, and the neighbours of three of them, before and after.
"""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    parser = verb_parser("demo", "What training on interactions does to an encoder, in one screen.")
    parser.set_defaults(config="demo.yaml", fresh=False)
    for action in parser._actions:
        if action.dest == "config":
            action.required = False
    parser.add_argument("--fresh", action="store_true", help="train anew")
    return run_verb("demo", parser)


if __name__ == "__main__":
    sys.exit(main())
