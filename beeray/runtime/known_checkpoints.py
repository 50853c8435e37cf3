"""Ray Train's own list of a run's checkpoints, made to agree with what is on disk before a command goes on from it.

Ray Train writes the list in place and refuses to start where it is torn or names a folder that is gone. A kill or a
full disk may leave the one, and a person who takes a damaged checkpoint away leaves the other. A kill before the first
list was written, or a backup that was brought back in part, leaves none: what is whole is gone on from all the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from beeray.runtime.checkpoint_names import STATE, part_name
from beeray.runtime.whole_files import write_whole

SNAPSHOT = "checkpoint_manager_snapshot.json"
RESULTS, INDICES, LATEST, PENDING = (
    "checkpoint_results",
    "checkpoint_report_indices",
    "latest_checkpoint_result",
    "pending_training_results",
)


def mend_checkpoints(folder: Path) -> None:
    """Take from the list what is gone, remove what a killed run had begun to write, make a torn or missing list anew.

    Args:
        folder: of the run's checkpoints; need not be there.
    """
    snapshot = folder / SNAPSHOT
    there = {one.name: one for one in folder.glob("checkpoint_*") if one.is_dir()}
    listed = _read(snapshot) if snapshot.is_file() else None
    if listed is None:
        whole = [one for one in there.values() if is_whole(one)]
        listed = _listed_anew(whole)
        if whole or snapshot.is_file():
            write_whole(snapshot, json.dumps(listed))
    elif _names(listed) - there.keys():
        write_whole(snapshot, json.dumps(_without_missing(listed, there.keys())))
    known = _names(listed)
    for name, one in there.items():
        if name not in known:
            shutil.rmtree(one, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether all parts of a checkpoint are there; each is whole or not there."""
    try:
        number = int(json.loads((folder / STATE).read_text(encoding="utf-8"))["num_files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all((folder / part_name(rank)).is_file() for rank in range(number))


def _read(snapshot: Path) -> dict[str, Any] | None:
    """The list; None where it is torn."""
    try:
        listed = json.loads(snapshot.read_text(encoding="utf-8"))
        _names(listed)
    except (ValueError, KeyError, TypeError):
        return None
    return dict(listed)


def _names(listed: dict[str, Any]) -> set[str]:
    return {one["checkpoint_dir_name"] for one in listed[RESULTS]}


def _without_missing(listed: dict[str, Any], there: Any) -> dict[str, Any]:
    kept = [
        (one, index)
        for one, index in zip(listed[RESULTS], listed[INDICES], strict=True)
        if one["checkpoint_dir_name"] in there
    ]
    results = [one for one, _ in kept]
    return {
        **listed,
        RESULTS: results,
        INDICES: [index for _, index in kept],
        LATEST: max(kept, key=lambda one: one[1])[0] if kept else None,
        PENDING: [],
        "pending_validation_specs": [],
    }


def _listed_anew(checkpoints: Sequence[Path]) -> dict[str, Any]:
    """A list of these; the names tell their order."""
    results = []
    for one in sorted(checkpoints):
        position = json.loads((one / STATE).read_text(encoding="utf-8"))["position"]
        results.append({"version": 0, "checkpoint_dir_name": one.name, "metrics": {"step": position["step"]}})
    return {
        "ray_version": ray.__version__,
        RESULTS: results,
        INDICES: list(range(len(results))),
        LATEST: results[-1] if results else None,
        PENDING: [],
        "pending_validation_specs": [],
        "current_report_index": len(results),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
