"""What a step is going to do, told without the encoder: items, shares, padded micro-batches, users' columns.

Nothing of a plan depends on weights, so the plan of the next step can be made while this one runs (`core.ahead`).
Ranks agree on a plan by collectives. A planner in a thread of its own therefore needs a process group of its own:
collectives of two threads on one group could come in another order on each rank, and hang.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from beeray.core.batching import MicroBatch, Shares, Tokens, deal_by_tokens, micro_batches
from beeray.core.gather import gather_union, rank, sum_over_ranks, world_size
from beeray.core.negatives import select_items, select_items_within
from beeray.core.user_items import UserItems, restrict_columns

if TYPE_CHECKING:
    from beeray.core.step import StepSettings


@dataclass(frozen=True)
class StepPlan:
    """All that is known of a step before the encoder is called.

    Attributes:
        epoch, step, step_in_epoch: which step it is, from 0.
        users: of this rank.
        items: int32 (items,), of the whole step; in the order of `shares`, rank by rank.
        shares: what each rank encodes; the same on every rank, as `items`.
        micro_batches: this rank's share, padded, on the encoder's device.
        indptr, columns: CSR of the users' items as columns of `items`; items that were not drawn are left out.
        enough: bool (users,), whether a user kept items enough to count.
        num_users: users that count, over all ranks.
        num_tokens: real tokens of all ranks' items.
        num_token_pairs: sum of squared text lengths over all ranks' items: what attention computes on.
        domains: int (items,), domain of each of `items`, where users are scored within their domains.
    """

    epoch: int
    step: int
    step_in_epoch: int
    users: UserItems
    items: NDArray[np.int32]
    shares: Shares
    micro_batches: tuple[MicroBatch, ...]
    indptr: NDArray[np.int64]
    columns: NDArray[np.int64]
    enough: NDArray[np.bool_]
    num_users: int
    num_tokens: int
    num_token_pairs: int
    domains: NDArray[np.int16] | None = None

    def blocks(self) -> list[Block]:
        """What is scored against what: all users and items, or domain by domain; as many blocks on every rank."""
        if self.domains is None:
            return [Block(self.enough, self.columns, None)]
        first = np.minimum(self.indptr[:-1], max(0, len(self.columns) - 1))  # a user that counts kept an item
        of_users = self.domains[self.columns[first]] if len(self.columns) else np.full(len(first), -1)
        blocks: list[Block] = []
        for domain in np.unique(self.domains):
            inside = self.domains == domain
            places = np.cumsum(inside) - 1
            blocks.append(Block(self.enough & (of_users == domain), places[self.columns], np.flatnonzero(inside)))
        return blocks


@dataclass(frozen=True)
class Block:
    """Users of a step and the items that they are scored against.

    Attributes:
        users: bool (users,), whether a user of this rank belongs to it and counts.
        columns: int64, the users' items as columns of this block, in the places of `StepPlan.columns`; what stands
            there of other users means nothing.
        items: int64 places of its items among the step's; None: all of them.
    """

    users: NDArray[np.bool_]
    columns: NDArray[np.int64]
    items: NDArray[np.int64] | None


class StepPlanner:
    """Plans one step after another. Collective: every rank plans the same steps in the same order.

    Args:
        tokens: the catalog's token ids.
        trainable: sorted item indices that may be encoded; nothing held out.
        settings: see `StepSettings`.
        device: where the encoder lives.
        group: process group of the planner's collectives, gloo, for planning in a thread; None: the default one.
        item_domains: domain of every item of the catalog, ascending; users, who have items of one domain each, are
            then scored against items of their own domain alone. None: against all items of the step.
    """

    def __init__(
        self,
        tokens: Tokens,
        trainable: NDArray[np.int32],
        settings: StepSettings,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
        item_domains: NDArray[np.int16] | None = None,
    ) -> None:
        self.tokens = tokens
        self.trainable = trainable
        self.settings = settings
        self.device = torch.device(device)
        self.group = group
        self.item_domains = item_domains
        self.trainable_by_domain = self._by_domain(trainable)
        self.lengths = tokens.lengths(settings.max_seq_length)

    def plan(self, users: UserItems, *, epoch: int, step: int, step_in_epoch: int | None = None) -> StepPlan:
        """Plan a step; arguments as `TrainingStep.loss`."""
        settings = self.settings
        drawn = self._draw(users, epoch, step)
        shares = deal_by_tokens(self.lengths[drawn], world_size(), settings.token_budget)
        mine, items = drawn[shares.of_rank(rank())], drawn[shares.order]
        batches = micro_batches(
            self.tokens, mine, shares.cuts, max_seq_length=settings.max_seq_length, device=self.device
        )
        indptr, columns = restrict_columns(users, items)
        enough = np.diff(indptr) >= settings.fewest_items
        lengths = self.lengths[items].astype(np.int64)
        return StepPlan(
            epoch=epoch,
            step=step,
            step_in_epoch=step if step_in_epoch is None else step_in_epoch,
            users=users,
            items=items,
            shares=shares,
            micro_batches=tuple(batches),
            indptr=indptr,
            columns=columns,
            enough=enough,
            num_users=int(sum_over_ranks([float(enough.sum())], self._meet_on, self.group, kind="indices")[0]),
            num_tokens=int(lengths.sum()),
            num_token_pairs=int(np.square(lengths).sum()),
            domains=None if self.item_domains is None else self.item_domains[items],
        )

    @property
    def _meet_on(self) -> torch.device | str:
        return self.device if self.group is None else "cpu"

    def _draw(self, users: UserItems, epoch: int, step: int) -> NDArray[np.int32]:
        """The step's items, sorted: the same on every rank."""
        settings = self.settings
        everything = settings.max_output is None
        positives = self.trainable if everything else gather_union(users.indices, self._meet_on, self.group)
        generator = np.random.default_rng([settings.seed, epoch, step])
        if settings.max_output is None or self.item_domains is None:
            return select_items(settings.items, positives, self.trainable, settings.max_output, generator)
        return select_items_within(
            settings.items, self._by_domain(positives), self.trainable_by_domain, settings.max_output, generator
        )

    def _by_domain(self, items: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """Sorted items, domain by domain."""
        if self.item_domains is None:
            return [items]
        of_items = self.item_domains[items]
        edges = np.searchsorted(of_items, np.arange(int(self.item_domains.max(initial=0)) + 2))
        return [items[start:stop] for start, stop in pairwise(edges)]
