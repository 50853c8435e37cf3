"""What is asked of all ranks between two steps: stop, save, or look whether a node is about to go.

Rank 0 alone listens and keeps the time. It adds what it heard, as one number, to the sums that all ranks make of a step
anyway, so they all act on it after the same step and no collective is made for it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from enum import IntFlag
from typing import Any

import ray

PATIENCE_S = 60.0
"""How long a call waits: one that a lost worker left behind is gone after it."""
LOOK_EVERY_S = 5.0
"""Ray Train's own question for nodes that go is a meeting of all ranks, too slow for every step."""


class Wish(IntFlag):
    """What is asked."""

    NONE = 0
    STOP = 1
    SAVE = 2
    LOOK = 4


class Wishes:
    """A rank's wishes; without waiting for anything, so that a step may look as often as it likes.

    Args:
        monitor: the driver's `Monitor`; None on ranks that ask nobody, which wish nothing.
        save_every_minutes: between saves; None: by steps and epochs alone.
        patience_s: how long a call waits in the monitor for the driver's wish to stop.
    """

    def __init__(self, monitor: Any, save_every_minutes: float | None, patience_s: float = PATIENCE_S) -> None:
        self._monitor, self._patience_s = monitor, patience_s
        self._save_every_s = 60 * save_every_minutes if save_every_minutes else float("inf")
        self._answer: Any = None
        self._stop = False
        self._saved = self._looked = time.monotonic()

    def now(self) -> Wish:
        """What is to be done after this step; time begins anew for what is asked by the clock."""
        if self._monitor is None:
            return Wish.NONE
        wish, moment = Wish.STOP if self._heard() else Wish.NONE, time.monotonic()
        if moment - self._saved >= self._save_every_s:
            wish |= Wish.SAVE
            self._saved = moment
        if moment - self._looked >= LOOK_EVERY_S:
            wish |= Wish.LOOK
            self._looked = moment
        return wish

    def saved(self) -> None:
        """A checkpoint was saved for another reason."""
        self._saved = time.monotonic()

    def _heard(self) -> bool:
        """Whether the driver wants to stop: one call of the monitor is always under way."""
        if self._stop:
            return True
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # the actor is being moved: the next call tells
                self._stop = bool(ray.get(self._answer))
            self._answer = None
        if self._answer is None and not self._stop:
            self._answer = self._monitor.wait_for_stop.remote(self._patience_s)
        return self._stop
