"""Events on their way from workers to the driver, on Ray."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import ray

from beeray.runtime import monitor as module
from beeray.runtime.monitor import Monitor, Outbox, listening

pytestmark = pytest.mark.slow
NUM_EVENTS = 2_000


@ray.remote(num_cpus=0)
def send_many(monitor: Any, name: str) -> None:
    """Send many without waiting, with a wish for a stop among them now and then, and wait at the end alone."""
    outbox = Outbox(monitor)
    for number in range(NUM_EVENTS):
        if number % 500 == 0:
            monitor.wait_for_stop.remote(30.0)
        outbox.send({"sender": name, "number": number})
        time.sleep(0.001)
    outbox.wait()


def pid_of(monitor: Any) -> int:
    return int(ray.get(monitor.__ray_call__.remote(lambda _: os.getpid())))


@pytest.mark.parametrize("killed", [False, True])
def test_each_sender_s_events_come_once_and_in_its_order_and_all_are_there_when_it_has_waited(
    ray_session: None, killed: bool
) -> None:
    heard: list[tuple[str, int]] = []
    with listening(lambda event: heard.append((event["sender"], event["number"]))) as monitor:
        victim = pid_of(monitor)
        sending = [send_many.remote(monitor, name) for name in ("one", "other")]
        if killed:
            while len(heard) < NUM_EVENTS // 4:
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
        ray.get(sending, timeout=120)
        assert (pid_of(monitor) == victim) is not killed
    for name in ("one", "other"):
        assert [number for sender, number in heard if sender == name] == list(range(NUM_EVENTS))


def test_who_waits_with_patience_goes_on_while_the_driver_is_held_up_and_nothing_is_lost(ray_session: None) -> None:
    monitor: Any = Monitor.remote()  # type: ignore[attr-defined]
    outbox = Outbox(monitor)
    outbox.send({"number": 0})
    outbox.wait(0.2)
    outbox.send({"number": 1})
    place, drained = ray.get(monitor.drain.remote(None))
    assert [one.event["number"] for one in drained] == [0, 1]
    ray.get(monitor.drain.remote(place))
    outbox.wait()
    ray.kill(monitor)


def test_who_waits_for_a_driver_that_listens_no_more_is_let_go(ray_session: None) -> None:
    monitor: Any = Monitor.remote()  # type: ignore[attr-defined]
    outbox = Outbox(monitor)
    outbox.send({"number": 0})
    ray.kill(monitor)
    outbox.wait()


@ray.remote(num_cpus=0)
def send_unreadable(monitor: Any, pid: int) -> None:
    """Send what can be read in every process but one."""

    class Unreadable:
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state)
            if os.getpid() == pid:
                raise ValueError("unreadable here")

    event = Unreadable()
    event.__dict__["something"] = 1
    outbox = Outbox(monitor)
    outbox.send({"event": event})
    outbox.wait()


def test_an_event_that_the_driver_cannot_read_ends_in_an_error_and_holds_nobody(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 3)
    heard: list[Any] = []
    with pytest.raises(ray.exceptions.RayError, match="unreadable here"), listening(heard.append) as monitor:
        ray.get(send_unreadable.remote(monitor, os.getpid()), timeout=60)
    assert heard == []
