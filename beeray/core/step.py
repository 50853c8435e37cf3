"""One training step: items → embeddings → loss, exact on any number of ranks.

Non-reentrant activation checkpointing around each micro-batch, one differentiable all-gather and one
backward *are* beeFormer's Algorithm 1 (arXiv 2409.10309): the first forward keeps no activations (its
embedding pass), dLoss/dE arriving at each micro-batch is its gradient checkpoint, and backward
recomputes micro-batch by micro-batch with the same dropout masks. What fits the activation budget is
kept instead of recomputed; the gradient is the same either way.

A step has two halves: its plan (`core.plan`), which knows no weights and may be made ahead, and its execution.

The caller runs `backward` on the loss that `TrainingStep.loss` returns, once, and steps the optimizer.
Gradients are to be *averaged* over ranks, which is what DeepSpeed and DDP do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint, noop_context_fn

from beeray.core.activations import ActivationBudget
from beeray.core.batching import MicroBatch, Tokens
from beeray.core.catalog_table import CatalogTable
from beeray.core.distillation import forgetting_per_item
from beeray.core.elsa import normalize_rows
from beeray.core.embedding import Encode
from beeray.core.frozen_layers import FrozenLayers
from beeray.core.gather import gather_rows, rank, world_size
from beeray.core.losses import StepUsers, over_prefixes, user_loss
from beeray.core.plan import Block, StepPlan, StepPlanner
from beeray.core.user_items import UserItems, dense_user_items

SCOPE = "beeray/"
"""What the names of a step's parts begin with in a profiler's trace."""


@dataclass(frozen=True)
class StepSettings:
    """What decides a step, apart from data: see `TrainConfig` for the meaning of each."""

    items: str = "bounded"
    max_output: int | None = 10000
    """None encodes every trainable item."""
    max_seq_length: int = 384
    loss: str = "nmse"
    relu: bool = True
    top_k: int | None = None
    temperature: float = 0.1
    matryoshka_dims: tuple[int, ...] = ()
    distill_weight: float = 0.0
    token_budget: int = 8192
    activation_budget_bytes: int = 2**30
    catalog_refresh: int = 1
    seed: int = 42

    @property
    def keeps_table(self) -> bool:
        """Whether items that are not drawn enter user vectors, from a table of the catalog."""
        return self.items == "catalog" and self.max_output is not None

    @property
    def fewest_items(self) -> int:
        """Drawn items that a user needs to count: one to reconstruct, from another drawn one or from the table."""
        return 1 if self.keeps_table else 2


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
        forgetting: the part of `loss` that `distill_weight` put there, before it is weighted; its mean over ranks is
            the mean over the step's items.
    """

    loss: Tensor
    num_items: int
    num_users: int
    num_tokens: int
    num_padded_tokens: int
    num_recomputed_tokens: int
    forgetting: Tensor | None = None


