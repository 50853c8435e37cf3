"""`python -m beeray.prepare --config C`: raw tables → prepared store."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from beeray.config import Config
from beeray.console import Console, StageReporter, run_verb, verb_parser
from beeray.data.preparation import ensure_store
from beeray.data.store import Store
from beeray.runtime.session import ray_session


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Prepare the store of a config, unless it is there and up to date; returns what was made."""
    started = time.monotonic()
    console.line(f"prepare {config.name}: {config.data.source} → {config.store_path}")
    with ray_session(config.cluster):
        store, prepared = prepare(config, console)
    return {
        "store": store.path,
        "prepared": prepared,
        "fingerprint": store.meta.fingerprint,
        "users": store.meta.num_users,
        "items": store.meta.num_items,
        "interactions": store.meta.num_interactions,
        "split": store.meta.split_kind,
        "items_by_split": store.meta.items,
        "interactions_by_split": store.meta.interactions,
        "dropped": store.meta.dropped,
        "seconds": round(time.monotonic() - started, 1),
    }


def prepare(config: Config, console: Console) -> tuple[Store, bool]:
    """The store of a config and whether it was made now, with progress. Ray must be running."""
    reporter = StageReporter(console)
    try:
        store, prepared = ensure_store(config, reporter)
    finally:
        reporter.close()
    meta = store.meta
    state = "prepared" if prepared else "up to date"
    console.line(
        f"store {state}: {meta.num_users:,} users, {meta.num_items:,} items, {meta.num_interactions:,} interactions; "
        f"{meta.split_kind} split, items {_counts(meta.items)}, interactions {_counts(meta.interactions)}"
    )
    return store, prepared


def _counts(labels: dict[str, int]) -> str:
    return " / ".join(f"{number:,} {name}" for name, number in labels.items())


def main() -> int:
    """The command."""
    return run_verb("prepare", verb_parser("prepare", "Raw tables to a prepared store."), execute)


if __name__ == "__main__":
    sys.exit(main())
