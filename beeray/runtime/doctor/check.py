"""A check at work: in a thread of its own, with a limit of time, after the checks that it needs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError

from beeray.runtime.doctor.finding import FAILED, OK, SKIPPED, WARNING, Finding, found

WENT_WELL = (OK, WARNING)


class Check:
    """One check, begun at once or as soon as those it needs have ended. Never waits for a thread that hangs.

    Args:
        name: as it is shown.
        work: ends in a finding.
        who: what hangs when nothing is heard.
        remedy: what to do about that, and about an error that names no remedy.
        limit_s: seconds it may take, counted from its own beginning.
        needs: checks without which it has nothing to work with: it is skipped when one of them failed.
        after: checks that go before it, however they end.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Finding],
        *,
        who: str,
        remedy: str,
        limit_s: float,
        needs: Sequence[Check] = (),
        after: Sequence[Check] = (),
    ) -> None:
        self.name, self.who, self.remedy, self.limit_s = name, who, remedy, limit_s
        self._work, self._needs, self._after = work, needs, after
        self._began: Future[float] = Future()
        self._ended: Future[tuple[Finding, float]] = Future()
        threading.Thread(target=self._run, daemon=True, name=f"doctor-{name}").start()

    def _run(self) -> None:
        for check in (*self._needs, *self._after):
            check._ended.result()
        lacking = [check.name for check in self._needs if check._ended.result()[0].status not in WENT_WELL]
        began = time.monotonic()
        self._began.set_result(began)
        if lacking:
            self._end(Finding(SKIPPED, f"needs {lacking[0]}, which did not pass"), began)
            return
        self._end(found(self._work, self.remedy), began)

    def _end(self, finding: Finding, began: float) -> None:
        with contextlib.suppress(InvalidStateError):  # given up already
            self._ended.set_result((finding, time.monotonic() - began))

    def wait(self) -> tuple[Finding, float]:
        """Its finding and the seconds it took, at the latest when its time is over.

        Those that go before it must have been waited for.
        """
        began = self._began.result()
        try:
            return self._ended.result(timeout=max(0.0, began + self.limit_s - time.monotonic()))
        except FutureTimeoutError:
            late = f"if it is merely slow give --timeout-s {2 * self.limit_s:g}"
            hung = Finding(FAILED, f"no answer from {self.who} within {self.limit_s:g} s; {self.remedy}; {late}")
            self._end(hung, began)
            return self._ended.result()
