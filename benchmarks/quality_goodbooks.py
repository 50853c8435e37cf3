"""How good MiniLM becomes on the GoodBooks sample (the paper's published item split), and at what cost.

Each stage is one training through `beeray.train`, from the untouched encoder: a head start alone
(`quality_goodbooks_head.yaml`: features encoded once, then whitening and a linear map), a quick fine-tuning
(`quality_goodbooks_quick.yaml`) and a long one (`quality_goodbooks_long.yaml`), in fp32 and, where a CPU multiplies it,
in bf16. Test items are scored after each, and so is the untouched encoder at the text lengths at which the reference
implementation's figures are known. A stage that is measured later joins the record.

The reference implementation took 1,493 CPU-seconds, on a machine of its own. So that a share can be told of one
machine, the stage `algorithm` times the published algorithm's step (`baselines/two_pass_padded.py`, fp32, 32 tokens,
500 items) and takes it as often as the reference's run encoded items: its steps alone, nothing around them.

    python benchmarks/quality_goodbooks.py --data FOLDER [--work FOLDER] [--stages STAGE …] [key=value …]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from baselines.contenders import Contest
from measure import environment, run_verb
from step_cpu import MODEL, compete

HERE = Path(__file__).resolve().parent
STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "untouched": ("quick", ()),
    "algorithm": ("quick", ()),
    "head": ("head", ()),
    "quick": ("quick", ()),
    "long": ("long", ()),
    "quick-bf16": ("quick", ("name=quality-goodbooks-quick-bf16", "train.precision=bf16")),
    "long-bf16": ("long", ("name=quality-goodbooks-long-bf16", "train.precision=bf16")),
}
"""Config and overrides of each stage."""
EVERYWHERE = ("untouched", "algorithm", "head", "quick", "long")
"""Stages of the program unless told: those that no kind of CPU is too slow for."""
ROUNDS = 5
RECORD = HERE / "records" / "quality_goodbooks.json"
# the reference implementation's own figures on this sample and split: untouched encoder, and trained
UNTOUCHED = {
    32: {"recall@20": 0.065, "recall@50": 0.115, "ndcg@100": 0.110},
    256: {"recall@20": 0.073, "recall@50": 0.139, "ndcg@100": 0.132},
}
REFERENCE = {"recall@20": 0.211, "recall@50": 0.318, "ndcg@100": 0.3075, "cpu_s": 1493.0}
REFERENCE_ITEMS = 62_000


def main() -> None:
    """Run the stages asked for, print a table, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with ratings.csv and item_text_descriptions.feather")
    parser.add_argument("--work", help="folder for the store and the runs; a temporary one unless given")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(EVERYWHERE))
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-quality-") as temporary:
        work = Path(arguments.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        overrides = [f"data.path={Path(arguments.data).absolute()}", *arguments.overrides]
        run_verb("prepare", "--config", str(config_of("quick")), *overrides, cwd=work)
        measured: dict[str, Any] = {}
        for stage in arguments.stages:
            measured[stage] = measure(stage, work, overrides)
            record = joined(measured)
            if not arguments.overrides:
                RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))
    print(json.dumps(record))


def measure(stage: str, work: Path, overrides: list[str]) -> dict[str, Any]:
    """One stage: training alone counts as cost, with all its processes, Ray's included."""
    name, changes = STAGES[stage]
    config = ["--config", str(config_of(name)), *overrides, *changes]
    if stage == "untouched":
        scored = {
            length: run_verb(
                "evaluate", *config, "--model", "untouched", f"evaluate.max_seq_length={length}", cwd=work
            )[0]
            for length in UNTOUCHED
        }
        return {str(length): means(record) for length, record in scored.items()}
    if stage == "algorithm":
        return published_algorithm(Path(overrides[0].partition("=")[2]))
    trained, wall_s, cpu_s = run_verb("train", *config, "--fresh", "evaluate.splits=[]", cwd=work)
    scored_model, _, evaluate_cpu_s = run_verb("evaluate", *config, cwd=work)
    return {
        "text_length": scored_model["text_length"],
        "test": scored_model["metrics"]["test"],
        "train_cpu_s": round(cpu_s, 1),
        "train_wall_s": round(wall_s, 1),
        "head": trained.get("head"),
        "training": trained["training"],
        "evaluate_cpu_s": round(evaluate_cpu_s, 1),
        "config": config_of(name).read_text(),
        "overrides": list(changes),
        **environment(),
    }


