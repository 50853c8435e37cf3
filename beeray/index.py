"""`python -m beeray.index --config C [--version V]`: a FAISS index of published embeddings, and how good it is.

Starts no Ray and imports no torch: the work is one process reading files.
"""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    parser = verb_parser("index", "Build a FAISS index of published embeddings and measure its recall.")
    parser.add_argument("--version", help="an earlier version of the publication; default: the one that is served")
    return run_verb("index", parser)


if __name__ == "__main__":
    sys.exit(main())
