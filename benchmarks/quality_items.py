"""Which items and users a step should take, and other ways to spend as many encoded items: tried on *validation* items.

One process trains the lowest layers of MiniLM with the real step, without Ray, as `quality_search.py` does: 16 steps,
8,000 encoded items, the GoodBooks sample. Each arm changes one thing of `quality_losses.yaml` (`nmse`, 64 users, 500
items, 16 tokens) and is trained at each rate from each seed; its figure is the mean over seeds at its better rate,
beside the difference from the unchanged step at *its* better rate. Validation items are not trained on. Typed again
with the same `--work`, it goes on.

    python benchmarks/quality_items.py --books FOLDER --work FOLDER [--seeds N] [arm …]

What is not an option of a config is tried by drawing a step's items otherwise: `share`: so much of them positives of
the step's users, the rest uniform negatives (the default draws negatives only where positives are too few); `by_step`,
`by_catalog`: positives thinned in proportion to a power of how many of the step's users, or of all, have them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import environment, run_verb
from numpy.typing import NDArray
from quality_losses import CONFIG, LAYERS, lowest_layers
from quality_search import batches, optimise, score, tokenised

from beeray.config import Config, load_config
from beeray.core.batching import FlatTokens
from beeray.core.encoder import Encoder, load_encoder
from beeray.core.negatives import select_items
from beeray.core.plan import StepPlanner
from beeray.core.step import StepSettings, TrainingStep
from beeray.core.user_items import UserItems
from beeray.data.store import Store
from beeray.runtime.head_start import training_users
from beeray.runtime.step_settings import step_settings

RECORD = Path(__file__).resolve().parent / "records" / "quality_items.json"
RATES = (4e-4, 8e-4)
UNCHANGED = "unchanged"
Draw = Callable[[NDArray[np.int32], "Drawing"], NDArray[np.int32]]


@dataclass(frozen=True)
class Drawing:
    """What an arm may draw a step's items from.

    Attributes:
        positives: distinct items of the step's users, sorted.
        in_step: how many of the step's users have each of them.
        in_catalog: how many users have each of them.
        number: items of the step.
        generator: of the step.
    """

    positives: NDArray[np.int32]
    in_step: NDArray[np.int64]
    in_catalog: NDArray[np.int64]
    number: int
    generator: np.random.Generator


@dataclass(frozen=True)
class Arm:
    """One change to the step.

    Attributes:
        overrides: of the config.
        draw: how items are drawn from the trainable ones; None: as beeray does.
        items, tokens: of a step, as multiples of the config's, at first and at last; linear in between.
    """

    overrides: tuple[str, ...] = ()
    draw: Draw | None = None
    items: tuple[float, float] = (1.0, 1.0)
    tokens: tuple[float, float] = (1.0, 1.0)


def share(of_positives: float) -> Draw:
    """So much of a step's items positives, the rest uniform negatives."""

    def draw(trainable: NDArray[np.int32], given: Drawing) -> NDArray[np.int32]:
        num_kept = min(len(given.positives), round(of_positives * given.number))
        kept = np.sort(given.generator.choice(given.positives, num_kept, replace=False))
        others = np.setdiff1d(trainable, given.positives, assume_unique=True)
        return np.sort(np.concatenate([kept, given.generator.choice(others, given.number - num_kept, replace=False)]))

    return draw


def weighted(counts: Callable[[Drawing], NDArray[np.int64]], power: float) -> Draw:
    """Positives thinned in proportion to a power of their counts."""

    def draw(trainable: NDArray[np.int32], given: Drawing) -> NDArray[np.int32]:
        if len(given.positives) <= given.number:
            return select_items("bounded", given.positives, trainable, given.number, given.generator)
        weights = counts(given).astype(np.float64) ** power
        return np.sort(given.generator.choice(given.positives, given.number, replace=False, p=weights / weights.sum()))

    return draw


