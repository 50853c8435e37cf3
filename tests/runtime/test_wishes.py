"""What rank 0 is asked between two steps: by the driver, and by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import ray

from beeray.runtime import wishes as wishes_module
from beeray.runtime.monitor import Monitor
from beeray.runtime.wishes import Wish, Wishes

pytestmark = pytest.mark.slow


def until(condition: Callable[[], bool], limit_s: float = 30.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_the_driver_s_wish_to_stop_is_heard_and_stays(ray_session: None) -> None:
    monitor = Monitor.remote()  # type: ignore[attr-defined]
    wishes = Wishes(monitor, save_every_minutes=None)
    assert wishes.now() == Wish.NONE
    ray.get(monitor.ask_to_stop.remote())
    assert until(lambda: Wish.STOP in wishes.now())
    assert Wish.STOP in wishes.now()
    ray.kill(monitor)


def test_a_save_is_due_by_the_clock_and_another_save_puts_it_off(ray_session: None) -> None:
    monitor = Monitor.remote()  # type: ignore[attr-defined]
    wishes = Wishes(monitor, save_every_minutes=1 / 60)
    assert Wish.SAVE not in wishes.now()
    assert until(lambda: Wish.SAVE in wishes.now())
    assert Wish.SAVE not in wishes.now()
    time.sleep(0.9)
    wishes.saved()
    time.sleep(0.2)
    assert Wish.SAVE not in wishes.now()
    ray.kill(monitor)


def test_nodes_are_asked_about_now_and_then(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes_module, "LOOK_EVERY_S", 0.3)
    monitor = Monitor.remote()  # type: ignore[attr-defined]
    wishes = Wishes(monitor, save_every_minutes=None)
    assert Wish.LOOK not in wishes.now()
    time.sleep(0.35)
    assert wishes.now() == Wish.LOOK
    assert wishes.now() == Wish.NONE
    ray.kill(monitor)


def test_other_ranks_wish_nothing() -> None:
    wishes = Wishes(None, save_every_minutes=1e-9)
    time.sleep(0.01)
    assert wishes.now() == Wish.NONE


def test_wishes_travel_as_one_number() -> None:
    both = Wish.STOP | Wish.LOOK
    assert Wish(int(float(both) + 0.0)) == both and Wish.SAVE not in Wish(int(float(both)))