class TrainingStep:
    """Computes the loss of one step after another. Collective: every rank calls with its own users.

    Args:
        encode: embeds a micro-batch; called with gradient, possibly twice (recomputation).
        tokens: the catalog's token ids.
        trainable: sorted item indices that may be encoded; nothing held out.
        settings: see `StepSettings`.
        device: where the encoder lives.
        item_domains: see `StepPlanner`.
        originals: (catalog, d₀), row-normalised embeddings of the encoder before training, by item index; needed, and
            read, with `settings.distill_weight`.
        frozen: layers of the encoder that are held fixed and need not be recomputed; None where there are none.
    """

    def __init__(
        self,
        encode: Encode,
        tokens: Tokens,
        trainable: NDArray[np.int32],
        settings: StepSettings,
        device: torch.device | str = "cpu",
        item_domains: NDArray[np.int16] | None = None,
        originals: NDArray[np.floating] | None = None,
        frozen: FrozenLayers | None = None,
    ) -> None:
        assert originals is not None or not settings.distill_weight
        self.encode = encode
        self.originals, self.frozen = originals, frozen
        chosen = user_loss(settings.loss, relu=settings.relu, top_k=settings.top_k, temperature=settings.temperature)
        self.user_loss = over_prefixes(chosen, settings.matryoshka_dims)
        self.settings = settings
        self.device = torch.device(device)
        self.planner = StepPlanner(tokens, trainable, settings, self.device, item_domains=item_domains)
        self.activations = ActivationBudget(settings.activation_budget_bytes)
        self._latest: tuple[StepPlan, Tensor] | None = None
        self.table: CatalogTable | None = None
        every = len(trainable)
        if settings.keeps_table and (settings.max_output or every) < every:  # else all are drawn
            self.table = CatalogTable(tokens, trainable, settings.max_seq_length, settings.token_budget, self.device)

    def loss(self, users: UserItems, *, epoch: int, step: int, step_in_epoch: int | None = None) -> StepLoss:
        """Plan a step and run it, one after the other.

        Args:
            users: this rank's users, with trainable items only.
            epoch: from 0.
            step: step of the whole run, from 0; (seed, epoch, step) and the users fix the step.
            step_in_epoch: step inside the epoch, which decides when the catalog's table is refreshed; `step`
                unless given.
        """
        return self.run(self.planner.plan(users, epoch=epoch, step=step, step_in_epoch=step_in_epoch))

    def run(self, plan: StepPlan) -> StepLoss:
        """The loss of a planned step. Plans may be made by another planner of the same settings."""
        if self.table is not None and (self.table.is_empty or plan.step_in_epoch % self.settings.catalog_refresh == 0):
            with record_function(f"{SCOPE}table"):
                self.table.refresh(self.encode)
        seed_dropout(self.settings.seed, plan.step)
        with record_function(f"{SCOPE}encode"):
            rows, work = self._embed(plan)
        with record_function(f"{SCOPE}gather"):
            embeddings = normalize_rows(gather_rows(rows, plan.shares.counts))
        self._latest = plan, embeddings.detach()
        with record_function(f"{SCOPE}loss"):
            loss, forgetting = self._loss_of_users(plan, embeddings), None
            if self.settings.distill_weight:
                forgetting = self._forgetting(plan, embeddings)
                loss = loss + self.settings.distill_weight * forgetting
        return StepLoss(
            loss=loss,
            forgetting=None if forgetting is None else forgetting.detach(),
            num_items=len(plan.items),
            num_users=plan.num_users,
            num_tokens=work.num_tokens,
            num_padded_tokens=work.num_padded_tokens,
            num_recomputed_tokens=work.num_recomputed_tokens,
        )

    @torch.no_grad()
    def not_finite(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Of the step that was run last, what made its loss no number.

        Returns:
            item indices, of all ranks, whose embeddings are no numbers; places of this rank's users whose loss is none.
        """
        assert self._latest is not None
        plan, embeddings = self._latest
        items = plan.items[~torch.isfinite(embeddings).all(dim=1).cpu().numpy()]
        users = [
            np.flatnonzero(block.users)[~torch.isfinite(self._losses(plan, block, embeddings)).cpu().numpy()]
            for block in plan.blocks()
        ]
        return items, np.sort(np.concatenate(users))

    def _embed(self, plan: StepPlan) -> tuple[Tensor, _Work]:
        """Embed this rank's items with gradient, recomputing what exceeds the activation budget."""
        work = _Work()
        rows: list[Tensor] = []
        remembers = self._remembers_frozen(plan)
        for micro_batch, num_tokens in zip(plan.micro_batches, plan.shares.cut_tokens, strict=True):
            kept = self.activations.admits(num_tokens)
            if kept:
                embeddings = self._encode_kept(micro_batch, num_tokens)
            else:
                embeddings = self._encode_recomputed(micro_batch, remembers)
            rows.append(embeddings[: micro_batch.num_items])
            work.add(micro_batch, recomputed=not kept)
        return torch.cat(rows), work

    def _encode_kept(self, micro_batch: MicroBatch, num_tokens: int) -> Tensor:
        return self.activations.measure(
            lambda: self.encode(micro_batch.input_ids, micro_batch.attention_mask), num_tokens
        )

    def _remembers_frozen(self, plan: StepPlan) -> bool:
        """Begin a step's budget; whether it has room for what frozen layers gave of all micro-batches."""
        if self.frozen is None:
            self.activations.start_step()
            return False
        padded = sum(micro_batch.num_padded_tokens for micro_batch in plan.micro_batches)
        return self.activations.start_step(self.frozen.bytes_per_token * padded)

    def _encode_recomputed(self, micro_batch: MicroBatch, remembers: bool) -> Tensor:
        embeddings = checkpoint(
            self.encode,
            micro_batch.input_ids,
            micro_batch.attention_mask,
            use_reentrant=False,
            preserve_rng_state=True,
            context_fn=self.frozen.contexts if remembers and self.frozen is not None else noop_context_fn,
        )
        assert isinstance(embeddings, Tensor)
        return embeddings

    def _loss_of_users(self, plan: StepPlan, embeddings: Tensor) -> Tensor:
        total = sum(
            (self._losses(plan, block, embeddings).sum() for block in plan.blocks()), start=embeddings.new_zeros(())
        )
        return total * (world_size() / max(1, plan.num_users))

    def _losses(self, plan: StepPlan, block: Block, embeddings: Tensor) -> Tensor:
        """The loss of each user of a block, over the block's items."""
        if block.items is not None:
            embeddings = embeddings[torch.from_numpy(block.items).to(self.device)]
        user_items = dense_user_items(plan.indptr, block.columns, block.users, len(embeddings), self.device)
        elsewhere = None
        if self.table is not None:
            elsewhere = partial(self.table.user_vectors, plan.users, plan.items, block.users)
        return self.user_loss(embeddings, StepUsers(user_items, elsewhere))

    def _forgetting(self, plan: StepPlan, embeddings: Tensor) -> Tensor:
        """Of this rank's share of the items, so that the mean over ranks is the mean over the step's items."""
        assert self.originals is not None
        originals = torch.from_numpy(np.asarray(self.originals[plan.items], dtype=np.float32)).to(self.device)
        counts = plan.shares.counts
        mine = torch.arange(counts[rank()], device=self.device) + sum(counts[: rank()])
        losses = forgetting_per_item(embeddings, originals, mine)
        return losses.sum() * (world_size() / len(plan.items))


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
