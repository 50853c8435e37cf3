"""Scoring a split with all ranks: shared embedding of the catalog, then each rank its share of users.

Used while training, after training and by `beeray.evaluate`: one path, so one figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from beeray.config import Config
from beeray.core.elsa import normalize_rows_in_place
from beeray.core.embedding import embed_items
from beeray.core.evaluation import Ranker, RankingMetrics, UserRanker, score_users
from beeray.core.gather import rank, sum_counts_over_ranks, sum_over_ranks, world_size
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.finite_embeddings import check_finite
from beeray.runtime.further_rankings import asked_for, item_groups, prefixes
from beeray.runtime.rankings import rankings
from beeray.runtime.split_scores import SplitScores


@dataclass(frozen=True)
class Candidates:
    """What a ranking is of.

    Attributes:
        ranking: its name.
        domain: None where the store has one.
        items: those that are ranked, sorted, int32 (candidates,).
        kept: those of them that stay in a user's list once it is ranked and cut, sorted, int32 (kept,); None: all.
    """

    ranking: str
    domain: str | None
    items: NDArray[np.int32]
    kept: NDArray[np.int32] | None = None


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
    *,
    max_seq_length: int | None = None,
) -> Tensor:
    """Embeddings on every rank as a served model makes them: its text length, no dropout. Every rank must call.

    Args:
        items: item indices; the whole catalog unless given.
        max_seq_length: another text length.

    Returns:
        float32 (items, d), rows as the encoder leaves them (not always unit length).
    """
    training = encode.training
    encode.eval()
    embeddings = embed_items(
        encode,
        tokens,
        np.arange(tokens.num_items, dtype=np.int32) if items is None else items,
        max_seq_length=max_seq_length or config.served_seq_length,
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
    store: Store,
    tokens: TokenStore,
    device: torch.device,
    progress: Callable[[int], None] = lambda num_items: None,
    items: NDArray[np.int32] | None = None,
    *,
    whose: str = "the encoder",
    max_seq_length: int | None = None,
) -> Tensor:
    """Row-normalised embeddings of the whole catalog on every rank, as served. Every rank must call.

    Args:
        items: the only ones that are needed, sorted; the rows of the others are zero.
        max_seq_length: another text length than that of serving.
        whose: what the embeddings are called where they are refused.

    Raises:
        NotFiniteError: some are no finite numbers; on every rank.
    """
    embeddings = embed_as_served(encode, config, tokens, device, items, progress, max_seq_length=max_seq_length)
    check_finite(embeddings, store, items, whose=whose)
    normalize_rows_in_place(embeddings)
    if items is None:
        return embeddings
    table = embeddings.new_zeros((tokens.num_items, embeddings.shape[1]))
    table[torch.from_numpy(items.astype(np.int64)).to(device)] = embeddings
    return table


def score_split(
    embeddings: Tensor,
    config: Config,
    store: Store,
    split: str,
    *,
    old_items: NDArray[np.bool_] | None = None,
    full_catalog: bool = True,
) -> list[SplitScores]:
    """Score this rank's share of a split's users in every ranking of it. Not collective.

    Of several domains each has scores of its own: a user's candidates are the items of its domain.

    Args:
        old_items: bool (items,), which items an earlier run knew; given, these and the others are asked for apart, too.
        full_catalog: False leaves out all rankings but the first.
    """
    results: list[SplitScores] = []
    for one in ranking_candidates(config, store, split, full_catalog=full_catalog):
        results.append(score_ranking(_ranker(embeddings, one, config), config, store, split, one.ranking, one.domain))
    if full_catalog:
        results += _further_scores(embeddings, config, store, split, old_items)
    return results


def _further_scores(
    embeddings: Tensor, config: Config, store: Store, split: str, old_items: NDArray[np.bool_] | None
) -> list[SplitScores]:
    """The main ranking once more: by prefixes of the embeddings, and of old items alone and new ones alone."""
    main = rankings(config)[0]
    tables = ((name, table, None) for name, table in prefixes(embeddings, config.train.matryoshka_dims, main))
    groups = ((name, embeddings, group) for name, group in item_groups(old_items).items())
    results: list[SplitScores] = []
    for name, table, asked in chain(tables, groups):
        for one in ranking_candidates(config, store, split, full_catalog=False):
            results.append(score_ranking(_ranker(table, one, config), config, store, split, name, one.domain, asked))
    return results


def _ranker(embeddings: Tensor, candidates: Candidates, config: Config) -> Ranker:
    per_block = config.evaluate.items_per_block
    metrics = ranking_metrics(config)
    return Ranker(embeddings, candidates.items, metrics, items_per_block=per_block, kept=candidates.kept)


def ranking_candidates(config: Config, store: Store, split: str, *, full_catalog: bool = True) -> Iterator[Candidates]:
    """Every ranking of a split, the one that counts first, of every domain.

    - `held_out`: the split's own items; `item` splits.
    - `catalog`: every item, with `evaluate.full_catalog`; in other splits always.
    - `filtered`: the first of the catalog's ranking, as many as the longest metric asks for, those that nobody has in
      the split's window dropped, with `evaluate.filtered`; `time` splits. beeFormer's figure: what is left moves up,
      which flatters, since who recommends cannot know what will be had; targets behind the cut stay lost.

    Args:
        full_catalog: False leaves out all but the first.
    """
    for ranking in rankings(config, full_catalog=full_catalog):
        within = store.items_within(split) if ranking == "filtered" else None
        for domain in scored_domains(config, store):
            inside = slice(0, store.meta.num_items) if domain is None else store.domain(domain).item_range
            if ranking == "held_out":
                yield Candidates(ranking, domain, store.candidates(split, domain))
                continue
            kept = None if within is None else within[(within >= inside.start) & (within < inside.stop)]
            yield Candidates(ranking, domain, np.arange(inside.start, inside.stop, dtype=np.int32), kept)


def scored_domains(config: Config, store: Store) -> list[str | None]:
    """The domains whose users are scored, one after the other; None stands for all of a store of one domain."""
    if len(store.meta.domains) < 2:
        return [None]
    asked = config.evaluate.domains
    return [name for name in store.meta.domains if asked is None or name in asked]


def needed_items(config: Config, store: Store) -> NDArray[np.int32] | None:
    """Items that may be ranked or are input when some domains alone are scored; None: all."""
    domains = scored_domains(config, store)
    if len(domains) == len(store.meta.domains):
        return None
    inside = [store.domain(name).item_range for name in domains if name is not None]
    return np.concatenate([np.arange(one.start, one.stop, dtype=np.int32) for one in inside])


def score_ranking(
    ranker: UserRanker,
    config: Config,
    store: Store,
    split: str,
    ranking: str,
    domain: str | None = None,
    asked: NDArray[np.bool_] | None = None,
) -> SplitScores:
    """Score this rank's share of a split's users, of one domain if there are several, by one ranker. Not collective.

    Args:
        asked: bool (items,), the only ones that count as targets; users without one are left out.
    """
    blocks = _user_blocks(store, split, config.evaluate.users_per_block, domain, all_inputs=ranking == "catalog")
    users, scores = score_users(ranker, blocks if asked is None else asked_for(blocks, asked))
    names, number = ranker.metrics.names, len(ranker.candidates)
    num_kept = None if ranker.kept is None else len(ranker.kept)
    return SplitScores(split, ranking, names, users, scores, number, domain, ranker.exposure, num_kept=num_kept)


def mean_over_ranks(scores: Sequence[SplitScores], device: torch.device) -> dict[str, float]:
    """Mean metrics over all ranks' users, e.g. `{"ndcg@100": 0.31}`, and of each domain. Every rank must call.

    Nothing of no users: 0 would be a figure.

    Args:
        scores: of one split and ranking, one a domain; the same domains on every rank.
    """
    width = 1 + len(scores[0].metrics)
    local = [value for one in scores for value in (len(one.scores), *one.scores.sum(axis=0).tolist())]
    sums = np.reshape(sum_over_ranks([float(value) for value in local], device), (len(scores), width))
    labelled = [("", sums.sum(axis=0))]
    labelled += [(f"{one.domain}/", row) for one, row in zip(scores, sums, strict=True) if one.domain is not None]
    return {
        f"{label}{name}": float(value / row[0])
        for label, row in labelled
        if row[0]
        for name, value in zip(scores[0].metrics, row[1:], strict=True)
    }


def score_splits(
    encode: nn.Module,
    config: Config,
    store: Store,
    tokens: TokenStore,
    device: torch.device,
    progress: Callable[[int], None] = lambda num_items: None,
    keep: Callable[[Tensor], None] = lambda embeddings: None,
    *,
    embeddings: Tensor | None = None,
    embed_s: float = 0.0,
    old_items: NDArray[np.bool_] | None = None,
    whole: bool = False,
) -> tuple[list[SplitScores], dict[str, float]]:
    """Embed the catalog and score every split that `evaluate.splits` names; with seconds taken. Collective.

    Args:
        keep: is handed the catalog's embeddings.
        embeddings: of the whole catalog, row-normalised, if they are there already.
        embed_s: seconds that those took.
        old_items: as `score_split`.
        whole: embed the whole catalog, too, where not all domains are scored.
    """
    started = time.perf_counter()
    if embeddings is None:
        needed = None if whole else needed_items(config, store)
        embeddings = embed_catalog(encode, config, store, tokens, device, progress, needed)
    embedded = time.perf_counter()
    keep(embeddings)
    results = score_embeddings(embeddings, config, store, old_items)
    return results, {"embed_s": embed_s + embedded - started, "rank_s": time.perf_counter() - embedded}


def score_embeddings(
    embeddings: Tensor, config: Config, store: Store, old_items: NDArray[np.bool_] | None = None
) -> list[SplitScores]:
    """Score every split that `evaluate.splits` names, by the catalog's normalised embeddings. Every rank must call.

    Args:
        old_items: as `score_split`.
    """
    return [
        _summarise_exposure(scores, embeddings.device)
        for split in config.evaluate.splits
        for scores in score_split(embeddings, config, store, split, old_items=old_items)
    ]


def _summarise_exposure(scores: SplitScores, device: torch.device) -> SplitScores:
    """The same scores, with what all ranks' users were shown in figures and not in counts. Every rank must call."""
    if scores.exposure is None:
        return scores
    scores.exposure.reduce(lambda counts: sum_counts_over_ranks(counts, device))
    return scores.with_figures()


def _user_blocks(
    store: Store, split: str, users_per_block: int, domain: str | None, *, all_inputs: bool
) -> Iterator[tuple[NDArray[np.int64], sparse.csr_matrix, sparse.csr_matrix]]:
    """Args: all_inputs: in the whole catalog's ranking, which would show what was left out of the input once more."""
    for block in store.evaluation_users(
        split, users_per_block, shard=rank(), num_shards=world_size(), domain=domain, all_inputs=all_inputs
    ):
        yield block.user_index.astype(np.int64), block.history, block.targets
