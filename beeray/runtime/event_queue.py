"""Events between workers and driver: each of a sender's arrives once and in order, whatever is lost or late on the way.

A sender numbers its events and keeps them until the driver has them. The queue takes a message only where it follows on
what it has, or begins with the first event that the sender still keeps; else it says no, and the sender's next message
holds all that it keeps. So it does not matter that Ray makes calls again in any order when an actor was moved, nor that
the actor has then forgotten what it had. What is handed out twice the driver knows by its number.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

Event = dict[str, Any]
Place = tuple[str, int]
"""A queue's life, and how many events it had had."""


class Numbered(NamedTuple):
    """An event in the queue."""

    sender: str
    number: int
    event: Event


class Answer(NamedTuple):
    """What a sender hears.

    Attributes:
        taken: whether all of its message is in the queue, or was.
        confirmed: the number below which the driver has all of its events.
    """

    taken: bool
    confirmed: int


class EventQueue:
    """Holds events until the driver has them."""

    def __init__(self) -> None:
        self._life, self._num_gone = uuid.uuid4().hex, 0
        self._queue: list[Numbered] = []
        self._next: dict[str, int] = {}
        self._confirmed: dict[str, int] = {}

    def add(self, event: Event) -> None:
        """Queue an event of nobody in particular."""
        self.put(uuid.uuid4().hex, 0, 0, [event])

    def put(self, sender: str, kept_from: int, first: int, events: Sequence[Event]) -> Answer:
        """Queue a sender's events.

        Args:
            kept_from: number of the first event that it keeps; the driver has those before.
            first: number of the first of `events`; of the next one if there are none.
        """
        following = max(self._next.get(sender, 0), kept_from)
        taken = first <= following
        if taken:
            new = list(enumerate(events, start=first))[following - first :]
            self._queue += [Numbered(sender, number, event) for number, event in new]
            self._next[sender] = following + len(new)
        return Answer(taken, max(self._confirmed.get(sender, 0), kept_from))

    def drain(self, place: Place | None) -> tuple[Place, list[Numbered]]:
        """All events after a place, in order, and the place after them; those before it are forgotten.

        Nothing is lost if an answer is: who asks again from the same place is answered the same and more.

        Args:
            place: as an earlier answer said; one of an actor that has been moved since is before all events.
        """
        handed = max(0, place[1] - self._num_gone) if place is not None and place[0] == self._life else 0  # late: less
        for sender, number, _ in self._queue[:handed]:
            self._confirmed[sender] = number + 1
        del self._queue[:handed]
        self._num_gone += handed
        return (self._life, self._num_gone + len(self._queue)), list(self._queue)


class Inbox:
    """The driver's end: knows what it has had."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def new(self, drained: Sequence[Numbered]) -> list[Event]:
        """The events that did not come before."""
        events = []
        for sender, number, event in drained:
            if number >= self._next.get(sender, 0):
                self._next[sender] = number + 1
                events.append(event)
        return events


class Kept:
    """A sender's end: what the driver does not have yet, as far as is known."""

    def __init__(self) -> None:
        self.sender = uuid.uuid4().hex
        self._first = 0
        self._events: list[Event] = []
        self._again = False

    def __len__(self) -> int:
        return len(self._events)

    def message(self, event: Event | None = None) -> tuple[str, int, int, list[Event]]:
        """Arguments of `put` for one more event, or for none, which asks what the driver has.

        Where a message was not taken it holds all that is kept.
        """
        new = [] if event is None else [event]
        following = self._first + len(self._events)
        self._events += new
        if self._again:
            self._again = False
            return self.sender, self._first, self._first, list(self._events)
        return self.sender, self._first, following, new

    def hear(self, answer: Answer) -> None:
        """Take an answer; answers may come late."""
        taken, confirmed = answer
        self._again = self._again or not taken
        gone = max(0, confirmed - self._first)
        del self._events[:gone]
        self._first += gone
