"""Which run an encoder in a folder is of, and what it has learned from."""

from __future__ import annotations

from pathlib import Path

from beeray.config import load_config
from beeray.data.growth import has_unknown_start
from beeray.data.scored import INIT_TRAINED_ON_VALIDATION
from beeray.errors import ConfigError
from beeray.runtime.run_folder import CONFIG, ITEMS, MODEL, RUN
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
    learned, items = kept[INIT_TRAINED_ON_VALIDATION], run / ITEMS
    if learned is None and items.is_file() and has_unknown_start(str(items)):
        return None
    return bool(learned)  # of a version that took what is no run's for one that did not
