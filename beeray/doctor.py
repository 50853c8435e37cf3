"""`python -m beeray.doctor --config C`: everything a run needs, tried in half a minute before it is paid for."""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from beeray.config import Config
from beeray.console import EXIT_USER_ERROR, Console, run_parsed, verb_parser

TIMEOUT_S = 30.0


def main() -> int:
    """The command; 2 when a check failed, with the record on stdout all the same."""
    parser = verb_parser("doctor", "Try everything that a run of a config needs; writes nothing but probes.")
    parser.add_argument(
        "--timeout-s", type=float, default=TIMEOUT_S, help="seconds a check may take, starting workers twice that"
    )
    parser.add_argument(
        "--grow", action="store_true", help="first have an autoscaling cluster start the nodes that the run will need"
    )
    arguments = parser.parse_intermixed_args()  # before anything is made: it ends the command at --help or a mistake
    log = Path(tempfile.mkdtemp(prefix="beeray-doctor-")) / "doctor.log"

    def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
        record: dict[str, Any] = importlib.import_module("beeray.verbs.doctor").execute(config, arguments, console)
        if not record["passed"] and log.is_file():
            console.line(f"what the libraries said: {log}")
        return record

    code = run_parsed(
        "doctor", arguments, execute, log=log, exit_code=lambda record: 0 if record["passed"] else EXIT_USER_ERROR
    )
    if code == 0 or not log.is_file():
        shutil.rmtree(log.parent, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
