"""Events of workers come once and in order, through lost, late and repeated calls and a queue that forgets."""

from __future__ import annotations

import random
from typing import Any

import pytest

from beeray.runtime.event_queue import Answer, EventQueue, Inbox, Kept


class Network:
    """Calls of a queue on their way: made in any order, again when the queue is lost; answers may be late.

    Args:
        seed: of all that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.queue, self.inbox = EventQueue(), Inbox()
        self.kept, self.sent = [Kept(), Kept()], [0, 0]
        self.calls: list[tuple[int, tuple[Any, ...]]] = []
        self.made: list[tuple[int, tuple[Any, ...]]] = []
        self.answers: list[tuple[int, Answer]] = []
        self.place: Any = None
        self.places: list[Any] = [None]
        self.heard: list[tuple[int, int]] = []

    def send(self) -> None:
        one = self.draw.randrange(2)
        self.calls.append((one, self.kept[one].message({"sender": one, "number": self.sent[one]})))
        self.sent[one] += 1

    def make_a_call(self) -> None:
        if self.calls:
            one, call = self.calls.pop(self.draw.randrange(len(self.calls)))
            self.answers.append((one, self.queue.put(*call)))
            self.made.append((one, call))

    def hear_an_answer(self) -> None:
        if self.answers:
            one, answer = self.answers.pop(self.draw.randrange(len(self.answers)))
            self.kept[one].hear(answer)

    def drain(self) -> None:
        place, drained = self.queue.drain(self.place)
        if self.draw.random() < 0.7:  # else the answer is lost
            self.place = place
            self.places.append(place)
            self.heard += [(event["sender"], event["number"]) for event in self.inbox.new(drained)]

    def drain_late(self) -> None:
        """An earlier call, made again or after others; nobody waits for its answer."""
        self.queue.drain(self.draw.choice(self.places))

    def lose_the_queue(self) -> None:
        """Its successor knows nothing; some of the last calls are made again, as their answers were lost."""
        self.queue = EventQueue()
        self.calls += [call for call in self.made[-5:] if self.draw.random() < 0.5]

    def settle(self) -> None:
        """Everyone waits until all is there, as at a worker's end."""
        for _ in range(100):
            for kept in self.kept:
                if kept:
                    kept.hear(self.queue.put(*kept.message()))
            self.drain()
        assert not any(self.kept)


@pytest.mark.parametrize("seed", range(200))
def test_each_event_comes_once_and_in_its_sender_s_order(seed: int) -> None:
    network = Network(seed)
    acts = [
        network.send,
        network.make_a_call,
        network.hear_an_answer,
        network.drain,
        network.drain_late,
        network.lose_the_queue,
    ]
    for _ in range(network.draw.randrange(5, 300)):
        network.draw.choices(acts, [40, 25, 15, 17, 5, 3])[0]()
    network.settle()
    for one in range(2):
        assert [number for sender, number in network.heard if sender == one] == list(range(network.sent[one]))


def test_who_waits_sends_again_only_what_was_not_taken() -> None:
    queue, kept = EventQueue(), Kept()
    kept.hear(queue.put(*kept.message({"number": 0})))
    assert kept.message()[-1] == [], "the queue has it"
    kept.hear(queue.put(*kept.message()))
    assert len(kept) == 1, "but the driver does not"

    queue = EventQueue()  # which forgot
    kept.hear(queue.put(*kept.message()))
    assert kept.message()[-1] == [{"number": 0}]


def test_events_of_nobody_in_particular_are_handed_out_too() -> None:
    queue, inbox = EventQueue(), Inbox()
    for number in range(3):
        queue.add({"number": number})
    place, drained = queue.drain(None)
    assert [one["number"] for one in inbox.new(drained)] == [0, 1, 2]
    assert queue.drain(None)[1] == drained, "the first answer did not arrive"
    assert queue.drain(place) == (place, [])
    queue.add({"number": 3})
    assert [one["number"] for one in inbox.new(queue.drain(("an earlier life", 10**18))[1])] == [3]