ARMS = {
    UNCHANGED: Arm(),
    "share 0.75": Arm(draw=share(0.75)),
    "share 0.5": Arm(draw=share(0.5)),
    "share 0.25": Arm(draw=share(0.25)),
    "by_step^1": Arm(draw=weighted(lambda given: given.in_step, 1.0)),
    "by_step^2": Arm(draw=weighted(lambda given: given.in_step, 2.0)),
    "by_catalog^0.5": Arm(draw=weighted(lambda given: given.in_catalog, 0.5)),
    "by_catalog^-0.5": Arm(draw=weighted(lambda given: given.in_catalog, -0.5)),
    "items 250 to 750": Arm(items=(0.5, 1.5)),
    "items 750 to 250": Arm(items=(1.5, 0.5)),
    "tokens 8 to 24": Arm(tokens=(0.5, 1.5)),
    "32 users": Arm(("train.batch_size=32",)),
    "128 users": Arm(("train.batch_size=128",)),
    "256 users": Arm(("train.batch_size=256",)),
    "8 steps of 1,000 items": Arm(("train.max_steps=8", "train.max_output=1000")),
    "32 steps of 250 items": Arm(("train.max_steps=32", "train.max_output=250")),
    "without relu": Arm(("train.relu=false",)),
    "top_k 50": Arm(("train.top_k=50",)),
    "constant rate": Arm(("train.scheduler=constant",)),
    "nadam": Arm(("train.optimizer=nadam",)),
}


class ArmPlanner(StepPlanner):
    """Draws as an arm says; one rank, one domain."""

    arm: Arm
    in_catalog: NDArray[np.int64]

    def _draw(self, users: UserItems, epoch: int, step: int) -> NDArray[np.int32]:
        if self.arm.draw is None:
            return super()._draw(users, epoch, step)
        positives, in_step = np.unique(users.indices, return_counts=True)
        number = self.settings.max_output or len(self.trainable)
        generator = np.random.default_rng([self.settings.seed, epoch, step])
        drawing = Drawing(positives, in_step, self.in_catalog[positives], number, generator)
        return self.arm.draw(self.trainable, drawing)


def main() -> None:
    """Train what is not there yet; print a line a training, a table, and the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", required=True, help="folder with ratings.csv and item_text_descriptions.feather")
    parser.add_argument("--work", required=True, type=Path, help="folder for the store and what was trained so far")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="write no record")
    parser.add_argument("arms", nargs="*", default=list(ARMS), help=f"of {', '.join(ARMS)}; all unless given")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    trained = train_all(work, str(Path(arguments.books).absolute()), arguments.arms, arguments.seeds)
    record = summary(trained, arguments.arms)
    for name, figures in record["headline"].items():
        print(f"{name}: {figures}")
    if not arguments.dry and arguments.arms == list(ARMS):
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def train_all(work: Path, books: str, arms: list[str], num_seeds: int) -> list[dict[str, Any]]:
    """Every arm at every rate from every seed, those before included."""
    shared = yaml.safe_load(CONFIG.read_text())
    shared["data"] |= {"path": books, "store": str(work / "stores" / "quality-losses")}
    shared["encoder"]["name"] = lowest_layers(work / f"{LAYERS}-layers", shared["encoder"]["name"], LAYERS)
    (work / "items.yaml").write_text(yaml.safe_dump({name: part for name, part in shared.items() if name != "tune"}))
    run_verb("prepare", "--config", "items.yaml", cwd=work)
    store = Store.open(shared["data"]["store"])
    path = work / "items.jsonl"
    trained = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(one["arm"], one["lr"], one["seed"]) for one in trained}
    for seed in range(num_seeds):
        for name in arms:
            for lr in RATES:
                if (name, lr, seed) not in done:
                    overrides = (*ARMS[name].overrides, f"train.lr={lr}", f"seed={seed}")
                    config = load_config(str(work / "items.yaml"), overrides)
                    trained.append({"arm": name, "lr": lr, "seed": seed, **train_one(ARMS[name], config, store)})
                    with path.open("a") as stream:
                        stream.write(json.dumps(trained[-1]) + "\n")
                    print(trained[-1], flush=True)
    return trained


def train_one(arm: Arm, config: Config, store: Store) -> dict[str, Any]:
    """One training's validation nDCG@100, encoded items, tokens and CPU seconds."""
    started = time.process_time()
    torch.manual_seed(config.seed)
    model = load_encoder(config.encoder.name, max_seq_length=64, dropout=config.encoder.dropout)
    encoder = Encoder(model)
    tokens = cache(lambda length: tokenised(store, model, length))
    users = training_users(store, config, np.arange(store.meta.num_items, dtype=np.int32))
    num_steps = config.train.max_steps or 0
    planned = planned_steps(arm, config, store, tokens, encoder, users, num_steps)
    num_items, num_tokens = optimise(encoder, config, planned, num_steps)
    cpu_s = round(time.process_time() - started, 1)
    scored = score(encoder, config, store, tokens(config.served_seq_length))
    return {"ndcg@100": scored, "items": num_items, "tokens": num_tokens, "cpu_s": cpu_s}


