"""What workers tell the driver while they work: an actor that queues events, and its two ends.

Ray Train's `report` is a barrier for all ranks and meant for checkpoints; a step's loss and progress
need neither, so rank 0 sends them here without waiting.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from collections.abc import Iterator

Event = dict[str, Any]
Place = tuple[str, int]
"""An actor's life, and how many events it had had."""
POLL_S = 0.25


@ray.remote(num_cpus=0, concurrency_groups={"events": 1, "stop": 8}, max_restarts=-1, max_task_retries=-1)
class Monitor:
    """Queues events until the driver drains them, and has workers know when the driver wants to stop.

    It is on the driver's node, so that no other node's end takes events with it; if its process dies, calls are made
    again, and only what was queued and not yet drained (a moment's events) is lost. One thread takes the events, those
    of a worker in the order in which it sent them, so who waited for one to arrive knows that those before it have:
    with `max_concurrency` Ray would run the calls in any order. Those who wait for a stop have threads of their own.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._life, self._num_gone = uuid.uuid4().hex, 0
        self._stop = threading.Event()

    @ray.method(concurrency_group="events")
    def send(self, event: Event) -> None:
        """Queue one event."""
        self._events.append(event)

    @ray.method(concurrency_group="events")
    def drain(self, place: Place | None) -> tuple[Place, list[Event]]:
        """All events after a place, in order, and the place after them; those before it are forgotten.

        Nothing is lost if an answer is: who asks again from the same place is answered the same and more.

        Args:
            place: as an earlier answer said; one of an actor that has been moved since is before all events.
        """
        handed = place[1] - self._num_gone if place is not None and place[0] == self._life else 0
        del self._events[:handed]
        self._num_gone += handed
        return (self._life, self._num_gone + len(self._events)), list(self._events)

    @ray.method(concurrency_group="events")
    def ask_to_stop(self) -> None:
        """Have `wait_for_stop` return at once, now and always."""
        self._stop.set()

    @ray.method(concurrency_group="stop")
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
    place: Place | None = None
    failed: list[BaseException] = []

    def pump() -> None:
        nonlocal place
        try:
            if stopping():  # each time: an actor that was moved has forgotten it
                monitor.ask_to_stop.remote()
            place, events = ray.get(monitor.drain.remote(place))
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
