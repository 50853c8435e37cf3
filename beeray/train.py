"""`python -m beeray.train --config C`: fine-tune an encoder on interactions, from raw tables to a model folder.

Prepares the store and the token store if they are missing or stale, trains on Ray Train workers under
DeepSpeed, resumes what was interrupted, exports, scores, tracks.
"""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser


def main() -> int:
    """The command."""
    parser = verb_parser("train", "Fine-tune a sentence transformer on interactions; run again to resume.")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run of this name left")
    return run_verb("train", parser)


if __name__ == "__main__":
    sys.exit(main())
