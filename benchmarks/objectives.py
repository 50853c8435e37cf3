"""What each objective, and each way to keep what the encoder knew, costs a step and does to the encoder.

    python benchmarks/objectives.py --data goodbooks-sample --work /tmp/objectives

Real `beeray.train` runs of MiniLM on GoodBooks, alike but for the settings below; the first, `nmse` alone, is the
baseline of all. A learning rate that suits `nmse` need not suit the others, and none was tuned here: read the columns
for what an option costs and keeps, not for which loss is best. The last run goes on with the first's encoder on a store
that has grown by a tenth of its items. With `--work` runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.feather as feather
from measure import environment, run_verb

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "records" / "objectives.json"
WARM_UP = 3
COMMON = (
    *("cluster.num_workers=1", "train.precision=bf16", "train.batch_size=64", "train.max_output=400"),
    *("train.max_steps=40", "train.epochs=2", "evaluate.before=true", "evaluate.full_catalog=false"),
    *("evaluate.splits=[test]", "tracking.log_model=false", "report.enabled=false"),
)
"""What is laid over configs/goodbooks-smoke.yaml in every run."""
BASELINE = "nmse"
RUNS: dict[str, tuple[str, ...]] = {
    BASELINE: (),
    "multinomial": ("train.loss=multinomial",),
    "sampled_softmax": ("train.loss=sampled_softmax",),
    "nmse, distilled": ("train.distill_weight=1",),
    "nmse, 3 of 6 layers frozen": ("train.freeze_layers=3",),
    "nmse, LoRA": ("train.lora.rank=16", "train.lr=2e-3"),
    "nmse, prefixes": ("train.matryoshka_dims=[64,128]",),
    "sampled_softmax, all of it": (
        *("train.loss=sampled_softmax", "train.distill_weight=1", "train.freeze_layers=3"),
        *("train.matryoshka_dims=[64,128]", "train.lora.rank=16", "train.lr=2e-3"),
    ),
}
TOMORROW = "tomorrow"
NEW_EVERY = 10
"""Every tenth item is not in yesterday's store."""


def main() -> None:
    """Run everything, print a table and the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the GoodBooks files")
    parser.add_argument("--work", type=Path, help="where stores and runs are kept; a temporary folder unless given")
    parser.add_argument("--dry", action="store_true", help="write no record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-objectives-") as folder:
        work = (arguments.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        record = measure(arguments.data.absolute(), work)
    print(f"{'':<28}{'step':>9}{'of nmse':>9}{'kept':>8}{'nDCG@100':>10}")
    for name, one in record["runs"].items():
        further = "".join(f"  {ranking} {value:.4f}" for ranking, value in one["further"].items())
        print(
            f"{name:<28}{one['step_s_median']:>7.2f} s{one['step_of_baseline']:>9.2f}{one['neighbours_kept']:>8.3f}"
            f"{one['ndcg']:>10.4f}{further}"
        )
    if not arguments.dry:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def measure(data: Path, work: Path) -> dict[str, Any]:
    """The record: every run's step time, neighbours kept and figures."""
    yesterday = without_new_items(data, work / "yesterday")
    runs: dict[str, dict[str, Any]] = {}
    for place, (name, overrides) in enumerate(RUNS.items()):
        store = ("data.store=stores/yesterday", f"data.path={yesterday}", f"name=run-{place}")
        runs[name] = train(work, *store, *overrides)
    today = ("data.store=stores/today", f"data.path={data}", "name=run-tomorrow", "train.init_from=runs/run-0")
    runs[TOMORROW] = train(work, *today)
    for one in runs.values():
        one["step_of_baseline"] = one["step_s_median"] / runs[BASELINE]["step_s_median"]
    return {
        "benchmark": "objectives",
        "headline": {
            "sampled_softmax: step / nmse's": runs["sampled_softmax"]["step_of_baseline"],
            "half the layers frozen: step / nmse's": runs["nmse, 3 of 6 layers frozen"]["step_of_baseline"],
            "neighbours kept, nmse": runs[BASELINE]["neighbours_kept"],
            "neighbours kept, nmse distilled": runs["nmse, distilled"]["neighbours_kept"],
        },
        "runs": runs,
        "common": ["--config goodbooks-smoke", *COMMON],
        **environment(),
    }


def without_new_items(data: Path, folder: Path) -> Path:
    """The same data set without every tenth item, as it was yesterday."""
    folder.mkdir(exist_ok=True)
    texts, ratings = feather.read_table(data / "item_text_descriptions.feather"), csv.read_csv(data / "ratings.csv")
    known = pc.unique(texts["book_id"]).filter([place % NEW_EVERY != 0 for place in range(len(texts))])
    feather.write_feather(texts.filter(pc.is_in(texts["book_id"], known)), folder / "item_text_descriptions.feather")
    csv.write_csv(ratings.filter(pc.is_in(ratings["book_id"], known)), folder / "ratings.csv")
    return folder


def train(work: Path, *overrides: str) -> dict[str, Any]:
    """One run: seconds of a step after warm-up, neighbours kept, and test figures before and after."""
    done, _, _ = run_verb("train", "--config", "goodbooks-smoke", *COMMON, *overrides, cwd=work)
    lines = (Path(done["folder"]) / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = sorted(json.loads(line)["step_s"] for line in lines[WARM_UP:])
    figures = {ranking: one["ndcg@100"]["mean"] for ranking, one in done["metrics"]["test"].items()}
    return {
        "overrides": [one for one in overrides if not one.startswith(("data.", "name="))],
        "steps": len(lines),
        "step_s_median": statistics.median(seconds),
        "step_s_quartiles": [seconds[len(seconds) // 4], seconds[3 * len(seconds) // 4]],
        "peak_memory_mib": round(done["training"]["peak_memory_bytes"] / 2**20, 1),
        "loss": [done["training"]["first_loss"], done["training"]["last_loss"]],
        "neighbours_kept": done["neighbours_kept"]["mean"],
        "ndcg_before": done["metrics_before"]["test"]["held_out"]["ndcg@100"]["mean"],
        "ndcg": figures.pop("held_out"),
        "further": figures,
        **({"init_from": done["init_from"]} if "init_from" in done else {}),
    }


if __name__ == "__main__":
    main()
