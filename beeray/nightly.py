"""`python -m beeray.nightly --config C`: continue from the serving model, evaluate both, publish if not worse.

Run again, it goes on with the night that it was at, wherever it was killed. Exit code 3: the gate refused.
"""

from __future__ import annotations

import sys

from beeray.console import run_verb, verb_parser

EXIT_REFUSED = 3


def main() -> int:
    """The command."""
    parser = verb_parser("nightly", "Continue training from the serving model, and publish the new one if not worse.")
    parser.add_argument("--night", metavar="YYYY-MM-DD", help="the night's name; default: today's date in UTC")
    parser.add_argument("--fresh", action="store_true", help="forget what this night did, unless it has published")
    return run_verb("nightly", parser, exit_code=lambda record: 0 if record["published"] else EXIT_REFUSED)


if __name__ == "__main__":
    sys.exit(main())
