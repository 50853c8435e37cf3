"""From what workers sent to what a run reports: means with intervals, throughput, peak memory."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beeray.config import Config, EvaluateConfig
from beeray.core.intervals import bootstrap_interval

if TYPE_CHECKING:
    from beeray.runtime.split_scores import SplitScores

Record = dict[str, Any]
NOBODY = "no user has a target"
CANDIDATES = {
    "held_out": "held-out items",
    "catalog": "items of the whole catalog",
    "filtered": "items (filtered)",
    "old_items": "candidates, only items that the earlier run knew asked for",
    "new_items": "candidates, only items that are new since the earlier run asked for",
}
"""What is ranked, by name of the ranking."""


def merge_ranks(parts: Iterable[SplitScores]) -> list[SplitScores]:
    """Scores of all ranks put together, split by split, ranking by ranking and domain by domain, users in order."""
    grouped: dict[tuple[str, str, str | None], list[SplitScores]] = defaultdict(list)
    for part in parts:
        grouped[part.split, part.ranking, part.domain].append(part)
    merged: list[SplitScores] = []
    for group in grouped.values():
        users = np.concatenate([part.user_index for part in group])
        scores = np.concatenate([part.scores for part in group])
        order = np.argsort(users, kind="stable")
        merged.append(dataclasses.replace(group[0], user_index=users[order], scores=scores[order]))
    return merged


def summarise_scores(scores: Iterable[SplitScores], evaluate: EvaluateConfig) -> Record:
    """`{split: {ranking: {users, candidates, metric: {mean, low, high}}}}`, 95 % intervals over users.

    Beside the metrics stand the plain figures of `core.exposure` (`coverage@k`, `gini@k`, …), where they were counted.

    Of several domains that is over the users of all of them, and `domains` holds the same of each; `candidates` are
    then those of all domains together, of which a user has its own domain's. `kept`, where some are dropped from users'
    lists once they are ranked, is the number of the others, and `cut` how many of a user's ranking there were before.
    """
    grouped: dict[tuple[str, str], list[SplitScores]] = defaultdict(list)
    for one in scores:
        grouped[one.split, one.ranking].append(one)
    summary: Record = defaultdict(dict)
    for (split, ranking), parts in grouped.items():
        record = _summarise(parts, evaluate)
        by_domain = {part.domain: _summarise([part], evaluate) for part in parts if part.domain is not None}
        summary[split][ranking] = record | ({"domains": by_domain} if by_domain else {})
    return dict(summary)


def _summarise(parts: list[SplitScores], evaluate: EvaluateConfig) -> Record:
    scores = np.concatenate([part.scores for part in parts])
    record: Record = {"users": len(scores), "candidates": sum(part.num_candidates for part in parts)}
    if parts[0].num_kept is not None:
        record["kept"] = sum(part.num_kept or 0 for part in parts)
        record["cut"] = max([*evaluate.recall_at, *evaluate.ndcg_at])
    for place, name in enumerate(parts[0].metrics if len(scores) else ()):
        interval = bootstrap_interval(scores[:, place], num_bootstrap=evaluate.num_bootstrap)
        record[name] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return record | (parts[0].shown if len(parts) == 1 else {})


def _by_domain(summary: Record, splits: Iterable[str]) -> Iterator[tuple[str, str, str | None, Record]]:
    """Every record of a summary with its split, ranking and domain: first of all users, then of each domain's."""
    for split in splits:
        for ranking, record in summary.get(split, {}).items():
            yield split, ranking, None, record
            for domain, one in record.get("domains", {}).items():
                yield split, ranking, domain, one


def _metrics(record: Record) -> dict[str, dict[str, float]]:
    return {name: value for name, value in record.items() if isinstance(value, dict) and name != "domains"}


def flat_means(summary: Record) -> dict[str, float]:
    """`{"test/held_out/ndcg@100": 0.31, "test/held_out/books/ndcg@100": 0.29, …}`, as MLflow takes it."""
    return {
        "/".join([split, ranking, *([domain] if domain else []), name]): value["mean"]
        for split, ranking, domain, record in _by_domain(summary, summary)
        for name, value in _metrics(record).items()
    }


def scores_table(scores: Iterable[SplitScores]) -> pa.Table:
    """Per-user scores of all splits: user_index, split, ranking, domain (of several), one column a metric."""
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


def headline(summary: dict[str, Any], config: Config, learned_validation: bool | None) -> list[str]:
    """A line per split, ranking and domain: mean and interval of every metric.

    Args:
        learned_validation: whether what was scored learned from validation data; None where that is not known.
    """
    lines: list[str] = []
    for split, ranking, domain, record in _by_domain(summary, config.evaluate.splits):
        shown = [
            f"{name} {value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
            for name, value in _metrics(record).items()
        ]
        where = _described(ranking)
        where += f", {record['kept']:,} of its window kept once ranked" if "kept" in record else ""
        where += f" of {len(record['domains'])} domains" if "domains" in record else ""
        said = "  ".join(shown) or NOBODY
        trained_on = " (trained on)" if split == "validation" and learned_validation else ""
        whose = f"{split}{trained_on}{f', {domain}' if domain else ''}"
        lines.append(f"{whose}, {record['users']:,} users, {record['candidates']:,} {where}: {said}")
    return lines


def _described(ranking: str) -> str:
    """What is ranked, in words; `…@64` is a prefix of the embeddings."""
    name, _, width = ranking.partition("@")
    where = CANDIDATES.get(name, name)
    return f"{where}, first {width} numbers" if width else where


def summarise_neighbours(kept: NDArray[np.float64], evaluate: EvaluateConfig, original: str, among: int) -> Record:
    """`{original, k, among, items, mean, low, high}`: the share of neighbours kept, with a 95 % interval over items.

    Args:
        kept: of each item, the share of the `evaluate.neighbours_at` nearest before that is among the nearest after.
        original: the encoder before.
        among: number of items that neighbours were sought among.
    """
    interval = bootstrap_interval(kept, num_bootstrap=evaluate.num_bootstrap)
    figures = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {"original": original, "k": evaluate.neighbours_at, "among": among, "items": len(kept), **figures}


def neighbours_line(record: Record) -> str:
    """The same in words."""
    among = f" among {record['among']:,}" if record["among"] != record["items"] else ""
    return (
        f"semantic neighbours kept: {record['mean']:.4f} [{record['low']:.4f}, {record['high']:.4f}] of each item's "
        f"{record['k']} nearest{among} under {record['original']}, {record['items']:,} items"
    )
