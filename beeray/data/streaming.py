"""Running a Ray dataset to its end, so that a user's error in a task is the user's error here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import ray
import ray.data

from beeray.errors import BeerayError

R = TypeVar("R")


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
    """
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        ours = find_cause(error)
        if ours is None:
            raise
        ours.args = (str(ours).partition("\n")[0],)  # Ray Data adds lines of its own to a generator's error
        raise ours from None


def in_tasks(work: Callable[..., R], inputs: Iterable[Any], **shared: Any) -> Iterator[R]:
    """What `work(input, **shared)` returns for each input, in order; a Ray task each, two a CPU under way.

    For small answers: a Ray dataset takes half a second to start.

    Args:
        shared: arguments of every task; put large ones with `ray.put` (a task receives what was put).

    Raises:
        BeerayError: the one that a task raised.
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
    except ray.exceptions.RayTaskError as error:
        ours = find_cause(error)
        if ours is None:
            raise
        raise ours from None


def find_cause(error: BaseException) -> BeerayError | None:
    """The `BeerayError` behind an exception that Ray wrapped, if there is one."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if type(current).__module__ == BeerayError.__module__ and isinstance(current, BeerayError):
            return current
        wrapped = [getattr(current, name, None) for name in ("cause", "_base_exc", "controller_failure")]
        wrapped += getattr(current, "worker_failures", {}).values()  # Ray Train's, rank → error
        waiting += [*wrapped, current.__cause__, current.__context__]
    return None
