"""What the page's explorer and map need: neighbours, partners and places of a report's items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beeray.data.report_items import ORIGINAL, TRAINED, ReportItems, read_embeddings, read_items
from beeray.reporting.catalog_map import group, kept_layout
from beeray.reporting.neighbours import bought_together, nearest, users_in_common

NUM_NEIGHBOURS = 10


def explorer_data(folder: Path, *, layout: str, seed: int) -> dict[str, Any] | None:
    """All of it, as plain lists; None where the run kept no items, or no encoder's embeddings of them.

    Args:
        folder: the run's `report/`.
        layout: `tsne` or `pca`.
    """
    items = read_items(folder)
    if items is None or len(items) < 2:
        return None
    encoders: dict[str, Any] = {}
    layout_before: NDArray[np.float32] | None = None
    for name in (ORIGINAL, TRAINED):
        embeddings = read_embeddings(folder, name, len(items))
        if embeddings is None:
            continue
        kept = folder / f"{name}-map.npz"
        layout_before = places_on_map = kept_layout(kept, embeddings, layout, seed, layout_before)
        grouped = embeddings  # of the trained encoder, if it is there
        places, cosines = nearest(embeddings, NUM_NEIGHBOURS)
        encoders[name] = {
            "places": places.tolist(),
            "cosines": np.round(cosines.astype(np.float64), 3).tolist(),
            "common": users_in_common(items.together, places).tolist(),
            "x": np.round(places_on_map[:, 0].astype(np.float64), 3).tolist(),
            "y": np.round(places_on_map[:, 1].astype(np.float64), 3).tolist(),
        }
    if not encoders:
        return None
    groups = group(grouped, seed).tolist()
    return {"items": _columns(items) | {"group": groups}, "encoders": encoders, "counted_users": items.counted_users}


def _columns(items: ReportItems) -> dict[str, Any]:
    partners = bought_together(items.together, items.num_users, NUM_NEIGHBOURS)
    return {
        "id": items.item_id,
        "text": items.text,
        "domain": items.domain,
        "split": items.split,
        "users": items.num_users.tolist(),
        "training_users": items.num_training_users.tolist(),
        "together": [[place for place, _, _ in row] for row in partners],
        "together_users": [[common for _, common, _ in row] for row in partners],
        "together_score": [[round(score, 3) for _, _, score in row] for row in partners],
    }
