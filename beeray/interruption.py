"""SIGINT (Ctrl-C), SIGTERM (`ray job stop`, Kubernetes, systemd), SIGHUP (the terminal is gone): what a command does.

Unless said otherwise they end it at once, as an `Interrupted` that passes through every `except Exception`. While
something is under way that is worth a moment, a `StopRequest` takes them instead.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """A signal ended the command.

    Attributes:
        signum: which.
        said: what became of the work, for the last line.
    """

    def __init__(self, signum: int, said: str = "") -> None:
        super().__init__(signum, said)
        self.signum = signum
        self.said = said or ("interrupted" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}")

    @property
    def exit_code(self) -> int:
        """What a shell makes of a signal: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signum


class StopRequest:
    """Takes the first signal as a wish to stop soon, where there is something to save, and a second SIGINT as stop now.

    A second SIGTERM says nothing new: whoever sends it has a SIGKILL for those that are too slow.

    Args:
        worth_waiting: whether something is under way that can be saved; it is asked when a signal comes.
    """

    def __init__(self, worth_waiting: Callable[[], bool]) -> None:
        self.signum: int | None = None
        self._worth_waiting = worth_waiting

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Take a signal; raises Interrupted where there is nothing to wait for."""
        if not self._worth_waiting() or (self.asked and signum == signal.SIGINT):
            raise Interrupted(signum)
        self.signum = self.signum or signum


def interrupt(signum: int, frame: FrameType | None) -> None:
    """End the command at once; raises Interrupted."""
    raise Interrupted(signum)


@contextmanager
def signals_handled(handler: Handler) -> Iterator[None]:
    """Have them handled so until the context ends; outside the main thread, where that cannot be: not.

    SIGHUP that is ignored stays so: the command was begun with `nohup`.
    """
    with signals_kept():
        if _in_main_thread():
            for one in SIGNALS:
                if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN:
                    signal.signal(one, handler)
        yield


@contextmanager
def signals_kept() -> Iterator[None]:
    """What handles these signals now does so again when the context ends: Ray sets handlers of its own."""
    kept = {one: signal.getsignal(one) for one in SIGNALS} if _in_main_thread() else {}
    try:
        yield
    finally:
        for one, handler in kept.items():
            signal.signal(one, handler)


@contextmanager
def hang_up_blocked() -> Iterator[None]:
    """Have a SIGHUP wait until the context ends; for processes that are started meanwhile it waits for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
