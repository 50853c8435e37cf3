"""Scoring a split with all ranks: shared embedding of the catalog, then each rank its share of users.

Used while training, after training and by `beeray.evaluate`: one path, so one figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from beeray.config import Config
from beeray.core.elsa import normalize_rows_in_place
from beeray.core.embedding import embed_items
from beeray.core.evaluation import Ranker, RankingMetrics, score_users
from beeray.core.gather import rank, sum_over_ranks, world_size
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.further_rankings import asked_for, item_groups, prefixes


@dataclass(frozen=True)
class SplitScores:
    """Per-user metrics of one ranking, of this rank's users.

    Attributes:
        split: `validation` or `test`.
        ranking: `held_out` (candidates are the split's own items) or `catalog` (every item); `…@64` with a prefix of
            the embeddings; `old_items`, `new_items`: asked for are only those that an earlier run knew, or did not.
        metrics: names of the columns of `scores`.
        user_index: int64 (users,).
        scores: float64 (users, metrics).
        num_candidates: items ranked.
    """

    split: str
    ranking: str
    metrics: list[str]
    user_index: NDArray[np.int64]
    scores: NDArray[np.float64]
    num_candidates: int

    def table(self) -> pa.Table:
        """The scores as a table: user_index, split, ranking, one column a metric."""
        columns: dict[str, NDArray[Any]] = {"user_index": self.user_index}
        columns |= {name: self.scores[:, place] for place, name in enumerate(self.metrics)}
        table = pa.table(columns)
        for name in ("ranking", "split"):
            value = pa.array([getattr(self, name)] * len(table)).dictionary_encode()
            table = table.add_column(1, name, value.cast(pa.string()))
        return table


def ranking_metrics(config: Config) -> RankingMetrics:
    """The metrics that a config asks for."""
    return RankingMetrics(tuple(config.evaluate.recall_at), tuple(config.evaluate.ndcg_at))


def embed_catalog(
    encode: nn.Module,
    config: Config,
    tokens: TokenStore,
    device: torch.device,
    progress: Callable[[int], None] = lambda num_items: None,
) -> Tensor:
    """Row-normalised embeddings of the whole catalog on every rank, without dropout. Every rank must call."""
    training = encode.training
    encode.eval()
    embeddings = embed_items(
        encode,
        tokens,
        np.arange(tokens.num_items, dtype=np.int32),
        max_seq_length=config.served_seq_length,
        token_budget=config.train.micro_batch_tokens(use_gpu=device.type == "cuda"),
        device=device,
        shared=True,
        progress=progress,
    )
    encode.train(training)
    return normalize_rows_in_place(embeddings)


def score_split(
    embeddings: Tensor,
    config: Config,
    store: Store,
    split: str,
    *,
    old_items: NDArray[np.bool_] | None = None,
    full_catalog: bool = True,
) -> list[SplitScores]:
    """Score this rank's share of a split's users, among the held-out items first. Not collective.

    Args:
        old_items: bool (items,), which items an earlier run knew; given, these and the others are scored apart, too.
        full_catalog: False leaves out the ranking among the whole catalog of an item split, and all further ones.
    """
    candidates = {"held_out": store.candidates(split)}
    if config.split.kind == "item" and config.evaluate.full_catalog and full_catalog:
        candidates["catalog"] = np.arange(store.meta.num_items, dtype=np.int32)
    elif config.split.kind != "item":
        candidates = {"catalog": candidates["held_out"]}

    def ranked(
        table: Tensor, ranking: str, items: NDArray[np.int32], group: NDArray[np.bool_] | None = None
    ) -> SplitScores:
        ranker = Ranker(table, items, ranking_metrics(config), items_per_block=config.evaluate.items_per_block)
        blocks = _user_blocks(store, split, config.evaluate.users_per_block)
        users, scores = score_users(ranker, blocks if group is None else asked_for(blocks, group))
        return SplitScores(split, ranking, ranker.metrics.names, users, scores, len(items))

    results = [ranked(embeddings, ranking, items) for ranking, items in candidates.items()]
    if full_catalog:
        first, items = next(iter(candidates.items()))
        cut = prefixes(embeddings, config.train.matryoshka_dims, first)
        results += [ranked(table, ranking, items) for ranking, table in cut]
        groups = item_groups(old_items)
        results += [ranked(embeddings, ranking, items, group) for ranking, group in groups.items()]
    return results


def mean_over_ranks(scores: SplitScores, device: torch.device) -> dict[str, float]:
    """Mean metrics over all ranks' users, e.g. `{"ndcg@100": 0.31}`. Every rank must call."""
    sums = sum_over_ranks([float(len(scores.scores)), *scores.scores.sum(axis=0).tolist()], device)
    return {name: value / max(1.0, sums[0]) for name, value in zip(scores.metrics, sums[1:], strict=True)}


def score_splits(
    encode: nn.Module,
    config: Config,
    store: Store,
    tokens: TokenStore,
    device: torch.device,
    progress: Callable[[int], None] = lambda num_items: None,
    *,
    old_items: NDArray[np.bool_] | None = None,
    embeddings: Tensor | None = None,
    embedded: Callable[[Tensor], None] = lambda embeddings: None,
) -> tuple[list[SplitScores], dict[str, float]]:
    """Embed the catalog and score every split that `evaluate.splits` names; with seconds taken. Collective.

    Args:
        old_items: as `score_split`.
        embeddings: of the catalog, row-normalised, if they are there already.
        embedded: called with them before they are scored.
    """
    started = time.perf_counter()
    if embeddings is None:
        embeddings = embed_catalog(encode, config, tokens, device, progress)
    done = time.perf_counter()
    embedded(embeddings)
    results = [
        scores
        for split in config.evaluate.splits
        for scores in score_split(embeddings, config, store, split, old_items=old_items)
    ]
    return results, {"embed_s": done - started, "rank_s": time.perf_counter() - done}


def _user_blocks(
    store: Store, split: str, users_per_block: int
) -> Iterator[tuple[NDArray[np.int64], sparse.csr_matrix, sparse.csr_matrix]]:
    for block in store.evaluation_users(split, users_per_block, shard=rank(), num_shards=world_size()):
        yield block.user_index.astype(np.int64), block.history, block.targets
