"""How a worker hears that the driver wants to stop: one call of the monitor is always waiting for the answer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray

PATIENCE_S = 60.0
"""How long a call waits: one that a lost worker left behind is gone after it."""


class StopListener:
    """Asks the monitor without waiting for it, so that a step may look as often as it likes.

    Args:
        monitor: the driver's `Monitor`; None where nobody is to be asked.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._answer: Any = None
        self._heard = False

    def heard(self) -> bool:
        """Whether the driver wants to stop."""
        if self._heard or self._monitor is None:
            return self._heard
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # the actor is being moved: the next call tells
                self._heard = bool(ray.get(self._answer))
            self._answer = None
        if self._answer is None and not self._heard:
            self._answer = self._monitor.wait_for_stop.remote(PATIENCE_S)
        return self._heard
