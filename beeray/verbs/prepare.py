"""What `beeray.prepare` does: raw tables → prepared store."""

from __future__ import annotations

import argparse
import time
from typing import Any

from beeray.config import Config
from beeray.console import Console
from beeray.inputs import prepared_store
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.session import ray_session


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Prepare the store of a config, unless it is there and up to date; returns what was made."""
    check_outlives_job(config, "data.store")
    started = time.monotonic()
    sources = " + ".join(f"{one.domain} ({one.source})" for one in config.data.single_sources())
    console.line(
        f"prepare {config.name}: {sources if config.data.domains else config.data.source} → {config.store_path}"
    )
    with ray_session(config.cluster, config.storage):
        store, prepared = prepared_store(config, console)
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
        **({"held_out_twins": store.meta.held_out_twins} if store.meta.held_out_twins else {}),
        **({"domains": store.meta.by_domain} if store.meta.by_domain else {}),
        "seconds": round(time.monotonic() - started, 1),
    }
