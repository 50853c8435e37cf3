"""Where the time from typing a command to the first optimizer step goes."""

from __future__ import annotations

import time

import psutil


class Startup:
    """Seconds since this process was started, at each thing that was reached."""

    def __init__(self) -> None:
        self._started = psutil.Process().create_time()
        self._reached: dict[str, float] = {}

    def reached(self, name: str, at: float | None = None) -> None:
        """Note a thing, the first time it is reached.

        Args:
            at: seconds since the epoch; now unless given.
        """
        self._reached.setdefault(name, round((time.time() if at is None else at) - self._started, 2))

    def record(self) -> dict[str, float]:
        """What was reached, in the order of time."""
        return dict(sorted(self._reached.items(), key=lambda entry: entry[1]))
