"""An iterator in a thread of its own: same things in the same order, made while the last one is used."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from beeray.core.ahead import Ahead


def test_things_come_in_order_and_end() -> None:
    with Ahead(range(50)) as ahead:
        assert list(ahead) == list(range(50))


def test_the_next_thing_is_made_while_this_one_is_used_and_no_more_than_asked_for() -> None:
    made: list[int] = []
    third = threading.Event()

    def things() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    with Ahead(things(), depth=1) as ahead:
        assert next(ahead) == 0
        assert third.wait(5)  # one lies ready, one waits to be laid there; nobody has asked for either
        assert made == [0, 1, 2]


def test_an_error_comes_where_its_thing_would_have_come() -> None:
    def things() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with Ahead(things()) as ahead:
        assert next(ahead) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)


def test_leaving_early_ends_the_thread() -> None:
    closed = threading.Event()

    def things() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with Ahead(things()) as ahead:
        next(ahead)
    assert closed.wait(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_a_thread_that_hangs_where_others_have_left_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beeray.core.ahead.LEAVE_S", 0.2)
    others = threading.Event()

    def things() -> Iterator[int]:
        yield 1
        others.wait(60)

    started = time.monotonic()
    with Ahead(things()) as ahead:
        next(ahead)
    assert time.monotonic() - started < 5
    others.set()
