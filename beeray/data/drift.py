"""How far vectors moved since the previous publication, on items whose text did not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beeray.data.embedding_format import EmbeddingFormat, Vectors
from beeray.data.id_ranges import comparable, evenly
from beeray.data.reuse import EarlierRows

NEIGHBOURS = 10
ROWS_AT_A_TIME = 1024
RANGES_IN_VAIN = 16
"""Ranges without an unchanged item after which there are none: a changed template."""


def measure_drift(
    new: EarlierRows, new_format: EmbeddingFormat, old: EarlierRows, old_format: EmbeddingFormat, max_rows: int
) -> dict[str, Any] | None:
    """Compare old and new vectors of unchanged items, range after range until there are enough.

    Ranges are of a hash of the id, so the first ones are a random sample of the catalog; of the last one, rows
    are taken that lie evenly over it, since low ids are often the old ones.

    Args:
        new, old: files by ranges of id hashes.
        max_rows: items compared, at most.

    Returns:
        `rows`; `cosine_median` and `cosine_p1` (None when the dimensions differ); `neighbours_kept`, the share
        of the 10 nearest items, within the sample, that are still among the 10 nearest; None: nothing in common.
    """
    news: list[Vectors] = []
    olds: list[Vectors] = []
    missing = max_rows
    for number in range(len(new.paths)):
        pair = _common(new, old, number, missing)
        if pair is not None:
            news.append(new_format.decode(pair[0]))
            olds.append(old_format.decode(pair[1]))
            missing -= len(news[-1])
        if missing <= 0 or (not news and number + 1 >= RANGES_IN_VAIN):
            break
    if not news:
        return None
    after, before = _unit(np.concatenate(news)), _unit(np.concatenate(olds))
    result: dict[str, Any] = {"rows": len(after), "cosine_median": None, "cosine_p1": None, "neighbours_kept": None}
    if after.shape == before.shape:
        cosines = (after * before).sum(axis=1)
        result |= {"cosine_median": float(np.median(cosines)), "cosine_p1": float(np.quantile(cosines, 0.01))}
    if len(after) > NEIGHBOURS:
        result["neighbours_kept"] = neighbours_kept(before, after)
    return result


def neighbours_kept(before: Vectors, after: Vectors) -> float:
    """Mean share of each row's nearest rows before that are among its nearest after; rows of unit length."""
    kept = [np.intersect1d(x, y).size for x, y in zip(_nearest(before), _nearest(after), strict=True)]
    return float(np.mean(kept)) / NEIGHBOURS


def _common(new: EarlierRows, old: EarlierRows, number: int, max_rows: int) -> tuple[pa.Array, pa.Array] | None:
    columns = ["content_hash", "embedding"]
    after = new.read(number, len(new.paths), columns)
    before = old.read(number, len(new.paths), columns)
    if after is None or before is None or not after.num_rows or not before.num_rows:
        return None
    ids = comparable(after["item_id"].combine_chunks())
    where = pc.index_in(ids, comparable(before["item_id"].combine_chunks()))
    theirs = before["content_hash"].combine_chunks().take(where)
    same = pc.fill_null(pc.equal(after["content_hash"].combine_chunks(), theirs), False)
    rows = np.flatnonzero(same.to_numpy(zero_copy_only=False))
    if not len(rows):
        return None
    taken = pa.array(evenly(rows, max_rows))
    return after["embedding"].combine_chunks().take(taken), before["embedding"].combine_chunks().take(where.take(taken))


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _nearest(vectors: Vectors) -> NDArray[np.int64]:
    blocks: list[NDArray[np.int64]] = []
    for start in range(0, len(vectors), ROWS_AT_A_TIME):
        distances = -(vectors[start : start + ROWS_AT_A_TIME] @ vectors.T)
        own = np.arange(len(distances))
        distances[own, start + own] = np.inf
        blocks.append(np.argpartition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS].copy())
    return np.concatenate(blocks)
