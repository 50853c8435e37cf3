"""Which objective trains the better encoder: as many trials for each, chosen on validation items, scored on test items.

Every loss has a sweep of its own (`quality_losses.yaml`: `beeray.tune`, the same number of trials and steps, the same
draws of the learning rate; the two with a temperature have that drawn as well). The encoder is the lowest layers of
MiniLM, so that fifteen trials take half an hour on two cores. The best trial of each ranks the test items of the
GoodBooks sample, beside the untouched encoder, and all are compared user by user with the first loss, with Holm's
correction (`beeray.compare`). Intervals are over users; training has one seed a trial. Typed again after an
interruption with the same `--work`, it goes on.

    python benchmarks/quality_losses.py --books FOLDER [--work FOLDER] [--layers N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measure import environment, run_verb

from beeray.core.encoder import load_encoder
from beeray.core.losses import LOSSES
from beeray.data.scored import open_scored
from beeray.runtime.comparison import Choice, compare
from beeray.runtime.comparison_table import comparison_text

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "quality_losses.yaml"
RECORD = HERE / "records" / "quality_losses.json"
METRIC = "ndcg@100"
CHOICE = Choice(splits=("test",), rankings=("held_out",), metrics=(METRIC,))
LAYERS = 2
TEMPERATURE = {"loguniform": [0.03, 0.3]}
"""Of the losses that have one; `nmse` has none."""


def main() -> None:
    """Sweep and score what is not there yet; print the comparisons, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", required=True, help="folder with ratings.csv and item_text_descriptions.feather")
    parser.add_argument("--work", help="folder for stores and runs; a temporary one unless given")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of MiniLM's six; other than the default: a try")
    parser.add_argument("--dry", action="store_true", help="write no record")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-losses-") as temporary:
        work = Path(arguments.work or temporary).absolute()
        work.mkdir(parents=True, exist_ok=True)
        record = measure(work, str(Path(arguments.books).absolute()), arguments.layers, arguments.overrides)
    if not arguments.dry and not arguments.overrides and arguments.layers == LAYERS:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(comparison_text(record["compared"]))
    print(json.dumps(record))


def measure(work: Path, books: str, num_layers: int, overrides: list[str]) -> dict[str, Any]:
    """The record."""
    shared = yaml.safe_load(CONFIG.read_text())
    shared["data"]["path"] = books
    shared["encoder"]["name"] = lowest_layers(work / f"{num_layers}-layers", shared["encoder"]["name"], num_layers)
    sweeps: dict[str, Any] = {}
    scored: dict[str, Path] = {}
    for loss in LOSSES:
        config = of_loss(shared, loss)
        (work / f"{loss}.yaml").write_text(yaml.safe_dump(config))
        tuned, wall_s, cpu_s = run_verb("tune", "--config", f"{loss}.yaml", *overrides, cwd=work)
        trials = Path(tuned["folder"]) / "trials"
        sweeps[loss] = {
            "trials": [trial_of(path) for path in sorted(trials.glob("trial-*/trial.json"))],
            "best": tuned["best"],
            "wall_s": round(wall_s, 1),
            "cpu_s": round(cpu_s, 1),
        }
        scored[loss] = evaluated(work, shared, str(trials / tuned["best"]["trial"] / "model"), overrides)
    scored["untouched"] = evaluated(work, shared, "untouched", overrides)
    compared = {"labels": list(scored), **compare([open_scored(str(folder)) for folder in scored.values()], CHOICE)}
    for system in compared["systems"]:
        system["folder"] = str(Path(system["folder"]).relative_to(work))
    return {
        "benchmark": "quality_losses",
        "command": "python benchmarks/quality_losses.py --books goodbooks-sample",
        "headline": headline(compared, sweeps),
        "compared": compared,
        "sweeps": sweeps,
        "layers": num_layers,
        "config": CONFIG.read_text(),
        "temperature": TEMPERATURE,
        **environment(),
    }


def lowest_layers(folder: Path, name: str, number: int) -> str:
    """Folder of an encoder with so many of another's layers."""
    if not folder.is_dir():
        encoder = load_encoder(name, max_seq_length=512)
        transformer = encoder[0].auto_model
        transformer.encoder.layer = transformer.encoder.layer[:number]
        transformer.config.num_hidden_layers = number
        encoder.save(str(folder), create_model_card=False)
    return str(folder)


def of_loss(shared: dict[str, Any], loss: str) -> dict[str, Any]:
    """The sweep of one loss, with a temperature where it has one."""
    space = shared["tune"]["space"] | ({} if loss == "nmse" else {"train.temperature": TEMPERATURE})
    return {
        **shared,
        "name": f"{shared['name']}-{loss}",
        "train": {**shared["train"], "loss": loss},
        "tune": {**shared["tune"], "space": space},
    }


def evaluated(work: Path, shared: dict[str, Any], model: str, overrides: list[str]) -> Path:
    """Where a model's scores of the test items are."""
    path = work / "test.yaml"
    path.write_text(yaml.safe_dump({**shared, "evaluate": {**shared["evaluate"], "splits": ["test"]}}))
    record, _, _ = run_verb("evaluate", "--config", path.name, "--model", model, *overrides, cwd=work)
    return work / Path(record["scores"]).parent


def trial_of(path: Path) -> dict[str, Any]:
    """What a trial tried, and its validation metric."""
    trial = json.loads(path.read_text())
    return {key: trial[key] for key in ("status", "values", "metric")}


def headline(compared: dict[str, Any], sweeps: dict[str, Any]) -> dict[str, str]:
    """Means on test items and what sets them apart from the first loss, with intervals; what each sweep chose."""
    figures: dict[str, str] = {}
    rows = compared["tables"][0]["metrics"][METRIC]
    for label, row in zip(compared["labels"], rows, strict=True):
        figures[f"{label}: test nDCG@100"] = "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**row)
        if "difference" in row:
            apart = "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**row["difference"])
            figures[f"{label} less {compared['labels'][0]}"] = f"{apart}, Holm p {row['p_holm']:.2g}"
    for label, sweep in sweeps.items():
        best = sweep["best"]
        chosen = ", ".join(f"{key.removeprefix('train.')} {value:.2g}" for key, value in best["values"].items())
        figures[f"{label}: validation, best of {len(sweep['trials'])}"] = f"{best['metric']:.4f} ({chosen})"
    return figures


if __name__ == "__main__":
    main()
