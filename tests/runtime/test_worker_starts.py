"""Workers that find no place are told of, and those that die while they start are not started for ever."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from beeray.console import Console
from beeray.errors import RunError
from beeray.runtime.events import EventHandler
from beeray.runtime.worker_starts import WorkerStarts


def a_start(starts: WorkerStarts, error: Exception | None = None) -> None:
    with starts.on_worker_group_start():
        if error is not None:
            raise error


def test_workers_that_wait_for_a_place_are_told_of_and_waited_for() -> None:
    told: list[dict[str, Any]] = []
    starts = WorkerStarts(SimpleNamespace(send=SimpleNamespace(remote=told.append)), 0)
    for _ in range(12):
        with pytest.raises(WorkerGroupStartupTimeoutError):
            a_start(starts, WorkerGroupStartupTimeoutError(num_workers=2))
    assert told == [{"kind": "unplaced", "tries": number} for number in range(1, 13)]
    a_start(starts)
    assert starts.unplaced == 0
    said = io.StringIO()
    handler = EventHandler(Console(said, said), 10, 2)
    for event in told:
        handler(event)
    assert said.getvalue().splitlines() == [
        f"no place for the 2 workers since {minutes} min: other work holds what they need (see ray status); waiting"
        for minutes in (1, 11)
    ]


def test_workers_that_die_while_they_start_are_tried_as_often_as_failures_are_allowed() -> None:
    starts, error = WorkerStarts(None, 2), WorkerGroupStartupFailedError("rank 0 was killed for memory")
    for _ in range(2):
        with pytest.raises(WorkerGroupStartupFailedError):
            a_start(starts, error)
    a_start(starts)
    with pytest.raises(RunError) as caught:
        a_start(starts, error)
    assert str(caught.value) == (
        "training stopped: workers died 3 times while they started, and cluster.max_failures is 2 (rank 0 was killed "
        "for memory); see the memory of the nodes, and run the same command again"
    )
