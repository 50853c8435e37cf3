"""What training costs beside the steps: start-up, waiting for data, bytes between ranks; and what the doctor takes.

    python benchmarks/train_overheads.py --data data/goodbooks

Real `beeray.train` runs on a prepared store. Waiting is the time from a step's end to the next one's start
(`wait_s`, checkpoints and scoring left out) as a share of all; its baseline is the time that planning took (`plan_s`),
which the loop would wait for if it planned the step itself. Bytes are `sent_bytes` of rank 0 for indices, rows and
their gradient; `tests/distributed/test_world_sizes.py` holds them, and DeepSpeed's, against the formula.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from measure import environment, run_verb  # noqa: E402
from tiny_encoder import build_tiny_encoder  # noqa: E402

RECORD = ROOT / "benchmarks" / "records" / "train_overheads.json"
WARM_UP = 3
EXAMINATIONS = 2
RUNS: dict[str, tuple[str, ...]] = {
    "minilm-2": ("train.max_steps=20",),
    "minilm-2-again": ("train.max_steps=8",),
    "minilm-1": ("cluster.num_workers=1", "train.max_steps=15"),
    "tiny-2": ("train.max_steps=200", "train.epochs=3"),
    "tiny-1": ("cluster.num_workers=1", "train.max_steps=200", "train.epochs=3"),
}
"""What is laid over configs/goodbooks-smoke.yaml: two workers, 32 users and 256 items of 32 tokens a step."""
TOLD = {
    "minilm-2": "MiniLM, 2 workers",
    "minilm-2-again": "MiniLM, 2 workers, again",
    "minilm-1": "MiniLM, 1 worker",
    "tiny-2": "the tests' tiny encoder, 2 workers",
    "tiny-1": "the tests' tiny encoder, 1 worker",
}


def main() -> None:
    """Run everything, print a table and the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the GoodBooks files")
    parser.add_argument("--store", type=Path, help="where the store is kept; a temporary folder unless given")
    parser.add_argument("--dry", action="store_true", help="write no record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-overheads-") as folder:
        store = arguments.store or Path(folder) / "store"
        record = measure(arguments.data.absolute(), store.absolute(), Path(folder))
    for name, waiting in record["waiting"].items():
        print(
            f"{name:<15} step {1e3 * waiting['step_s_median']:8.1f} ms  wait {waiting['wait_share']:6.2%}  "
            f"planning {waiting['plan_share']:6.2%}  {waiting['sent_bytes']:12,.0f} bytes  MFU {waiting['mfu']:.1%}"
        )
    for name, reached in record["startup"].items():
        print(f"{name:<15}" + "  ".join(f"{what} {seconds:.1f} s" for what, seconds in reached.items()))
    if not arguments.dry:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def measure(data: Path, store: Path, folder: Path) -> dict[str, Any]:
    """The record: start-up and waiting of each of the runs."""
    where = (f"data.path={data}", f"data.store={store}")
    common = ("tracking.log_model=false", "evaluate.splits=[]")
    run_verb("prepare", "--config", "goodbooks-smoke", *where, *common, cwd=folder)
    tiny = build_tiny_encoder(folder / "tiny")
    waiting, startup = {}, {}
    for name, overrides in RUNS.items():
        encoder = (f"encoder.name={tiny}",) if name.startswith("tiny") else ()
        done, _, _ = run_verb(
            "train", "--config", "goodbooks-smoke", *where, *common, *overrides, *encoder, f"name={name}", cwd=folder
        )
        startup[name] = done["startup_s"]
        waiting[name] = summarise(folder / "runs" / name / "steps.jsonl")
    doctor = examine("--config", "goodbooks-smoke", *where, *common, cwd=folder)
    return {
        "benchmark": "train_overheads",
        "command": "python benchmarks/train_overheads.py --data FOLDER",
        "headline": headline(waiting, startup, doctor["all"]),
        "startup": startup,
        "doctor_s": doctor,
        "waiting": waiting,
        "runs": {name: [*common, *overrides] for name, overrides in RUNS.items()},
        **environment(),
    }


def examine(*arguments: str, cwd: Path) -> dict[str, list[float]]:
    """Seconds of each of the doctor's checks, and of `all`, in every examination."""
    done = [run_verb("doctor", *arguments, "name=examined", cwd=cwd)[0] for _ in range(EXAMINATIONS)]
    checks = [{check["name"]: check["seconds"] for check in one["checks"]} | {"all": one["seconds"]} for one in done]
    return {name: [one[name] for one in checks] for name in checks[0]}


def headline(waiting: dict[str, Any], startup: dict[str, Any], doctor: Sequence[float] = ()) -> dict[str, str]:
    """What the benchmarks page shows: of each run by its encoder, since the share is one of very different steps."""
    shown = {
        f"{TOLD[name]}: share of time waiting": (
            f"{one['wait_share']:.4f} (n {one['n']}, step {one['step_s_median']:.2g} s, "
            f"wait {one['wait_s_median']:.2g} s, 95 % within {one['wait_s_p95']:.2g} s)"
        )
        for name, one in waiting.items()
    }
    first = sorted(reached["first_step"] for name, reached in startup.items() if name.startswith("minilm-2"))
    shown["MiniLM, 2 workers: s from the command to the first step"] = f"{first[0]} to {first[-1]} (n {len(first)})"
    if doctor:
        shown["beeray.doctor, MiniLM, 2 workers, on a Ray of its own: s from the command to its end"] = (
            f"{min(doctor)} to {max(doctor)} (n {len(doctor)})"
        )
    return shown


def summarise(path: Path) -> dict[str, Any]:
    """Shares of one run's time after its warm-up."""
    steps = [json.loads(line) for line in path.read_text().splitlines()][WARM_UP:]
    total = sum(step["step_s"] + step["wait_s"] for step in steps)
    waits = sorted(step["wait_s"] for step in steps)
    return {
        "n": len(steps),
        "step_s_median": statistics.median(step["step_s"] for step in steps),
        "wait_s_median": statistics.median(waits),
        "wait_s_p95": waits[int(0.95 * (len(waits) - 1))],
        "wait_share": sum(waits) / total,
        "plan_share": sum(step["plan_s"] for step in steps) / sum(step["step_s"] for step in steps),
        "sent_bytes": statistics.median(step["sent_bytes"] for step in steps),
        "mfu": statistics.median(step["mfu"] for step in steps),
        "items_per_s": sum(step["items"] for step in steps) / total,
    }


if __name__ == "__main__":
    main()
