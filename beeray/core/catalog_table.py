"""A table of the whole catalog's embeddings without gradient, for `items: catalog`.

User vectors then use complete histories although only `max_output` items are encoded with gradient:
drawn items enter fresh and with gradient, all others from the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from beeray.core.batching import Tokens
from beeray.core.elsa import normalize_rows, normalize_rows_in_place
from beeray.core.embedding import Encode, embed_items

if TYPE_CHECKING:
    from beeray.core.user_items import UserItems


class CatalogTable:
    """Normalised embeddings of every trainable item, refreshed by all ranks together.

    Args:
        tokens: the catalog's token ids.
        trainable: sorted indices of the items that have a row.
    """

    def __init__(
        self,
        tokens: Tokens,
        trainable: NDArray[np.int32],
        max_seq_length: int,
        token_budget: int,
        device: torch.device,
    ) -> None:
        self.tokens = tokens
        self.trainable = trainable
        self.max_seq_length = max_seq_length
        self.token_budget = token_budget
        self.device = device
        self.embeddings: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been embedded yet: at the first step of a process, wherever in an epoch it goes on."""
        return self.embeddings is None

    def refresh(self, encode: Encode) -> None:
        """Embed all trainable items anew, without dropout. Every rank must call."""
        training = isinstance(encode, nn.Module) and encode.training
        if isinstance(encode, nn.Module):
            encode.eval()
        self.embeddings = normalize_rows_in_place(
            embed_items(
                encode,
                self.tokens,
                self.trainable,
                max_seq_length=self.max_seq_length,
                token_budget=self.token_budget,
                device=self.device,
                shared=True,
            )
        )
        if isinstance(encode, nn.Module):
            encode.train(training)

    def user_vectors(
        self, users: UserItems, drawn: NDArray[np.int32], enough: NDArray[np.bool_], width: int | None = None
    ) -> Tensor:
        """Sums over each user's items that were *not* drawn; (users with `enough`, width), no gradient.

        Args:
            width: of rows cut to their first numbers and scaled to unit length again; all numbers unless given.
        """
        assert self.embeddings is not None, "refresh comes first"
        embeddings = self.embeddings
        rows = torch.from_numpy(np.searchsorted(self.trainable, users.indices).astype(np.int64)).to(self.device)
        if width is not None and width < embeddings.shape[1]:  # of the users' items alone, however large the catalog
            embeddings, rows = normalize_rows(embeddings[rows, :width]), torch.arange(len(rows), device=self.device)
        absent = np.isin(users.indices, drawn, invert=True)
        weights = torch.from_numpy(absent.astype(np.float32)).to(self.device)
        sums = functional.embedding_bag(
            rows,
            embeddings,
            torch.from_numpy(users.indptr[:-1]).to(self.device),
            mode="sum",
            per_sample_weights=weights,
        )
        return sums[torch.from_numpy(enough).to(self.device)]
