"""Tables of any catalog size for the scale benchmarks: every item has text and an interaction, so none falls away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beeray.data.generated_catalog import GeneratedCatalog, item_ids
from beeray.data.generated_interactions import GeneratedInteractions

SEED = 1


def write_tables(work: Path, *, num_users: int, num_items: int, num_interactions: int, mean_tokens: float) -> None:
    """Write `work/catalog` and `work/interactions`.

    Args:
        num_interactions: about so many: one an item, dealt to the users in turn, the others by popularity.
    """
    GeneratedCatalog(num_items, SEED, mean_tokens=mean_tokens).write(work / "catalog", num_files=8)
    made = GeneratedInteractions(num_users, num_items, num_interactions - num_items, SEED, item_names=True)
    made.write(work / "interactions", num_files=2)
    items = np.random.default_rng(SEED).permutation(num_items)
    one_each = {"user_id": np.arange(num_items) % num_users, "item_id": item_ids(items)}
    rest = {"value": np.full(num_items, 5.0), "timestamp": np.full(num_items, 10**9)}
    pq.write_table(pa.table(one_each | rest), work / "interactions" / "part-of-all-items.parquet")


def tables_config(work: Path) -> dict[str, Any]:
    """The `data` section for these tables; every value is kept."""
    return {
        "source": "tables",
        "catalog": {"path": str(work / "catalog"), "template": "{title}. {description}"},
        "interactions": {"path": str(work / "interactions"), "value": "value", "timestamp": "timestamp"},
        "min_value": None,
    }
