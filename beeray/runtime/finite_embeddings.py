"""Embeddings that are no finite numbers are refused before anything is scored by them.

Such an item would come first for every user, and whoever has had it would have no ranking at all; the figures stay
finite, so nothing else would tell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from beeray.core.elsa import not_finite_rows
from beeray.data.store import Store
from beeray.errors import NotFiniteError

SHOWN_IDS, SHOWN_SIGNS = 3, 60
REMEDY = "give another encoder, or train.precision: fp32, or correct the texts of these items"


def check_finite(
    embeddings: Tensor,
    store: Store,
    items: NDArray[np.int32] | None = None,
    *,
    whose: str = "the encoder",
    remedy: str = REMEDY,
) -> None:
    """Refuse embeddings that are no finite numbers. Not collective: ranks that have the same ones raise alike.

    Args:
        embeddings: (items, d), before they are normalised: a length that overflows leaves zeros.
        items: item indices of the rows; the whole catalog unless given.
        whose: what made them.

    Raises:
        NotFiniteError: how many and which.
    """
    bad = not_finite_rows(embeddings).cpu().numpy()
    if not len(bad):
        return
    first = bad[:SHOWN_IDS] if items is None else items[bad[:SHOWN_IDS]]
    ids = [_shown(one) for one in store.item_ids().take(first).to_pylist()]
    more = ", …" if len(bad) > SHOWN_IDS else ""
    raise NotFiniteError(
        f"{whose}: embeddings of {len(bad):,} of {len(embeddings):,} items are no finite numbers "
        f"({', '.join(ids)}{more}), and no user could be scored by them",
        remedy,
    )


def _shown(item_id: object) -> str:
    text = item_id if isinstance(item_id, str) else str(item_id)
    return repr(text if len(text) <= SHOWN_SIGNS else f"{text[:SHOWN_SIGNS]}…")
