"""Running a Ray dataset to its end, so that a user's error in a task is the user's error here, as are lost workers."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from beeray.errors import BeerayError, LostWorkersError, RunError

R = TypeVar("R")
LOST = (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)
"""What Ray says when nodes or processes are gone, by whatever end."""
RETRIES_TOLD = re.compile(r"(?:\n|\\n)Failed to (?:(?!\n|\\n).)+ after \d+/\d+ attempts \(total backoff ")
"""Begins what Ray Data adds to an error of a task; on its way to the driver a `BeerayError` escapes the line break."""


def set_up_ray_data() -> None:
    """No bars of Ray Data's own, and errors of tasks as they were raised; before datasets are made."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True


def drain(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Execute a dataset and yield its blocks as Arrow tables.

    Raises:
        BeerayError: the one that a task raised, unwrapped from Ray's.
        RunError: workers or nodes were lost.
    """
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        raise_for_user(error)
        raise


def in_tasks(work: Callable[..., R], inputs: Iterable[Any], **shared: Any) -> Iterator[R]:
    """What `work(input, **shared)` returns for each input, in order; a Ray task each, two a CPU under way.

    For small answers: a Ray dataset takes half a second to start.

    Args:
        shared: arguments of every task; put large ones with `ray.put` (a task receives what was put).

    Raises:
        BeerayError: the one that a task raised.
        RunError: workers or nodes were lost.
    """
    task = ray.remote(num_cpus=1)(work)
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    try:
        for one in inputs:
            waiting.append(task.remote(one, **shared))
            if len(waiting) >= ahead:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayError as error:
        raise_for_user(error)
        raise


def raise_for_user(error: Exception) -> None:
    """Raise what an exception of Ray's is to the user; a defect in a task is nothing to them, and nothing is raised.

    Raises:
        BeerayError: the one that a task raised, unwrapped.
        LostWorkersError: Ray gave up on work whose workers or nodes are gone.
        RunError: Ray gave up on it for another reason.
    """
    ours = find_cause(error)
    if ours is not None:
        ours.args = (RETRIES_TOLD.split(str(ours))[0],)
        raise ours from None
    if _is_loss(error):
        raise error_kind(error)(
            f"the cluster lost work on the data ({what_it_says(error)}); see ray status and the memory of the nodes, "
            "and run the same command again"
        ) from error


def _is_loss(error: Exception | None) -> bool:
    """Whether Ray gave up, and not code that it ran: both are `RayError`s."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return _is_loss(error.cause)  # of one that waited for another
    if isinstance(error, ray.exceptions.UserCodeException) or type(error) is ray.exceptions.RayError:
        return False
    return isinstance(error, ray.exceptions.RayError)


def what_it_says(error: BaseException) -> str:
    """An exception in one line of at most 300 letters, for an error that quotes it.

    Left out are a traceback's frames, lists of ids and processes, and links: the last line is often one of them.
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()
    frames = [number for number, line in enumerate(lines) if re.match(r'\s*File ".*", line \d+', line)]
    begin = frames[-1] + 1 if frames else 0
    telling = [line.strip() for line in lines[begin:] if line.strip() and line[0] not in " \t"]
    said = re.sub(r"\s*\b(See|Refer to)\b[^.]*?https?://\S+", "", " ".join(telling)).strip()
    return said[:300] or type(error).__name__


def find_cause(error: BaseException) -> BeerayError | None:
    """The `BeerayError` behind an exception that Ray wrapped, if there is one."""
    for one in _behind(error):
        if type(one).__module__ == BeerayError.__module__ and isinstance(one, BeerayError):
            return one
    return None


def error_kind(error: BaseException) -> type[RunError]:
    """As what to raise that Ray gave up: `LostWorkersError` where trying again is not in vain."""
    return LostWorkersError if lost_on_the_way(error) else RunError


def lost_on_the_way(error: BaseException) -> bool:
    """Whether Ray gave up since it lost a node, a process or what these had made, so that trying again is not in vain.

    What a task itself raised is no loss, nor is an actor that died of what its class raised as it was made.
    """
    behind = list(_behind(error))
    raised = any(isinstance(one, RayTaskError) and not isinstance(one.cause, RayError) for one in behind)
    return not raised and any(isinstance(one, LOST) and not getattr(one, "actor_init_failed", False) for one in behind)


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that Ray and Python hold to be its causes."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        wrapped = [getattr(current, name, None) for name in ("cause", "_base_exc", "controller_failure")]
        wrapped += getattr(current, "worker_failures", {}).values()  # Ray Train's, rank → error
        waiting += [*wrapped, current.__cause__, current.__context__]
