"""Who has which items: a rank's users of one step, and what is left of them in the step's list of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class UserItems:
    """The items of a rank's users of one step, as CSR.

    Attributes:
        indptr: int64 (users + 1,).
        indices: int32 (interactions,), distinct item indices of user `u` at `indptr[u]:indptr[u + 1]`.
        user_index: int32 (users,), who they are in the store; None where that is not known.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    user_index: NDArray[np.int32] | None = None

    @property
    def num_users(self) -> int:
        """Rows."""
        return len(self.indptr) - 1

    def take(self, rows: NDArray[np.int64]) -> UserItems:
        """Some of the users, in the order given."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - self.indptr[:-1][rows], lengths)
        return UserItems(indptr, self.indices[places], None if self.user_index is None else self.user_index[rows])

    def slice(self, first: int, last: int) -> UserItems:
        """Some of the users, one after the other."""
        indptr = self.indptr[first : last + 1]
        named = None if self.user_index is None else self.user_index[first:last]
        return UserItems(indptr - indptr[0], self.indices[indptr[0] : indptr[-1]], named)


def concatenate_users(parts: Sequence[UserItems]) -> UserItems:
    """Users one after the other."""
    parts = [part for part in parts if part.num_users] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [part.indptr[-1] for part in parts])
    indptr = np.concatenate([[0], *[part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)]])
    named = [part.user_index for part in parts if part.user_index is not None]
    return UserItems(
        indptr,
        np.concatenate([part.indices for part in parts]),
        np.concatenate(named) if len(named) == len(parts) else None,
    )


def restrict_columns(users: UserItems, items: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Users' items as columns of the step's item list; items that were not drawn fall away.

    Returns:
        CSR over the step's columns: indptr int64 (users + 1,), columns int64 (kept interactions,).
    """
    order = np.argsort(items, kind="stable")
    ranked = items[order]
    places = np.minimum(np.searchsorted(ranked, users.indices), len(ranked) - 1)
    kept = ranked[places] == users.indices
    indptr = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[users.indptr]
    return indptr, order[places[kept]]


def dense_user_items(
    indptr: NDArray[np.int64],
    columns: NDArray[np.int64],
    enough: NDArray[np.bool_],
    num_items: int,
    device: torch.device | str,
) -> Tensor:
    """The users that kept enough items as a dense 0/1 matrix, float32 (users with `enough`, num_items)."""
    rows = np.repeat(np.arange(len(enough)), np.diff(indptr))
    taken = enough[rows]
    new_row = np.cumsum(enough) - 1
    matrix = torch.zeros((int(enough.sum()), num_items), dtype=torch.float32, device=device)
    matrix[torch.from_numpy(new_row[rows[taken]]).to(device), torch.from_numpy(columns[taken]).to(device)] = 1.0
    return matrix
