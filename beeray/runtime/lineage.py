"""Which run an encoder in a folder is of, and what it has learned from."""

from __future__ import annotations

from pathlib import Path

from beeray.config import load_config
from beeray.data.scored import INIT_TRAINED_ON_VALIDATION
from beeray.errors import ConfigError
from beeray.runtime.run_folder import CONFIG, MODEL, RUN
from beeray.runtime.whole_files import read_record


def run_of(model: str) -> Path | None:
    """The run whose trained encoder lies in a folder, or which is that folder; None where it is no run's."""
    folder = Path(model)
    run = folder.parent if folder.name == MODEL else folder
    return run if (run / RUN).is_file() and (run / CONFIG).is_file() else None


def learned_validation(model: str) -> bool | None:
    """Whether the run whose encoder lies in a folder trained on validation data, or one before it that it began with.

    Returns:
        None where that is not known.
    """
    run = run_of(model)
    if run is None:
        return None
    try:
        config = load_config(str(run / CONFIG))
    except ConfigError:  # of another version
        return None
    if config.trains_on_validation or config.train.init_from is None:
        return config.trains_on_validation
    kept = read_record(run / RUN, config.name)
    if kept is None or INIT_TRAINED_ON_VALIDATION not in kept:  # of another version
        return None
    return bool(kept[INIT_TRAINED_ON_VALIDATION])  # what is no run's counts as one that did not
