"""A sweep on two cores: what a trial costs beside its steps, what early stopping saves, and if a kill loses anything.

    python benchmarks/tune_sweep.py

Eight trials of a tiny encoder on the generated shop, two at once. The command is killed (SIGKILL, the command alone)
when three trials have ended; it is counted which of its processes live on, and the same command goes on. Then
`best.yaml` is trained. The baseline is the same sweep in the same run without early stopping and without a kill.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from measure import Family, environment, run_verb  # noqa: E402
from tiny_encoder import build_tiny_encoder  # noqa: E402

RECORD = ROOT / "benchmarks" / "records" / "tune_sweep.json"
NUM_TRIALS, EPOCHS = 8, 6
POLL_S = 0.1
PATIENCE_S = 60.0


def a_config(folder: Path) -> dict[str, Any]:
    """Six epochs; lr over four powers of ten, items a step."""
    return {
        "data": {"source": "shop", "shop": {"num_users": 1500}, "store": str(folder / "store")},
        "encoder": {"name": str(build_tiny_encoder(folder / "tiny")), "max_seq_length": 32},
        "train": {"optimizer": "adamw", "scheduler": "cosine", "epochs": EPOCHS, "batch_size": 64, "max_output": 256},
        "evaluate": {"ndcg_at": [20], "recall_at": [20]},
        "tracking": {"log_model": False},
        "tune": {
            "space": {"train.lr": {"loguniform": [1e-6, 1e-2]}, "train.max_output": {"choice": [128, 256]}},
            "num_trials": NUM_TRIALS,
            "max_concurrent": 2,
            "random_trials": 4,
        },
    }


def main() -> None:
    """Run the sweeps, print a table and the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="write no record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-sweep-") as folder:
        record = measure(Path(folder))
    for name, one in record["sweeps"].items():
        counts = ", ".join(f"{number} {status}" for status, number in one["trials"].items() if number)
        print(f"{name:<10} {one['wall_s']:6.1f} s  {counts:<24} {one['steps']:5d} steps  best {one['best']:.4f}")
    print("  ".join(f"{name}: {value}" for name, value in record["headline"].items()))
    if not arguments.dry:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def measure(folder: Path) -> dict[str, Any]:
    """The record."""
    config = a_config(folder)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(config))
    common = ("--config", "sweep.yaml")
    run_verb("prepare", *common, cwd=folder)
    killed_after_s, gone_after_s, left, before = start_and_kill(folder, common)
    resumed, resumed_s, _ = run_verb("tune", *common, cwd=folder)
    trials = known(folder, "sweep")
    kept = [one for one in before if one["status"] != "running"]
    family = Family()
    again, again_s, _ = run_verb("train", "--config", str(folder / "runs" / "sweep" / "best.yaml"), cwd=folder)
    metric = resumed["metric"]
    whole, whole_s, _ = run_verb("tune", *common, "name=whole", "tune.asha=null", cwd=folder, family=family)
    sweeps = {
        "asha": summary(folder, "sweep", resumed, killed_after_s + resumed_s),
        "no_asha": summary(folder, "whole", whole, whole_s),
    }
    return {
        "benchmark": "tune_sweep",
        "headline": {
            "trials": len(trials),
            "stopped_early": sweeps["asha"]["trials"]["stopped"],
            "steps_against_no_early_stopping": round(sweeps["asha"]["steps"] / sweeps["no_asha"]["steps"], 3),
            "ended_before_the_kill_and_kept": sum(as_found(trials[one["number"]]) == as_found(one) for one in kept),
            "processes_left_by_the_kill": left,
            "retrained_less_trial": again["validation"][-1][metric] - resumed["best"]["metric"],
            "s of the sweep a trial, two at once": round(whole_s / NUM_TRIALS, 1),
            "s of a trial's own time beside its steps": round(statistics.median(beside_steps(folder, "whole")), 1),
        },
        "sweeps": sweeps,
        "killed": {
            "after_s": round(killed_after_s, 1),
            "ended": len(kept),
            "running": len(before) - len(kept),
            "processes_gone_after_s": round(gone_after_s, 1),
        },
        "peak_total_mib": round(family.peak_total_bytes / 2**20),
        "retrained": {"metric": again["validation"][-1][metric], "wall_s": round(again_s, 1)},
        "config": config,
        "n": NUM_TRIALS,
        **environment(),
    }


def as_found(trial: dict[str, Any]) -> dict[str, Any]:
    """What a trial found, without what MLflow was told of it later."""
    return trial | {"mlflow_run_id": None}


def start_and_kill(folder: Path, common: tuple[str, ...]) -> tuple[float, float, int, list[dict[str, Any]]]:
    """Start the sweep and kill its command when three trials have ended.

    Returns:
        seconds until the kill and from then until its processes were gone, how many never went, and all trials.
    """
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "beeray.tune", *common], cwd=folder)
    while sum(one["status"] != "running" for one in known(folder, "sweep")) < 3:
        if process.poll() is not None:
            raise SystemExit(f"the sweep ended with {process.returncode} before it was killed")
        time.sleep(POLL_S)
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    killed = time.monotonic()
    _, alive = psutil.wait_procs(descendants, timeout=PATIENCE_S)
    gone_after_s = time.monotonic() - killed
    for one in alive:
        one.kill()
    return killed - started, gone_after_s, len(alive), known(folder, "sweep")


def known(folder: Path, name: str) -> list[dict[str, Any]]:
    """Every trial's record, by number."""
    paths = sorted((folder / "runs" / name / "trials").glob("trial-*/trial.json"))
    return [json.loads(path.read_text()) for path in paths]


def steps_of(folder: Path, name: str) -> list[dict[int, dict[str, Any]]]:
    """Every trial's steps, each as it was last computed."""
    files = sorted((folder / "runs" / name / "trials").glob("trial-*/steps.jsonl"))
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return [{one["step"]: one for one in of_file} for of_file in lines]


def beside_steps(folder: Path, name: str) -> list[float]:
    """Seconds of every trial that are not its steps: starting, scoring, checkpoints."""
    seconds = [sum(one["step_s"] + one["wait_s"] for one in steps.values()) for steps in steps_of(folder, name)]
    return [trial["wall_s"] - own for trial, own in zip(known(folder, name), seconds, strict=True)]


def summary(folder: Path, name: str, record: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """What one sweep took and found."""
    return {
        "wall_s": round(wall_s, 1),
        "trials": record["trials"],
        "steps": sum(len(steps) for steps in steps_of(folder, name)),
        "best": record["best"]["metric"],
        "best_values": record["best"]["values"],
    }


if __name__ == "__main__":
    main()
