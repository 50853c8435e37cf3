"""What every contender of `step_cpu.py` is given: the GoodBooks descriptions as tokens, users, and a step's items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.feather as feather
import torch
from numpy.typing import NDArray
from torch import Tensor

from beeray.core.batching import FlatTokens
from beeray.core.encoder import load_encoder
from beeray.core.negatives import select_items
from beeray.core.user_items import UserItems
from beeray.data.embedding_units import tokenise
from beeray.data.tokens import bare_tokenizer

MIN_VALUE, MIN_INTERACTIONS = 4.0, 5


@dataclass(frozen=True)
class Workload:
    """A catalog in memory and the users who like its items.

    Attributes:
        tokens: the catalog's.
        texts: the same ids, text by text, int64.
        users: items of every user, int32 each.
        num_items, num_users: of a step.
        max_seq_length: tokens of a text at most.
    """

    tokens: FlatTokens
    texts: list[NDArray[np.int64]]
    users: list[NDArray[np.int32]]
    num_items: int
    num_users: int
    max_seq_length: int

    @property
    def trainable(self) -> NDArray[np.int32]:
        """All items of the catalog."""
        return np.arange(len(self.texts), dtype=np.int32)

    def users_of(self, step: int) -> UserItems:
        """The users of a step."""
        drawn = np.random.default_rng([7, step]).choice(len(self.users), size=self.num_users, replace=False)
        rows = [self.users[user] for user in drawn]
        return UserItems(np.cumsum([0, *map(len, rows)]).astype(np.int64), np.concatenate(rows))

    def items_of(self, step: int, seed: int) -> NDArray[np.int32]:
        """The items of a step, drawn as beeray draws them under a seed."""
        positives = np.unique(self.users_of(step).indices)
        generator = np.random.default_rng([seed, 0, step])
        return select_items("bounded", positives, self.trainable, self.num_items, generator)

    def matrix_of(self, step: int, items: NDArray[np.int32]) -> Tensor:
        """Users with two items of the step or more × those items, 0/1."""
        users = self.users_of(step)
        rows = np.split(users.indices, users.indptr[1:-1])
        matrix = np.stack([np.isin(items, row) for row in rows])
        return torch.from_numpy(matrix[matrix.sum(axis=1) >= 2].astype(np.float32))


def load_workload(data: Path, model: str, *, num_items: int, num_users: int, max_seq_length: int) -> Workload:
    """Read, filter as the paper does (ratings from 4, users from 5 ratings), and tokenise."""
    books = feather.read_table(data / "item_text_descriptions.feather")
    described = [text.strip() for text in books["llama31_description"].to_pylist()]
    tokenizer = bare_tokenizer(load_encoder(model, max_seq_length=max_seq_length).tokenizer)
    ids, lengths = tokenise(described, tokenizer, "", max_seq_length)
    ratings = csv.read_csv(data / "ratings.csv")
    ratings = ratings.filter(pc.greater_equal(ratings["rating"], MIN_VALUE))
    places = pc.index_in(ratings["book_id"], books["book_id"].combine_chunks())
    known = places.is_valid()
    user_ids, item_indices = ratings["user_id"].filter(known).to_numpy(), places.filter(known).to_numpy()
    pairs = np.unique(np.stack([user_ids, item_indices.astype(np.int64)]), axis=1)
    starts = np.flatnonzero(np.diff(pairs[0])) + 1
    users = [row.astype(np.int32) for row in np.split(pairs[1], starts)]
    return Workload(
        tokens=FlatTokens(ids, lengths, 0),
        texts=np.split(ids.astype(np.int64), np.cumsum(lengths)[:-1]),
        users=[row for row in users if len(row) >= MIN_INTERACTIONS],
        num_items=num_items,
        num_users=num_users,
        max_seq_length=max_seq_length,
    )
