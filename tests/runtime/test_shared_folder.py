"""A run's folder that is not the same one everywhere is found out: by a file that no other folder has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beeray.errors import DataError
from beeray.runtime.shared_folder import marked, what_is_not_shared


def test_a_marker_is_there_while_the_command_trains_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    (tmp_path / ".training-of-a-killed-command").touch()
    with marked(tmp_path) as marker:
        assert [path.name for path in tmp_path.iterdir()] == [marker]
        assert what_is_not_shared("runs", tmp_path, marker, 0.0) == ""
    with marked(tmp_path) as another:
        assert another != marker
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_same_name_on_another_disk_is_found_out_though_the_same_run_was_there(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"store_fingerprint": "f"}))
        (folder / ".training-of-a-killed-command").touch()
    with marked(ours) as marker:
        said = what_is_not_shared("/data/runs", theirs, marker, 0.0)
    assert said.startswith(
        f"runs_dir '/data/runs': what this command writes to {theirs} is not seen by a worker on node "
    )
    assert said.endswith(
        ", so the folder is not shared and no checkpoint would be whole; give runs_dir a folder on a disk that all "
        "nodes mount"
    )


def test_a_folder_that_may_not_be_written_is_told_in_one_line() -> None:
    with pytest.raises(DataError, match=r"/proc/sys/\.training-"), marked(Path("/proc/sys")):
        pass
