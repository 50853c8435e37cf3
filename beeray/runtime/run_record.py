"""What a finished run's metrics.json says, put together from its folder and from what its workers sent."""

from __future__ import annotations

from typing import Any

from beeray.config import Config
from beeray.data.parts import write_part
from beeray.runtime.events import EventHandler
from beeray.runtime.lineage import learned_validation
from beeray.runtime.results import scores_table, summarise_scores, summarise_training
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.run_start import TrainInputs


def keep_before(config: Config, folder: RunFolder, handler: EventHandler) -> None:
    """Keep what was scored before training, of every user and summed up."""
    scores = handler.scores("before")
    write_part(scores_table(scores), str(folder.path / "scores-before.parquet"))
    folder.keep_before(summarise_scores(scores, config.evaluate))


def run_record(
    config: Config, folder: RunFolder, inputs: TrainInputs, handler: EventHandler, kept: dict[str, Any] | None
) -> dict[str, Any]:
    """The record of a run whose workers are done; leaves the final scores of every user in its folder.

    Args:
        kept: what there is to say of neighbours, as `summarise_neighbours` does.
    """
    after = handler.scores("after")
    if after:
        write_part(scores_table(after), str(folder.scores))
    record = {
        "run": config.name,
        "folder": str(folder.path),
        "model": str(folder.model),
        "config_digest": config.result_digest(),
        "store_fingerprint": inputs.store.meta.fingerprint,
        **folder.meaning(inputs.store.meta.fingerprint, learned_validation(str(folder.model))),
        "text_length": config.served_seq_length,
        "metrics": summarise_scores(after, config.evaluate),
        "training": summarise_training(folder.steps(), handler.workers()),
        "timings": handler.timings,
        **({"head": handler.head} if handler.head is not None else {}),
        "startup_s": handler.startup.record(),
    }
    if handler.profile is not None:
        record["profile"] = handler.profile
    if inputs.init_from is not None:
        record["init_from"] = inputs.init_from
    if kept is not None:
        record["neighbours_kept"] = kept
    before, validation = folder.before(), folder.validation()
    if before is not None:
        record["metrics_before"] = before
    if validation:
        record["validation"] = validation
    return record
