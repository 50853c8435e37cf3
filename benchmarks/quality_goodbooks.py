"""How good MiniLM becomes on the GoodBooks sample (the paper's published item split), and at what cost.

Fine-tunes through `beeray.train` in two stages: a short one (`quality_goodbooks_short.yaml`), then, from the
encoder that this leaves, a longer one (`quality_goodbooks_long.yaml`). Their values were chosen on validation items
only. Test items are scored after each stage, and so is the untouched encoder at the text lengths at which the
reference implementation's figures are known. Costs of the second stage include the first.

    python benchmarks/quality_goodbooks.py --data FOLDER [--work FOLDER] [key=value …]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measure import environment, run_verb

HERE = Path(__file__).resolve().parent
STAGES = ("short", "long")
RECORD = HERE / "records" / "quality_goodbooks.json"
# the reference implementation's own figures on this sample and split: untouched encoder, and trained
UNTOUCHED = {
    32: {"recall@20": 0.065, "recall@50": 0.115, "ndcg@100": 0.110},
    256: {"recall@20": 0.073, "recall@50": 0.139, "ndcg@100": 0.132},
}
REFERENCE = {"recall@20": 0.211, "recall@50": 0.318, "ndcg@100": 0.3075, "cpu_s": 1493.0}


def main() -> None:
    """Run everything, print a table, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with ratings.csv and item_text_descriptions.feather")
    parser.add_argument("--work", help="folder for the store and the runs; a temporary one unless given")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-quality-") as temporary:
        work = Path(arguments.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        data = f"data.path={Path(arguments.data).absolute()}"
        record = measure(work, [data, *arguments.overrides])
    if not arguments.overrides:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))
    print(json.dumps(record))


def measure(work: Path, overrides: list[str]) -> dict[str, Any]:
    """Prepare, score the untouched encoder, train and score each stage; training alone counts as cost."""
    short = ["--config", str(config_of("short")), *overrides]
    run_verb("prepare", *short, cwd=work)
    untouched = {}
    for length in UNTOUCHED:
        scored, _, _ = run_verb(
            "evaluate", *short, "--model", "untouched", f"evaluate.max_seq_length={length}", cwd=work
        )
        untouched[length] = means(scored)
    stages: dict[str, Any] = {}
    cpu_s = wall_s = 0.0
    for stage in STAGES:
        config = ["--config", str(config_of(stage)), *overrides]
        trained, stage_wall_s, stage_cpu_s = run_verb("train", *config, "--fresh", "evaluate.splits=[]", cwd=work)
        cpu_s, wall_s = cpu_s + stage_cpu_s, wall_s + stage_wall_s
        scored, _, evaluate_cpu_s = run_verb("evaluate", *config, cwd=work)
        stages[stage] = {
            "text_length": scored["text_length"],
            "test": scored["metrics"]["test"],
            "cumulative_train_cpu_s": round(cpu_s, 1),
            "cumulative_train_wall_s": round(wall_s, 1),
            "training": trained["training"],
            "evaluate_cpu_s": round(evaluate_cpu_s, 1),
            "config": config_of(stage).read_text(),
        }
    shown = [value for value in overrides if not value.startswith("data.path=")]
    return {
        "benchmark": "quality_goodbooks",
        "command": " ".join(["python benchmarks/quality_goodbooks.py --data goodbooks-sample", *shown]),
        **environment(),
        "untouched": untouched,
        "untouched_reference": UNTOUCHED,
        "untouched_largest_difference": max(
            abs(untouched[length][name] - value) for length, row in UNTOUCHED.items() for name, value in row.items()
        ),
        "stages": stages,
        "reference": REFERENCE,
    }


def config_of(stage: str) -> Path:
    """The config of a stage."""
    return HERE / f"quality_goodbooks_{stage}.yaml"


def means(scored: dict[str, Any]) -> dict[str, float]:
    """Mean metrics among the held-out test items."""
    held_out = scored["metrics"]["test"]["held_out"]
    return {name: value["mean"] for name, value in held_out.items() if isinstance(value, dict)}


def table(record: dict[str, Any]) -> str:
    """The rows that a README shows."""
    rows = [(f"untouched, {length} tokens", row, "") for length, row in record["untouched"].items()]
    for name, stage in record["stages"].items():
        cost = f"{stage['cumulative_train_cpu_s']:,.0f} CPU-s, {stage['cumulative_train_wall_s'] / 60:.1f} min"
        rows.append((f"beeray, {name}, {stage['text_length']} tokens", means({"metrics": stage}), cost))
    reference = {name: value for name, value in REFERENCE.items() if name != "cpu_s"}
    rows.append(("reference implementation, 32 tokens", reference, f"{REFERENCE['cpu_s']:,.0f} CPU-s"))
    lines = [f"{'':<38}" + "".join(f"{name:>12}" for name in reference)]
    lines += [
        f"{label:<38}" + "".join(f"{row[name]:>12.4f}" for name in reference) + f"  {cost}" for label, row, cost in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
