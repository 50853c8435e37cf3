"""What fine-tuning adds to a frozen encoder with a trained head, and a second data set to the first: books and films.

For each of the two data sets (the GoodBooks sample and MovieLens small, the published item splits) four encoders
rank the test items of the same users: the untouched one; the frozen one with a head of its own, trained under the same
loss; one fine-tuned on this data set alone; and one fine-tuned on both (`quality_goodlens.yaml`), with as many steps as
the two alone have together. They are compared user by user (`beeray.compare`). Typed again after an interruption with
the same `--work`, it goes on.

    python benchmarks/quality_goodlens.py --books FOLDER --films FOLDER [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measure import environment, run_verb

from beeray.data.scored import open_scored
from beeray.runtime.comparison import Choice, compare
from beeray.runtime.comparison_table import comparison_text

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "quality_goodlens.yaml"
RECORD = HERE / "records" / "quality_goodlens.json"
METRIC = "ndcg@100"
CHOICE = Choice(splits=("test",), rankings=("held_out",), metrics=(METRIC,))
BARS = {"untouched": "at least twice it", "frozen_head": "above it, by the interval"}


def main() -> None:
    """Train and score what is not there yet; print the comparisons, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", required=True, help="folder with ratings.csv and item_text_descriptions.feather")
    parser.add_argument("--films", required=True, help="folder with ratings.csv, movies.csv and tags.csv")
    parser.add_argument("--work", help="folder for stores and runs; a temporary one unless given")
    parser.add_argument("--dry", action="store_true", help="write no record")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    paths = {"books": str(Path(arguments.books).absolute()), "films": str(Path(arguments.films).absolute())}
    with tempfile.TemporaryDirectory(prefix="beeray-goodlens-") as temporary:
        work = Path(arguments.work or temporary).absolute()
        work.mkdir(parents=True, exist_ok=True)
        record = measure(work, paths, arguments.overrides)
    if not arguments.dry and not arguments.overrides:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for compared in record["compared"].values():
        print(comparison_text(compared))
    print(json.dumps(record))


def measure(work: Path, paths: dict[str, str], overrides: list[str]) -> dict[str, Any]:
    """The record."""
    both = yaml.safe_load(CONFIG.read_text())
    for domain, path in paths.items():
        both["data"]["domains"][domain]["path"] = path
    configs = {"goodlens": both, **{domain: alone(both, domain) for domain in paths}}
    for name, config in configs.items():
        (work / f"{name}.yaml").write_text(yaml.safe_dump(config))
    trained: dict[str, Any] = {}
    for name in ("books", "films", "goodlens"):
        of_name = ["--config", f"{name}.yaml", *overrides]
        record, _, cpu_s = run_verb("train", *of_name, cwd=work)
        trained[name] = {"training": record["training"], "head": record.get("head"), "cpu_s": round(cpu_s, 1)}
    compared: dict[str, Any] = {}
    for domain in paths:
        of_domain = ["--config", f"{domain}.yaml", *overrides]
        run_verb("baselines", *of_domain, "--only", "untouched,frozen_head", cwd=work)
        goodlens = work / "runs" / both["name"] / "model"
        scored, _, _ = run_verb("evaluate", *of_domain, "--model", str(goodlens), cwd=work)
        run = work / "runs" / configs[domain]["name"]
        folders = {
            "frozen_head": run / "evaluations" / "baseline-frozen_head",
            "untouched": run / "evaluations" / "baseline-untouched",
            "alone": run,
            "goodlens": work / Path(scored["scores"]).parent,
        }
        systems = {label: open_scored(str(folder)) for label, folder in folders.items()}
        compared[domain] = {"labels": list(folders), **compare(list(systems.values()), CHOICE)}
        compared[f"{domain}, alone against both"] = compare([systems["alone"], systems["goodlens"]], CHOICE)
    return {
        "benchmark": "quality_goodlens",
        "command": "python benchmarks/quality_goodlens.py --books goodbooks-sample --films ml-latest-small",
        "headline": headline(compared),
        "compared": without_paths(compared, work),
        "trained": trained,
        "bars": BARS,
        "config": CONFIG.read_text(),
        **environment(),
    }


def alone(both: dict[str, Any], domain: str) -> dict[str, Any]:
    """The config of one data set: its part of `both`, and half the steps."""
    shared = {key: value for key, value in both["data"].items() if key not in ("domains", "store")}
    own = {key: value for key, value in both["data"]["domains"][domain].items() if key != "weight"}
    name = f"{both['name']}-{domain}"
    return {
        **both,
        "name": name,
        "data": {**shared, **own, "store": f"stores/{name}"},
        "train": {**both["train"], "max_steps": both["train"]["max_steps"] // 2, "epochs": 100},
    }


def headline(compared: dict[str, Any]) -> dict[str, float | str]:
    """Means, and what fine-tuning adds to either control."""
    figures: dict[str, float | str] = {}
    for domain, record in compared.items():
        rows = record["tables"][0]["metrics"][METRIC]
        if "labels" not in record:
            figures[f"{domain}: difference"] = interval(rows[1]["difference"])
            continue
        named = dict(zip(record["labels"], rows, strict=True))
        for label, row in named.items():
            figures[f"{domain}, {label}: test nDCG@100"] = round(row["mean"], 4)
        for label in ("alone", "goodlens"):
            figures[f"{domain}, {label} / untouched"] = round(named[label]["mean"] / named["untouched"]["mean"], 2)
            figures[f"{domain}, {label} less frozen + head"] = interval(named[label]["difference"])
    return figures


def interval(difference: dict[str, float]) -> str:
    """A difference with its 95 % interval."""
    return "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**difference)


def without_paths(compared: dict[str, Any], work: Path) -> dict[str, Any]:
    """The same, folders as seen from where the commands ran."""
    for record in compared.values():
        for system in record["systems"]:
            system["folder"] = str(Path(system["folder"]).relative_to(work))
    return compared


if __name__ == "__main__":
    main()
