"""Workers of which one has another run folder: none of them trains, and that one says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_world_sizes import run_world

from beeray.runtime.shared_folder import marked

PROGRAM = Path(__file__).with_name("look_for_marker.py")
pytestmark = pytest.mark.timeout(1800)


def found(folder: Path, in_second: str) -> list[tuple[bool, list[str]]]:
    """Of each rank, whether it would train and what kinds of event it sent."""
    for rank in ("0", "1"):
        (folder / rank).mkdir()
    with marked(folder / "0") as marker:
        (folder / "1" / (in_second or marker)).touch()
        run_world(2, [str(folder), marker], folder, PROGRAM)
    records = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return [(one["shared"], [event["kind"] for event in one["sent"]]) for one in records]


def test_no_rank_trains_where_one_does_not_see_the_folder_and_that_one_says_so(tmp_path: Path) -> None:
    assert found(tmp_path, ".training-of-a-killed-command") == [(False, []), (False, ["refused"])]


def test_all_ranks_train_where_all_see_it(tmp_path: Path) -> None:
    assert found(tmp_path, "") == [(True, []), (True, [])]
