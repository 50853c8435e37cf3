"""`python -m beeray.report RUN_FOLDER`, or `--config C`: write a run's `report.html` again from what is in its folder.

Training and evaluation write it by themselves. This needs no Ray, no GPU and no store.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from beeray.config.paths import found
from beeray.console import run_verb, verb_parser
from beeray.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = verb_parser("report", "Write a run's report.html again, from its folder alone.")
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_verb("report", parser, argv=[part for one in arguments for part in _expanded(one)])


def _expanded(argument: str) -> list[str]:
    """A run's folder as the config in it, wherever the folder lies now; anything else as it is."""
    try:
        folder = found(argument)
    except ConfigError:  # the config's loading says it
        return [argument]
    if "=" in argument or not (folder / "config.yaml").is_file():
        return [argument]
    place = {"name": folder.name, "runs_dir": str(folder.parent)}
    return [
        "--config",
        str(folder / "config.yaml"),
        *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in place.items()),
    ]


if __name__ == "__main__":
    sys.exit(main())
