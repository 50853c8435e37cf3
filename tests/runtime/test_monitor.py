"""Events on their way from workers to the driver."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from beeray.runtime.monitor import Monitor, listening

pytestmark = pytest.mark.slow
NUM_EVENTS = 2_000


@ray.remote(num_cpus=0)
def send_many(monitor: Any, name: str) -> None:
    """Send many without waiting, with a wish for a stop among them now and then, and wait for the last alone."""
    sent = None
    for number in range(NUM_EVENTS):
        if number % 500 == 0:
            monitor.wait_for_stop.remote(30.0)
        sent = monitor.send.remote({"sender": name, "number": number})
    ray.get(sent)


def test_each_sender_s_events_come_once_and_in_its_order_and_all_are_there_when_its_last_is(ray_session: None) -> None:
    heard: list[tuple[str, int]] = []
    with listening(lambda event: heard.append((event["sender"], event["number"]))) as monitor:
        ray.get([send_many.remote(monitor, name) for name in ("one", "other")])
    for name in ("one", "other"):
        assert [number for sender, number in heard if sender == name] == list(range(NUM_EVENTS))


def test_an_answer_that_is_lost_takes_no_events_with_it(ray_session: None) -> None:
    monitor: Any = Monitor.remote()  # type: ignore[attr-defined]
    for number in range(3):
        monitor.send.remote({"number": number})
    place, events = ray.get(monitor.drain.remote(None))
    assert [event["number"] for event in events] == [0, 1, 2]
    assert ray.get(monitor.drain.remote(None)) == (place, events)  # the first answer did not arrive
    monitor.send.remote({"number": 3})
    after, events = ray.get(monitor.drain.remote(place))
    assert [event["number"] for event in events] == [3]
    assert ray.get(monitor.drain.remote(after)) == (after, [])
    monitor.send.remote({"number": 4})
    _, events = ray.get(monitor.drain.remote(("an earlier life", 10**18)))
    assert [event["number"] for event in events] == [4]
    ray.kill(monitor)