def planned_steps(
    arm: Arm,
    config: Config,
    store: Store,
    tokens: Callable[[int], FlatTokens],
    encoder: Encoder,
    users: UserItems,
    num_steps: int,
) -> Iterator[tuple[TrainingStep, UserItems]]:
    """Each step with its users; a step whose items or tokens grow is a `TrainingStep` of its own.

    Args:
        tokens: the catalog's, cut to a length.
    """
    trainable, base = store.trainable_items(False), step_settings(config)
    in_catalog = np.bincount(users.indices, minlength=store.meta.num_items)
    steps: dict[StepSettings, TrainingStep] = {}
    drawn = zip(range(num_steps), batches(users, config.train.batch_size, config.seed), strict=False)
    for number, batch in drawn:
        done = number / max(1, num_steps - 1)
        settings = replace(
            base,
            max_output=round((base.max_output or 0) * float(np.interp(done, (0, 1), arm.items))),
            max_seq_length=round(base.max_seq_length * float(np.interp(done, (0, 1), arm.tokens))),
        )
        if settings not in steps:
            cut = tokens(settings.max_seq_length)
            steps[settings] = TrainingStep(encoder, cut, trainable, settings)
            planner = ArmPlanner(cut, trainable, settings)
            planner.arm, planner.in_catalog = arm, in_catalog
            steps[settings].planner = planner
        yield steps[settings], batch


def summary(trained: list[dict[str, Any]], arms: list[str]) -> dict[str, Any]:
    """The record: of every arm its better rate, mean over seeds, and how far it is from the unchanged step."""
    best = {name: better_rate(trained, name) for name in arms}
    headline = {}
    for name, (lr, by_seed) in best.items():
        mean = statistics.mean(by_seed.values())
        said = f"{mean:.4f} at lr {lr:g}"
        if name != UNCHANGED and UNCHANGED in best:
            apart = [by_seed[seed] - best[UNCHANGED][1][seed] for seed in by_seed]
            said += f", {statistics.mean(apart):+.4f} ({min(apart):+.4f} to {max(apart):+.4f}, n {len(apart)})"
        headline[f"{name}: validation nDCG@100"] = said
    return {
        "benchmark": "quality_items",
        "command": "python benchmarks/quality_items.py --books goodbooks-sample --work FOLDER",
        "headline": headline,
        "trained": trained,
        "layers": LAYERS,
        "config": CONFIG.read_text(),
        **environment(),
    }


def better_rate(trained: list[dict[str, Any]], arm: str) -> tuple[float, dict[int, float]]:
    """The rate with the highest mean of an arm, and its figure from each seed."""
    rates = {
        lr: {one["seed"]: one["ndcg@100"] for one in trained if (one["arm"], one["lr"]) == (arm, lr)} for lr in RATES
    }
    lr = max(rates, key=lambda rate: statistics.mean(rates[rate].values()))
    return lr, rates[lr]


if __name__ == "__main__":
    main()
