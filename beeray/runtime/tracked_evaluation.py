"""What was scored apart from training, as an MLflow run of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from beeray.config import Config
from beeray.runtime.mlflow_run import ID_FILE
from beeray.runtime.tracking import Tracker
from beeray.runtime.whole_files import write_whole


def track_evaluation(config: Config, label: str, folder: Path, metrics: Mapping[str, float], kind: str) -> str | None:
    """Log what was scored as an MLflow run of its own, `<run>:<label>`, with the names that a training's figures have.

    Args:
        folder: of the evaluation; keeps the id of its last MLflow run. Scored again it is a new run, since parameters
            may be others.
        metrics: by name, as `flat_means` gives them.
        kind: tag `beeray.kind`.

    Returns:
        why MLflow's record is incomplete; None when it is not.
    """
    (folder / ID_FILE).unlink(missing_ok=True)
    with Tracker(config.model_copy(update={"name": f"{config.name}:{label}"}), folder) as tracker:
        tracker.log_metrics({f"final/{name}": value for name, value in metrics.items()})
        tracker.log_tags({"beeray.kind": kind, "beeray.run": config.name})
    if tracker.trouble is None:
        record = json.loads((folder / ID_FILE).read_text())
        write_whole(folder / ID_FILE, json.dumps(record | {"whole": True}))
    return tracker.trouble


def evaluation_tracked(folder: Path) -> bool:
    """Whether MLflow has all of an evaluation: `track_evaluation` came to its end since it was scored."""
    try:
        return bool(json.loads((folder / ID_FILE).read_text()).get("whole"))
    except (FileNotFoundError, ValueError, AttributeError):
        return False
