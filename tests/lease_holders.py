"""Holders of a lease that cannot renew it for a while, and those who take over meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from beeray.data import lease
from beeray.data.lease import Lease, leased

BEAT_S = 0.1
LOST = r"could not renew its lease there in time, and {} has it now; it stops; wait for the other"


def ignore(text: str) -> None:
    """Hear nothing."""


class Stalled:
    """Has calls of a function of `lease` wait, in threads that renew, while `holds` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
        self.holds, self._thread_ids, self._lock = threading.Event(), set[int](), threading.Lock()
        self._original: Callable[..., Any] = getattr(lease, function)
        monkeypatch.setattr(lease, function, self._call)

    def stall(self) -> None:
        """Have calls of the threads that renew now wait, from now on."""
        self._thread_ids |= {one.ident for one in threading.enumerate() if one.name == "lease" and one.ident}
        self.holds.set()

    def _call(self, *arguments: Any) -> Any:
        while self.holds.is_set() and threading.get_ident() in self._thread_ids:
            time.sleep(0.01)
        return self._original(*arguments)


def followed(folder: str, stalled: Stalled, stack: ExitStack) -> tuple[Lease, Lease]:
    """A holder whose renewals stall, and the one that took over meanwhile; the stall is over."""
    first = stack.enter_context(leased(folder, ignore, beat_s=BEAT_S, host="north"))
    stalled.stall()
    time.sleep(2 * BEAT_S)
    second = stack.enter_context(leased(folder, ignore, beat_s=BEAT_S, host="south"))
    stalled.holds.clear()
    return first, second
