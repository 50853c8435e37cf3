"""Rankings beside the usual ones: with a prefix of the embeddings, and of items that an earlier run knew or did not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from beeray.core.elsa import normalize_rows

UserRows = tuple[NDArray[np.int64], sparse.csr_matrix, sparse.csr_matrix]
"""user indices, history, targets."""


def prefixes(embeddings: Tensor, widths: tuple[int, ...], ranking: str) -> Iterator[tuple[str, Tensor]]:
    """`held_out@64` and such, with the embeddings cut and scaled again; widths that cut nothing are left out."""
    for width in widths:
        if width < embeddings.shape[1]:
            yield f"{ranking}@{width}", normalize_rows(embeddings[:, :width])


def item_groups(old_items: NDArray[np.bool_] | None) -> dict[str, NDArray[np.bool_]]:
    """`old_items` and `new_items`: which items are asked for; candidates stay the same. Empty without a warm start."""
    return {} if old_items is None else {"old_items": old_items, "new_items": ~old_items}


def asked_for(blocks: Iterator[UserRows], group: NDArray[np.bool_]) -> Iterator[UserRows]:
    """Blocks with only those targets that are of a group, and without users who have none."""
    mask = sparse.diags(group.astype(np.float32))
    for users, history, targets in blocks:
        wanted = (targets @ mask).tocsr()
        wanted.eliminate_zeros()
        kept = np.flatnonzero(np.diff(wanted.indptr))
        if len(kept):
            yield users[kept], history[kept], wanted[kept]
