"""What workers tell the driver while they work: an actor that queues events, and its two ends.

Ray Train's `report` is a barrier for all ranks and meant for checkpoints; a step's loss and progress
need neither, so rank 0 sends them here, and waits only before a checkpoint and for what must arrive.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from beeray.runtime.event_queue import Answer, Event, EventQueue, Inbox, Kept, Numbered, Place

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_S = 0.25
CONFIRM_S = 0.05
LONGEST_S = 60.0
"""Until an answer that does not come is asked for again."""
PATIENCE = 240
"""Calls that fail one after the other, a quarter of a second apart or more, until the driver listens no more."""
NOT_TAKEN = Answer(taken=False, confirmed=0)


@ray.remote(num_cpus=0, concurrency_groups={"events": 1, "stop": 8}, max_restarts=-1, max_task_retries=-1)
class Monitor:
    """Queues events until the driver drains them, and has workers know when the driver wants to stop.

    It is on the driver's node where Ray can have it so. If its process dies, calls are made again, in any order, which
    is why events are sent by an `Outbox`. One thread takes the events. Those who wait for a stop have threads of their
    own.
    """

    def __init__(self) -> None:
        self._events = EventQueue()
        self._stop = threading.Event()

    @ray.method(concurrency_group="events")
    def send(self, event: Event) -> None:
        """Queue one event of nobody in particular, which may be lost with this process."""
        self._events.add(event)

    @ray.method(concurrency_group="events")
    def put(self, sender: str, kept_from: int, first: int, events: list[Event]) -> Answer:
        """As `EventQueue.put`."""
        return self._events.put(sender, kept_from, first, events)

    @ray.method(concurrency_group="events")
    def drain(self, place: Place | None) -> tuple[Place, list[Numbered]]:
        """As `EventQueue.drain`."""
        return self._events.drain(place)

    @ray.method(concurrency_group="events")
    def ask_to_stop(self) -> None:
        """Have `wait_for_stop` return at once, now and always."""
        self._stop.set()

    @ray.method(concurrency_group="stop")
    def wait_for_stop(self, timeout_s: float) -> bool:
        """Whether the driver wants to stop; answers when it does, or when the time is over."""
        return self._stop.wait(timeout_s)


class Outbox:
    """A worker's events on their way: each comes once and in order, whatever becomes of the monitor (`event_queue.py`).

    Args:
        monitor: the driver's.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._kept = Kept()
        self._answers: list[Any] = []

    def send(self, event: Event) -> None:
        """Tell the driver something; waits for nothing.

        Raises:
            RayError: an earlier event cannot be sent; the object store is full, say.
        """
        self._hear()
        self._answers.append(self._monitor.put.remote(*self._kept.message(event)))

    def wait(self, patience_s: float = math.inf) -> None:
        """Wait until the driver has all that was sent, listens no more, or takes longer than `patience_s`.

        Raises:
            RayError: as `send`.
        """
        deadline = time.monotonic() + patience_s
        while self._kept and time.monotonic() < deadline:
            self._answers.append(self._monitor.put.remote(*self._kept.message()))
            ray.wait(self._answers, num_returns=len(self._answers), timeout=min(patience_s, LONGEST_S))
            if not self._hear():
                return
            time.sleep(CONFIRM_S if self._kept else 0.0)

    def _hear(self) -> bool:
        """Take the answers that are there; whether the driver still listens."""
        ready, self._answers = (
            ray.wait(self._answers, num_returns=len(self._answers), timeout=0) if self._answers else ([], [])
        )
        for one in ready:
            try:
                self._kept.hear(ray.get(one))
            except ray.exceptions.ActorDiedError:  # for good, as is who listens
                return False
            except ray.exceptions.ActorUnavailableError:
                self._kept.hear(NOT_TAKEN)
        return True


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
    num_failing = 0
    inbox, failed = Inbox(), list[BaseException]()

    def pump() -> None:
        nonlocal place, num_failing
        for _ in range(2):  # take what is there, then let those who wait know that it is taken
            try:
                if stopping():  # each time: an actor that was moved has forgotten it
                    monitor.ask_to_stop.remote()
                place, drained = ray.get(monitor.drain.remote(place))
                num_failing = 0
            except ray.exceptions.RayError as error:  # it is being moved, or its node is gone
                num_failing += 1
                if num_failing == PATIENCE:
                    failed.append(error)
                    ray.kill(monitor)  # else workers would wait for ever
                return
            for event in inbox.new(drained):
                try:
                    handle(event)
                except Exception as error:  # the run must not die of its own progress bar
                    failed.append(error)
            if not drained:
                return

    def poll() -> None:
        try:
            while not stop.wait(POLL_S):
                pump()
        except BaseException as error:  # such as the end of the process that a library asks for
            failed.append(error)
            ray.kill(monitor)  # else workers would wait for ever

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
