"""`python -m beeray.embed --config C`: a catalog → published embeddings, encoding only what changed."""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    parser = verb_parser("embed", "Embed a catalog and publish it; only what changed is encoded.")
    parser.add_argument("--model", help="folder or hub name; 'untouched': before training; default: embed.model")
    return run_verb("embed", parser)


if __name__ == "__main__":
    sys.exit(main())
