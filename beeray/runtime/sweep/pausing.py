"""What a signal does to a sweep: trials that are at their steps end with a checkpoint, and then the command ends.

The signal reaches the sweep's driver alone. A `Monitor` carries the wish to the trials' own drivers, which hand it to
their workers as they do with a signal of their own, and brings back which trials have something to save.
"""

from __future__ import annotations

from typing import Any

from beeray.interruption import Interrupted, StopRequest
from beeray.runtime.monitor import Outbox
from beeray.runtime.wishes import Wish, Wishes

TRIAL, SAVES = "trial", "saves"
"""What trials tell the monitor: their number, and whether they would save something if they were stopped."""


class Pausing:
    """The sweep's end: knows which trials are at their steps, and ends the command when none is that should save.

    Attributes:
        request: takes the signals.
    """

    def __init__(self) -> None:
        self.request = StopRequest(lambda: bool(self._waited_for()))
        self._running: set[int] = set()
        self._saving: set[int] = set()
        self._paused: dict[int, str] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come: nothing new is begun."""
        return self.request.asked

    def hear(self, event: dict[str, Any]) -> None:
        """Take what a trial tells of itself."""
        (self._saving.add if event[SAVES] else self._saving.discard)(event[TRIAL])

    def begun(self, number: int) -> None:
        """A trial begins, or begins again since its driver died: it has nothing to save yet."""
        self._running.add(number)
        self._saving.discard(number)

    def ended(self, number: int, paused: str | None = None) -> None:
        """A trial runs no more.

        Args:
            paused: how far it came, where it ended because it was asked to.
        """
        self._running.discard(number)
        if paused is not None:
            self._paused[number] = paused

    def check(self) -> None:
        """End the command when a signal has come and all is saved.

        Raises:
            Interrupted: says how far the trials came.
        """
        if self.request.signum is not None and not self._waited_for():
            raise Interrupted(self.request.signum, "; ".join(said for _, said in sorted(self._paused.items())))

    def _waited_for(self) -> set[int]:
        return self._saving & self._running  # what a trial told may be heard after its end


class TrialWishes:
    """A trial's end: hears that it should stop, and tells whether it then has something to save.

    Args:
        monitor: the sweep's.
        number: of the trial.
    """

    def __init__(self, monitor: Any, number: int) -> None:
        self._outbox, self._number = Outbox(monitor), number
        # no call waits in the monitor: trials come and go, and calls of those that went would use up its threads
        self._wishes = Wishes(monitor, None, patience_s=0.0)

    def stop(self) -> bool:
        """Whether the trial should stop; waits for nothing."""
        return Wish.STOP in self._wishes.now()

    def tell(self, saves: bool) -> None:
        """Say whether the trial would save something; waits until that is heard."""
        self._outbox.send({TRIAL: self._number, SAVES: saves})
        self._outbox.wait()
