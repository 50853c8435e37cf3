"""From what workers sent to what a run reports: means with intervals, throughput, peak memory."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beeray.config import Config, EvaluateConfig

if TYPE_CHECKING:
    from beeray.runtime.scoring import SplitScores

Record = dict[str, Any]


def merge_ranks(parts: Iterable[SplitScores]) -> list[SplitScores]:
    """Scores of all ranks put together, split by split and ranking by ranking, users in order."""
    grouped: dict[tuple[str, str], list[SplitScores]] = defaultdict(list)
    for part in parts:
        grouped[part.split, part.ranking].append(part)
    merged: list[SplitScores] = []
    for group in grouped.values():
        users = np.concatenate([part.user_index for part in group])
        scores = np.concatenate([part.scores for part in group])
        order = np.argsort(users, kind="stable")
        merged.append(dataclasses.replace(group[0], user_index=users[order], scores=scores[order]))
    return merged


def summarise_scores(scores: Iterable[SplitScores], evaluate: EvaluateConfig) -> Record:
    """`{split: {ranking: {users, candidates, metric: {mean, low, high}}}}`, 95 % intervals over users."""
    from beeray.core.metrics import bootstrap_interval  # imports torch, which a driver need not wait for at its start

    summary: Record = defaultdict(dict)
    for one in scores:
        record: Record = {"users": len(one.user_index), "candidates": one.num_candidates}
        if len(one.user_index):
            for place, name in enumerate(one.metrics):
                interval = bootstrap_interval(one.scores[:, place], num_bootstrap=evaluate.num_bootstrap)
                record[name] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        summary[one.split][one.ranking] = record
    return dict(summary)


def flat_means(summary: Record) -> dict[str, float]:
    """`{"test/held_out/ndcg@100": 0.31, …}`, as MLflow takes it."""
    return {
        f"{split}/{ranking}/{name}": value["mean"]
        for split, rankings in summary.items()
        for ranking, record in rankings.items()
        for name, value in record.items()
        if isinstance(value, dict)
    }


def scores_table(scores: Iterable[SplitScores]) -> pa.Table:
    """Per-user scores of all splits: user_index, split, ranking, one column a metric."""
    return pa.concat_tables([one.table() for one in scores])


def summarise_training(steps: list[Record], workers: list[Record]) -> Record:
    """What training took.

    Args:
        steps: one record a step (`loss, items, users, tokens, padded_tokens, recomputed_tokens, step_s, wait_s, mfu`).
        workers: one record a worker of the last attempt (`cpu_s, peak_memory_bytes, peak_gpu_memory_bytes`).
    """
    seconds = np.asarray([step["step_s"] for step in steps])
    tokens = np.asarray([step["tokens"] for step in steps])
    items = np.asarray([step["items"] for step in steps])
    return {
        "steps": len(steps),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "encoded_items": int(items.sum()),
        "tokens": int(tokens.sum()),
        "padded_tokens": int(sum(step["padded_tokens"] for step in steps)),
        "recomputed_tokens": int(sum(step["recomputed_tokens"] for step in steps)),
        "step_s_median": float(np.median(seconds)),
        "train_s": float(seconds.sum()),
        "wait_s_median": float(np.median([step["wait_s"] for step in steps])),
        "mfu_median": float(np.median([step.get("mfu", 0.0) for step in steps])),
        "items_per_s": float(items.sum() / seconds.sum()),
        "tokens_per_s": float(tokens.sum() / seconds.sum()),
        **summarise_workers(workers),
    }


def summarise_workers(workers: list[Record]) -> Record:
    """CPU seconds of all workers and the largest worker's memory."""
    return {
        "workers": len(workers),
        "worker_cpu_s": float(sum(worker["cpu_s"] for worker in workers)),
        "peak_memory_bytes": max((int(worker["peak_memory_bytes"]) for worker in workers), default=0),
        "peak_gpu_memory_bytes": max((int(worker["peak_gpu_memory_bytes"]) for worker in workers), default=0),
    }


def headline(summary: dict[str, Any], config: Config) -> list[str]:
    """A line per split and ranking: mean and interval of every metric."""
    lines: list[str] = []
    for split in config.evaluate.splits:
        for ranking, record in summary.get(split, {}).items():
            shown = [
                f"{name} {value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
                for name, value in record.items()
                if isinstance(value, dict)
            ]
            where = _described(ranking, config)
            said = "  ".join(shown) or "no user has a target"
            trained_on = " (trained on)" if split == "validation" and config.trains_on_validation else ""
            lines.append(f"{split}{trained_on}, {record['users']:,} users, {record['candidates']:,} {where}: {said}")
    return lines


def _described(ranking: str, config: Config) -> str:
    """What is ranked, in words; `old_items` and `new_items` are asked for among the usual candidates."""
    candidates, _, width = ranking.partition("@")
    if candidates in ("old_items", "new_items"):
        usual = "held-out items" if config.split.kind == "item" else "items of the whole catalog"
        return f"{usual}, only {candidates.removesuffix('_items')} ones asked for"
    where = "held-out items" if candidates == "held_out" else "items of the whole catalog"
    return f"{where}, first {width} numbers" if width else where


def summarise_neighbours(kept: NDArray[np.float64], evaluate: EvaluateConfig) -> Record:
    """`{at, items, mean, low, high}`: the share of semantic neighbours kept, with a 95 % interval over items."""
    from beeray.core.metrics import bootstrap_interval

    interval = bootstrap_interval(kept, num_bootstrap=evaluate.num_bootstrap)
    figures = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {"at": evaluate.neighbours_at, "items": len(kept), **figures}


def neighbours_line(record: Record) -> str:
    """The same in words."""
    return (
        f"semantic neighbours kept: {record['mean']:.4f} [{record['low']:.4f}, {record['high']:.4f}] of each item's "
        f"{record['at']} nearest before training, {record['items']:,} items"
    )
