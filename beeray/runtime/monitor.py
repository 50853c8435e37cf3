"""What workers tell the driver while they work: an actor that queues events, and its two ends.

Ray Train's `report` is a barrier for all ranks and meant for checkpoints; a step's loss and progress
need neither, so rank 0 sends them here without waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from collections.abc import Iterator

Event = dict[str, Any]
POLL_S = 0.25


@ray.remote(num_cpus=0, max_concurrency=8, max_restarts=-1, max_task_retries=-1)
class Monitor:
    """Queues events until the driver drains them, and has workers know when the driver wants to stop.

    It is on the driver's node, so that no other node's end takes events with it; if its process dies, calls are made
    again, and only what was queued and not yet drained (a moment's events) is lost.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def send(self, event: Event) -> None:
        """Queue one event."""
        with self._lock:
            self._events.append(event)

    def drain(self) -> list[Event]:
        """All events since the last call, in order."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def ask_to_stop(self) -> None:
        """Have `wait_for_stop` return at once, now and always."""
        self._stop.set()

    def wait_for_stop(self, timeout_s: float) -> bool:
        """Whether the driver wants to stop; answers when it does, or when the time is over."""
        return self._stop.wait(timeout_s)


@contextmanager
def listening(handle: Callable[[Event], None], stopping: Callable[[], bool] = lambda: False) -> Iterator[Any]:
    """A monitor whose events are handed to `handle` in a thread of the driver until the context ends.

    Args:
        stopping: while it says so, workers are asked to stop.

    An error in `handle` is raised when the context ends.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    monitor: Any = Monitor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    failed: list[BaseException] = []

    def pump() -> None:
        try:
            if stopping():  # each time: an actor that was moved has forgotten it
                monitor.ask_to_stop.remote()
            events = ray.get(monitor.drain.remote())
        except ray.exceptions.RayError:  # the actor is being moved, or its node is gone: the next call tells
            return
        for event in events:
            try:
                handle(event)
            except Exception as error:  # the run must not die of its own progress bar
                failed.append(error)

    def poll() -> None:
        while not stop.wait(POLL_S):
            pump()

    thread = threading.Thread(target=poll, daemon=True, name="monitor")
    thread.start()
    try:
        yield monitor
    finally:
        stop.set()
        thread.join()
        pump()
        ray.kill(monitor)
    if failed:
        raise failed[0]
