"""Scoring a split with all ranks: shared embedding of the catalog, then each rank its share of users.

Used while training, after training and by `beeray.evaluate`: one path, so one figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
from beeray.core.evaluation import Ranker, RankingMetrics, UserRanker, score_users
from beeray.core.exposure import Exposure
from beeray.core.gather import rank, sum_counts_over_ranks, sum_over_ranks, world_size
from beeray.data.store import Store
from beeray.data.tokens import TokenStore


@dataclass(frozen=True)
class SplitScores:
    """Per-user metrics of one ranking, of this rank's users.

    Attributes:
        split: `validation` or `test`.
        ranking: which candidates; see `ranking_candidates`.
        metrics: names of the columns of `scores`.
        user_index: int64 (users,).
        scores: float64 (users, metrics).
        num_candidates: items ranked.
        exposure: what users were shown: this rank's counts, until `score_embeddings` has made figures of them.
        shown: the figures of `core.exposure`, over all ranks' users.
    """

    split: str
    ranking: str
    metrics: list[str]
    user_index: NDArray[np.int64]
    scores: NDArray[np.float64]
    num_candidates: int
    exposure: Exposure | None = None
    shown: dict[str, float] = field(default_factory=dict)

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


def embed_as_served(
    encode: nn.Module,
    config: Config,
    tokens: TokenStore,
    device: torch.device,
    items: NDArray[np.int32] | None = None,
    progress: Callable[[int], None] = lambda num_items: None,
) -> Tensor:
    """Embeddings on every rank as a served model makes them: its text length, no dropout. Every rank must call.

    Args:
        items: item indices; the whole catalog unless given.

    Returns:
        float32 (items, d), rows as the encoder leaves them (not always unit length).
    """
    training = encode.training
    encode.eval()
    embeddings = embed_items(
        encode,
        tokens,
        np.arange(tokens.num_items, dtype=np.int32) if items is None else items,
        max_seq_length=config.served_seq_length,
        token_budget=config.train.micro_batch_tokens(use_gpu=device.type == "cuda"),
        device=device,
        shared=True,
        progress=progress,
    )
    encode.train(training)
    return embeddings


def embed_catalog(
    encode: nn.Module,
    config: Config,
    tokens: TokenStore,
    device: torch.device,
    progress: Callable[[int], None] = lambda num_items: None,
) -> Tensor:
    """Row-normalised embeddings of the whole catalog on every rank, as served. Every rank must call."""
    return normalize_rows_in_place(embed_as_served(encode, config, tokens, device, progress=progress))


def score_split(
    embeddings: Tensor, config: Config, store: Store, split: str, *, full_catalog: bool = True
) -> list[SplitScores]:
    """Score this rank's share of a split's users in every ranking of it. Not collective.

    Args:
        full_catalog: False leaves out all rankings but the first.
    """
    results: list[SplitScores] = []
    for ranking, items in ranking_candidates(config, store, split, full_catalog=full_catalog).items():
        ranker = Ranker(embeddings, items, ranking_metrics(config), items_per_block=config.evaluate.items_per_block)
        results.append(score_ranking(ranker, config, store, split, ranking))
    return results


def ranking_candidates(
    config: Config, store: Store, split: str, *, full_catalog: bool = True
) -> dict[str, NDArray[np.int32]]:
    """The items that each ranking of a split is among, sorted; the ranking that counts comes first.

    - `held_out`: the split's own items; `item` splits.
    - `catalog`: every item, with `evaluate.full_catalog`; in other splits always.
    - `filtered`: items that somebody has in the split's window, with `evaluate.filtered`; `time` splits. beeFormer's
      figure: it drops all others after ranking, which flatters, since who recommends cannot know what will be had.

    Args:
        full_catalog: False leaves out all but the first.
    """
    first = store.candidates(split)
    if config.split.kind == "item":
        candidates = {"held_out": first}
        if config.evaluate.full_catalog and full_catalog:
            candidates["catalog"] = np.arange(store.meta.num_items, dtype=np.int32)
        return candidates
    candidates = {"catalog": first}
    if config.split.kind == "time" and config.evaluate.filtered and full_catalog:
        candidates["filtered"] = store.items_within(split)
    return candidates


def score_ranking(ranker: UserRanker, config: Config, store: Store, split: str, ranking: str) -> SplitScores:
    """Score this rank's share of a split's users by one ranker. Not collective."""
    users, scores = score_users(ranker, _user_blocks(store, split, config.evaluate.users_per_block))
    shown = ranker.exposure if isinstance(ranker, Ranker) else None
    return SplitScores(split, ranking, ranker.metrics.names, users, scores, len(ranker.candidates), shown)


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
    keep: Callable[[Tensor], None] = lambda embeddings: None,
) -> tuple[list[SplitScores], dict[str, float]]:
    """Embed the catalog and score every split that `evaluate.splits` names; with seconds taken. Collective.

    Args:
        keep: is handed the catalog's embeddings.
    """
    started = time.perf_counter()
    embeddings = embed_catalog(encode, config, tokens, device, progress)
    embedded = time.perf_counter()
    keep(embeddings)
    results = score_embeddings(embeddings, config, store)
    return results, {"embed_s": embedded - started, "rank_s": time.perf_counter() - embedded}


def score_embeddings(embeddings: Tensor, config: Config, store: Store) -> list[SplitScores]:
    """Score every split that `evaluate.splits` names, by the catalog's normalised embeddings. Every rank must call."""
    return [
        _summarise_exposure(scores, embeddings.device)
        for split in config.evaluate.splits
        for scores in score_split(embeddings, config, store, split)
    ]


def _summarise_exposure(scores: SplitScores, device: torch.device) -> SplitScores:
    """The same scores, with what all ranks' users were shown in figures and not in counts. Every rank must call."""
    if scores.exposure is None:
        return scores
    scores.exposure.reduce(lambda counts: sum_counts_over_ranks(counts, device))
    return replace(scores, exposure=None, shown=scores.exposure.summary())


def _user_blocks(
    store: Store, split: str, users_per_block: int
) -> Iterator[tuple[NDArray[np.int64], sparse.csr_matrix, sparse.csr_matrix]]:
    for block in store.evaluation_users(split, users_per_block, shard=rank(), num_shards=world_size()):
        yield block.user_index.astype(np.int64), block.history, block.targets
