"""`python -m beeray.compare RUN_A RUN_B …`: which system ranks better, and how sure that is."""

from __future__ import annotations

import argparse
import sys

from beeray.console import run_without_config


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m beeray.compare",
        description="Paired bootstrap over users, with Holm's correction; all systems are compared with the first.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder or name, an evaluation's folder, or RUN:LABEL"
    )
    parser.add_argument("--runs-dir", default="runs", help="where names of runs are looked up")
    parser.add_argument("--split", action="extend", nargs="+", help="only these splits; default: all that all have")
    parser.add_argument("--ranking", action="extend", nargs="+", help="only these rankings")
    parser.add_argument("--metric", action="extend", nargs="+", help="only these metrics, e.g. ndcg@100")
    parser.add_argument("--num-bootstrap", type=int, default=10_000, help="resamples of users")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument("--alpha", type=float, default=0.05, help="chance of any false finding in the table")
    parser.add_argument("--out", metavar="FILE", help="write the table, too: FILE.json or FILE.csv")
    return run_without_config("compare", parser)


if __name__ == "__main__":
    sys.exit(main())
