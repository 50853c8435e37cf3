"""The best trial's config, as `beeray.train` takes it."""

from __future__ import annotations

import json

import yaml

from beeray.config import Config, at_point
from beeray.runtime.sweep.folder import SweepFolder, Trial
from beeray.runtime.whole_files import write_whole


def best_config(config: Config, best: Trial, threads: int | None) -> Config:
    """The sweep's config at the best point, which trains to the trial's metric again.

    Validation data stays held out and is scored; the store is the sweep's.

    Args:
        threads: of a worker, as the trial had them: another number sums in another order.
    """
    at_best = at_point(config, best.values)
    splits = at_best.evaluate.splits
    scored = splits if "validation" in splits else ("validation", *splits)
    return at_best.model_copy(
        update={
            "name": f"{config.name}-best",
            "data": at_best.data.model_copy(update={"store": config.store_path}),
            "evaluate": at_best.evaluate.model_copy(update={"splits": scored}),
            "cluster": at_best.cluster.model_copy(update={"threads_per_worker": threads}),
        }
    )


def write_best(folder: SweepFolder, config: Config, best: Trial, metric: str) -> None:
    """Write best.yaml, whole or not at all."""
    own = yaml.safe_load((folder.run_dir(best) / "config.yaml").read_text(encoding="utf-8"))
    tree = best_config(config, best, own["cluster"]["threads_per_worker"]).as_written(exclude={"tune"})
    said = [
        f"{best.name} of sweep {config.name}: {metric} {best.metric!r} with {json.dumps(best.values)}",
        "Trained with this file, that figure comes again. For the last model, train.with_validation: true and",
        "train.evaluate_every_epochs: null take the validation data in, cluster.threads_per_worker: null all cores.",
    ]
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    write_whole(folder.best, "".join(f"# {line}\n" for line in said) + text)
