"""What `beeray.report` does, and what training and evaluation do for the page: choose its items, write it.

Neither may cost a run that is otherwise well: there, whatever goes wrong becomes one line.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beeray.config import Config
from beeray.console import Console
from beeray.data.report_items import REPORT_FOLDER, collect_items, store_of_items, write_items
from beeray.data.store import Store
from beeray.errors import RunError
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.run_folder import RunFolder


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Write the report of a run's folder; returns where it is.

    Raises:
        RunError: nothing has been trained or evaluated under this name.
    """
    check_outlives_job(config, "runs_dir")
    started = time.monotonic()
    path = write_report(config)
    console.line(f"report: {path}")
    return {"report": str(path), "bytes": path.stat().st_size, "seconds": round(time.monotonic() - started, 1)}


def write_report(config: Config) -> Path:
    """Write `report.html` from what the run's folder holds, whole or not at all.

    Raises:
        RunError: nothing has been trained or evaluated under this name.
    """
    from beeray.reporting.page import report_page

    folder = RunFolder(config)
    record, steps = folder.measured(), folder.steps()
    if record is None and not steps and not folder.evaluations.is_dir():
        raise RunError(
            f"run {config.name!r}: nothing was trained or evaluated in {folder.path}; train it first, or give the "
            "folder of a run"
        )
    return folder.keep_report(report_page(config, folder.path, record, steps, folder.validation()))


def choose_report_items(config: Config, store: Store, console: Console) -> bool:
    """Leave the report's items in the run's folder, where workers find them; those that are there stay.

    Returns:
        whether the folder has items of this store.
    """
    if not config.report.enabled:
        return False
    folder = config.run_dir / REPORT_FOLDER

    def choose() -> bool:
        found = store_of_items(folder)
        if found is None:
            validation = config.trains_on_validation
            items = collect_items(store, config.report.max_items, config.seed, with_validation=validation)
            write_items(items, folder, store.meta.fingerprint)
        return found in (None, store.meta.fingerprint)

    return bool(_carefully("the report will have no explorer", choose, console))


def refresh_report(config: Config, console: Console) -> Path | None:
    """Write the report after a run or an evaluation, if it is wanted; None where it was not written."""
    if not config.report.enabled:
        return None
    return _carefully("report.html was not written", lambda: write_report(config), console)


def _carefully(said: str, work: Callable[[], Any], console: Console) -> Any:
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        remedy = "what was measured is whole; try python -m beeray.report, or set report.enabled=false"
        console.line(f"warning: {said} ({type(error).__name__}: {reason}); {remedy}")
        return None
