"""Which of Ray's errors mean that nodes or processes are gone, and which that a task or an actor raised."""

from __future__ import annotations

import pytest
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    UserCodeException,
    WorkerCrashedError,
)

from beeray.data.streaming import lost_on_the_way
from beeray.errors import DataError


def of_a_task(cause: Exception) -> RayTaskError:
    """What Ray raises where a task failed of something."""
    return RayTaskError("write_and_tell", f"Traceback\n{type(cause).__name__}: {cause}", cause)


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        NodeDiedError("node 7 is gone"),
        WorkerCrashedError(),
        OutOfMemoryError("killed by the memory monitor"),
        ObjectLostError("a" * 56, None, ""),
        of_a_task(ActorDiedError()),  # a task that waited for what the actor should have made
    ],
)
def test_what_is_gone_may_be_tried_again(error: Exception) -> None:
    assert lost_on_the_way(error)
    behind = RuntimeError("the dataset could not be executed")
    behind.__cause__ = error
    assert lost_on_the_way(behind)


@pytest.mark.parametrize(
    "error",
    [
        of_a_task(DataError("catalog.parquet: is damaged")),
        of_a_task(ValueError("a defect")),
        ActorDiedError(of_a_task(OSError("no such encoder"))),  # raised while the actor was made
        UserCodeException("a defect"),
        ValueError("a defect"),
    ],
)
def test_what_was_raised_is_no_loss(error: Exception) -> None:
    assert not lost_on_the_way(error)
