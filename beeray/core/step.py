"""One training step: items → embeddings → ELSA loss, exact on any number of ranks.

Non-reentrant activation checkpointing around each micro-batch, one differentiable all-gather and one
backward *are* beeFormer's Algorithm 1 (arXiv 2409.10309): the first forward keeps no activations (its
embedding pass), dLoss/dE arriving at each micro-batch is its gradient checkpoint, and backward
recomputes micro-batch by micro-batch with the same dropout masks. What fits the activation budget is
kept instead of recomputed; the gradient is the same either way.

The caller runs `backward` on the loss that `TrainingStep.loss` returns, once, and steps the optimizer.
Gradients are to be *averaged* over ranks, which is what DeepSpeed and DDP do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from beeray.core.activations import ActivationBudget
from beeray.core.batching import MicroBatch, Shares, Tokens, deal_by_tokens, micro_batches
from beeray.core.catalog_table import CatalogTable
from beeray.core.elsa import elsa_scores, nmse_per_user, normalize_rows
from beeray.core.embedding import Encode
from beeray.core.gather import gather_rows, gather_union, rank, sum_over_ranks, world_size
from beeray.core.negatives import select_items


@dataclass(frozen=True)
class UserItems:
    """The items of a rank's users of one step, as CSR.

    Attributes:
        indptr: int64 (users + 1,).
        indices: int32 (interactions,), distinct item indices of user `u` at `indptr[u]:indptr[u + 1]`.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]

    @property
    def num_users(self) -> int:
        """Rows."""
        return len(self.indptr) - 1

    def take(self, rows: NDArray[np.int64]) -> UserItems:
        """Some of the users, in the order given."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - self.indptr[:-1][rows], lengths)
        return UserItems(indptr, self.indices[places])


@dataclass(frozen=True)
class StepSettings:
    """What decides a step, apart from data: see `TrainConfig` for the meaning of each."""

    items: str = "bounded"
    max_output: int | None = 10000
    """None encodes every trainable item."""
    max_seq_length: int = 384
    relu: bool = True
    top_k: int | None = None
    token_budget: int = 8192
    activation_budget_bytes: int = 2**30
    catalog_refresh: int = 1
    seed: int = 42


@dataclass(frozen=True)
class StepLoss:
    """A step's loss and what it took.

    Attributes:
        loss: scalar to run backward on; its *mean over ranks* is the mean loss over the step's users.
        num_items: items encoded with gradient, over all ranks.
        num_users: users that kept enough items to count, over all ranks.
        num_tokens: real tokens of this rank's items.
        num_padded_tokens: rows × columns of this rank's micro-batches.
        num_recomputed_tokens: of those, the ones whose activations backward computes again.
    """

    loss: Tensor
    num_items: int
    num_users: int
    num_tokens: int
    num_padded_tokens: int
    num_recomputed_tokens: int


class TrainingStep:
    """Computes the loss of one step after another. Collective: every rank calls with its own users.

    Args:
        encode: embeds a micro-batch; called with gradient, possibly twice (recomputation).
        tokens: the catalog's token ids.
        trainable: sorted item indices that may be encoded; nothing held out.
        settings: see `StepSettings`.
        device: where the encoder lives.
    """

    def __init__(
        self,
        encode: Encode,
        tokens: Tokens,
        trainable: NDArray[np.int32],
        settings: StepSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.encode = encode
        self.tokens = tokens
        self.trainable = trainable
        self.settings = settings
        self.device = torch.device(device)
        self.lengths = tokens.lengths(settings.max_seq_length)
        self.activations = ActivationBudget(settings.activation_budget_bytes)
        self.table: CatalogTable | None = None
        if settings.items == "catalog" and settings.max_output is not None:
            self.table = CatalogTable(tokens, trainable, settings.max_seq_length, settings.token_budget, self.device)

    def loss(self, users: UserItems, *, epoch: int, step: int, step_in_epoch: int | None = None) -> StepLoss:
        """The loss of one step.

        Args:
            users: this rank's users, with trainable items only.
            epoch: from 0.
            step: step of the whole run, from 0; (seed, epoch, step) and the users fix the step.
            step_in_epoch: step inside the epoch, which decides when the catalog's table is refreshed; `step`
                unless given.
        """
        items, shares = self._items_of_step(users, epoch, step)
        place = step if step_in_epoch is None else step_in_epoch
        if self.table is not None and place % self.settings.catalog_refresh == 0:
            self.table.refresh(self.encode)
        seed_dropout(self.settings.seed, step)
        rows, work = self._embed(items[shares.of_rank(rank())], shares)
        embeddings = normalize_rows(gather_rows(rows, shares.counts))
        items = items[shares.order]
        loss, num_users = self._loss_of_users(users, items, embeddings)
        return StepLoss(
            loss=loss,
            num_items=len(items),
            num_users=num_users,
            num_tokens=work.num_tokens,
            num_padded_tokens=work.num_padded_tokens,
            num_recomputed_tokens=work.num_recomputed_tokens,
        )

    def _items_of_step(self, users: UserItems, epoch: int, step: int) -> tuple[NDArray[np.int32], Shares]:
        """The step's items and how they are shared out: the same on every rank."""
        settings = self.settings
        everything = settings.max_output is None
        positives = self.trainable if everything else gather_union(users.indices, self.device)
        generator = np.random.default_rng([settings.seed, epoch, step])
        items = select_items(settings.items, positives, self.trainable, settings.max_output, generator)
        return items, deal_by_tokens(self.lengths[items], world_size(), settings.token_budget)

    def _embed(self, items: NDArray[np.int32], shares: Shares) -> tuple[Tensor, _Work]:
        """Embed this rank's items with gradient, recomputing what exceeds the activation budget."""
        work = _Work()
        rows: list[Tensor] = []
        self.activations.start_step()
        batches = micro_batches(
            self.tokens, items, shares.cuts, max_seq_length=self.settings.max_seq_length, device=self.device
        )
        for micro_batch, num_tokens in zip(batches, shares.cut_tokens, strict=True):
            kept = self.activations.admits(num_tokens)
            embeddings = self._encode_kept(micro_batch, num_tokens) if kept else self._encode_recomputed(micro_batch)
            rows.append(embeddings[: micro_batch.num_items])
            work.add(micro_batch, recomputed=not kept)
        return torch.cat(rows), work

    def _encode_kept(self, micro_batch: MicroBatch, num_tokens: int) -> Tensor:
        return self.activations.measure(
            lambda: self.encode(micro_batch.input_ids, micro_batch.attention_mask), num_tokens
        )

    def _encode_recomputed(self, micro_batch: MicroBatch) -> Tensor:
        embeddings = checkpoint(
            self.encode, micro_batch.input_ids, micro_batch.attention_mask, use_reentrant=False, preserve_rng_state=True
        )
        assert isinstance(embeddings, Tensor)
        return embeddings

    def _loss_of_users(self, users: UserItems, items: NDArray[np.int32], embeddings: Tensor) -> tuple[Tensor, int]:
        indptr, columns = restrict_columns(users, items)
        per_user = np.diff(indptr)
        enough = per_user >= (1 if self.table is not None else 2)
        num_users = int(sum_over_ranks([float(enough.sum())], self.device)[0])
        user_items = dense_user_items(indptr, columns, enough, len(items), self.device)
        vectors = user_items @ embeddings
        if self.table is not None:
            vectors = vectors + self.table.user_vectors(users, items, enough)
        scores = elsa_scores(vectors, embeddings, user_items)
        losses = nmse_per_user(scores, user_items, relu=self.settings.relu, top_k=self.settings.top_k)
        return losses.sum() * (world_size() / max(1, num_users)), num_users


@dataclass
class _Work:
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_recomputed_tokens: int = 0

    def add(self, micro_batch: MicroBatch, *, recomputed: bool) -> None:
        self.num_tokens += micro_batch.num_tokens
        self.num_padded_tokens += micro_batch.num_padded_tokens
        self.num_recomputed_tokens += micro_batch.num_padded_tokens if recomputed else 0


def seed_dropout(seed: int, step: int) -> None:
    """Seed torch for one step of one rank, so that a resumed run draws the dropout masks it would have drawn."""
    mixed = np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed >> 1))


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
