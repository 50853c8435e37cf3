"""A run's folder as training leaves it, made by hand: forty items in two kinds of groups, one with a hostile text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from beeray.config import Config, validate_config
from beeray.data.report_items import ORIGINAL, REPORT_FOLDER, TRAINED, ReportItems, write_items
from beeray.runtime.run_folder import RunFolder

NUM_ITEMS = 40
HOSTILE = (
    '</script><img src=x onerror="window.hacked=1"> <b>bold</b> & "quoted" \u2028 <a href="http://evil.example">x</a>'
)


def original_group(item: int) -> int:
    """Items alike to the original encoder."""
    return item % 4


def trained_group(item: int) -> int:
    """Items alike to the trained encoder, which are those that users have together."""
    return item // 10


def a_run(runs: Path, name: str = "mine", **report: Any) -> Config:
    """Leave a finished run in `runs`, with a baseline and two domains, and return its config."""
    tree = {"name": name, "runs_dir": str(runs), "data": {"source": "shop"}, "report": report}
    config = validate_config(tree)
    folder = RunFolder(config)
    folder.claim("store-a")
    for step in range(30):
        folder.log_step({"step": step, "loss": 1.5 - 0.01 * step, "lr": 1e-4, "tokens": 900, "step_s": 0.5})
    folder.log_validation({"epoch": 1, "step": 30, "validation/ndcg@20": 0.3})
    folder.finish(a_record(0.4) | {"metrics_before": a_record(0.2)["metrics"]})
    baseline = folder.path / "evaluations" / "baseline-ease"
    baseline.mkdir(parents=True)
    (baseline / "metrics.json").write_text(json.dumps(a_record(0.3) | {"label": "baseline-ease"}))
    leave_items(folder.path / REPORT_FOLDER)
    return config


def a_record(mean: float) -> dict[str, Any]:
    """Metrics of two splits, the second with domains; and what training took."""
    value = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}
    shown = {"coverage@20": 0.5, "gini@20": 0.25, "popularity@20": 0.75, "target_popularity": 0.625}
    part = {"users": 100, "candidates": 12, "recall@20": value, "ndcg@20": value, **shown}
    training = {
        **{"steps": 30, "first_loss": 1.5, "last_loss": 1.21, "train_s": 15.0, "tokens_per_s": 1800.0},
        **{"items_per_s": 60.0, "workers": 2, "peak_memory_bytes": 2**30, "peak_gpu_memory_bytes": 0},
    }
    return {
        "metrics": {"validation": {"held_out": part}, "test": {"held_out": {**part, "domains": {"films": part}}}},
        "training": training,
        "store_fingerprint": "store-a",
        "text_length": 384,
        "neighbours_kept": {"k": 10, "among": 5000, "mean": 0.42, "low": 0.4, "high": 0.44},
    }


def leave_items(folder: Path) -> None:
    """Forty items, of which 0 to 4 are new, with embeddings of both encoders."""
    groups = np.array([trained_group(item) for item in range(NUM_ITEMS)])
    together = (groups[:, None] == groups[None]).astype(np.int32) * 7
    np.fill_diagonal(together, 0)
    number = np.arange(NUM_ITEMS)
    items = ReportItems(
        number.astype(np.int32),
        [f"id-{item}" for item in number],
        ["books" if item % 2 else "films" for item in number],
        [HOSTILE, *(f"Item number {item}. It has a second sentence." for item in number[1:])],
        ["test" if item < 5 else "train" for item in number],
        np.where(number < 5, 9, 20 + number),
        np.where(number < 5, 0, 20 + number),
        sparse.csr_matrix(together),
        1234,
    )
    write_items(items, folder, "store-a")
    draw = np.random.default_rng(0)
    for name, group_of in ((ORIGINAL, original_group), (TRAINED, trained_group)):
        rows = np.eye(16)[[group_of(item) for item in range(NUM_ITEMS)]] + 0.1 * draw.normal(size=(NUM_ITEMS, 16))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.save(folder / f"{name}.npy", rows.astype(np.float16))