def published_algorithm(data: Path) -> dict[str, Any]:
    """CPU-seconds of the published algorithm's step on this machine, and of as many items as the reference's run."""
    contest = Contest(
        data=data,
        model=MODEL,
        num_items=500,
        num_users=64,
        max_seq_length=32,
        token_budget=0,
        dropout=0.0,
        precision="fp32",
        threads=os.cpu_count() or 1,
        mini_batch_size=0,
    )
    steps = compete(contest, ["two_pass_padded"], ROUNDS)["two_pass_padded"]
    items_cpu_s = steps["cpu_s_median"] / contest.num_items
    return {**steps, "cpu_s_an_item": items_cpu_s, "cpu_s": items_cpu_s * REFERENCE_ITEMS, **environment()}


def joined(measured: dict[str, Any]) -> dict[str, Any]:
    """The record so far, with what was measured now in it."""
    earlier = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    stages = {**earlier.get("measured", {}), **measured}
    stages = {stage: stages[stage] for stage in STAGES if stage in stages}
    return {
        "benchmark": "quality_goodbooks",
        "command": "python benchmarks/quality_goodbooks.py --data goodbooks-sample",
        "headline": headline(stages),
        "measured": stages,
        "untouched_reference": {str(length): row for length, row in UNTOUCHED.items()},
        "reference": REFERENCE,
        **environment(),
    }


def headline(stages: dict[str, Any]) -> dict[str, float]:
    """The figures that are quoted, worked out from the stages that were measured."""
    figures: dict[str, float] = {}
    trained = {name: stage for name, stage in stages.items() if name not in ("untouched", "algorithm")}
    ndcg = {name: means({"metrics": stage})["ndcg@100"] for name, stage in trained.items()}
    algorithm = stages.get("algorithm")
    if algorithm:
        figures["the published algorithm's steps on this machine, CPU-seconds"] = round(algorithm["cpu_s"], 1)
    for name, value in ndcg.items():
        figures[f"{name}: test nDCG@100"] = round(value, 4)
        figures[f"{name}: CPU-seconds of training"] = stages[name]["train_cpu_s"]
        figures[f"{name}: share of the reference's CPU-seconds"] = round(
            stages[name]["train_cpu_s"] / REFERENCE["cpu_s"], 3
        )
        if algorithm and algorithm["cpu"] == stages[name]["cpu"]:
            figures[f"{name}: share of the published algorithm's CPU-seconds"] = round(
                stages[name]["train_cpu_s"] / algorithm["cpu_s"], 3
            )
    for name in ("quick", "long"):
        if {name, f"{name}-bf16"} <= ndcg.keys():
            difference = ndcg[f"{name}-bf16"] / ndcg[name] - 1
            figures[f"{name}, bf16 against fp32: difference of nDCG@100"] = round(difference, 4)
    return figures


def config_of(name: str) -> Path:
    """A config file of this benchmark."""
    return HERE / f"quality_goodbooks_{name}.yaml"


def means(scored: dict[str, Any]) -> dict[str, float]:
    """Mean metrics among the held-out test items."""
    held_out = scored["metrics"]["test"]["held_out"]
    return {name: value["mean"] for name, value in held_out.items() if isinstance(value, dict)}


def table(record: dict[str, Any]) -> str:
    """The rows that a README shows."""
    stages = dict(record["measured"])
    rows = [(f"untouched, {length} tokens", row, "") for length, row in stages.pop("untouched", {}).items()]
    algorithm = stages.pop("algorithm", None)
    for name, stage in stages.items():
        cost = f"{stage['train_cpu_s']:,.0f} CPU-s, {stage['train_wall_s'] / 60:.1f} min"
        rows.append((f"beeray, {name}, {stage['text_length']} tokens", means({"metrics": stage}), cost))
    reference = {name: value for name, value in REFERENCE.items() if name != "cpu_s"}
    rows.append(("reference implementation, 32 tokens", reference, f"{REFERENCE['cpu_s']:,.0f} CPU-s"))
    if algorithm:
        rows[-1] = (*rows[-1][:2], f"{rows[-1][2]}; here its steps alone {algorithm['cpu_s']:,.0f} CPU-s")
    lines = [f"{'':<38}" + "".join(f"{name:>12}" for name in reference)]
    lines += [
        f"{label:<38}" + "".join(f"{row[name]:>12.4f}" for name in reference) + f"  {cost}" for label, row, cost in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
