"""A torn list, folders that are gone, half-written ones: Ray Train can always start, with every whole checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.train import CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from beeray.runtime.known_checkpoints import SNAPSHOT, is_whole, mend_checkpoints

NAMES = [f"checkpoint_2026-11-28_11-00-0{number}.000000" for number in range(3)]


def write_checkpoint(folder: Path, name: str, step: int, parts: int = 2, of: int = 2) -> None:
    (folder / name).mkdir(parents=True)
    for rank in range(parts):
        (folder / name / f"state-{rank:05d}.safetensors").write_bytes(b"x")
    record = {"num_files": of, "position": {"epoch": 0, "step_in_epoch": step, "step": step}}
    (folder / name / "state.json").write_text(json.dumps(record))


def opened(folder: Path) -> CheckpointManager:
    """Ray Train's own reading of the folder."""
    storage = StorageContext(storage_path=str(folder.parent), experiment_dir_name=folder.name)
    return CheckpointManager(checkpoint_config=CheckpointConfig(), storage_context=storage)


def steps(manager: Any) -> list[int]:
    return [one.metrics["step"] for one in manager._checkpoint_results]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three whole checkpoints with a list that Ray Train takes."""
    folder = tmp_path / "checkpoints"
    for number, name in enumerate(NAMES):
        write_checkpoint(folder, name, 10 * (number + 1))
    (folder / SNAPSHOT).write_text("")
    mend_checkpoints(folder)
    return folder


def test_a_torn_list_is_made_anew_of_the_whole_checkpoints(folder: Path) -> None:
    manager: Any = opened(folder)
    assert steps(manager) == [10, 20, 30]
    assert manager._latest_checkpoint_result.metrics == {"step": 30}
    write_checkpoint(folder, "checkpoint_2026-11-28_11-00-09.000000", 40, parts=1)
    for torn in ("", '{"checkpoint_res', '{"ray_version": "2"}', "[]"):
        (folder / SNAPSHOT).write_text(torn)
        mend_checkpoints(folder)
        assert steps(opened(folder)) == [10, 20, 30], torn
    assert sorted(one.name for one in folder.glob("checkpoint_2*")) == NAMES, "the half-written one is gone"


def test_a_checkpoint_that_was_taken_away_is_forgotten_and_the_one_before_is_the_latest(folder: Path) -> None:
    for file in (folder / NAMES[2]).iterdir():
        file.unlink()
    (folder / NAMES[2]).rmdir()
    mend_checkpoints(folder)
    manager: Any = opened(folder)
    assert steps(manager) == [10, 20]
    assert manager._latest_checkpoint_result.metrics == {"step": 20}


def test_what_the_list_does_not_name_is_removed_and_a_list_in_order_is_left_alone(folder: Path) -> None:
    write_checkpoint(folder, "checkpoint_2026-11-28_11-00-09.000000", 40)
    before = (folder / SNAPSHOT).read_bytes()
    mend_checkpoints(folder)
    assert (folder / SNAPSHOT).read_bytes() == before
    assert sorted(one.name for one in folder.glob("checkpoint_2*")) == NAMES


def test_without_a_list_the_newest_whole_checkpoint_is_gone_on_from(folder: Path) -> None:
    """As after a backup that was brought back in part."""
    write_checkpoint(folder, "checkpoint_2026-11-28_11-00-09.000000", 40, parts=1)
    (folder / SNAPSHOT).unlink()
    mend_checkpoints(folder)
    manager: Any = opened(folder)
    assert steps(manager) == [10, 20, 30]
    assert manager._latest_checkpoint_result.metrics == {"step": 30}
    assert sorted(one.name for one in folder.glob("checkpoint_2*")) == NAMES, "the half-written one is gone"


def test_without_anything_whole_a_run_begins_anew(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, NAMES[0], 10, parts=1)
    mend_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []
    mend_checkpoints(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_lacks_nothing_or_is_not_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "whole", 1)
    write_checkpoint(tmp_path, "part", 1, parts=1)
    (tmp_path / "empty").mkdir()
    assert [is_whole(tmp_path / name) for name in ("whole", "part", "empty")] == [True, False, False]
