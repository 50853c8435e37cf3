"""Writes for someone who may read: what a full disk does not take, or nobody is there for, is lost and ends nothing."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

LATE = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""What a network's or a quota's file may say only when it is to be on the disk; what is no file says something else."""


class Stream:
    """Writes to a text stream and never raises an `OSError`.

    Letters that it cannot write are spelt out, and where there is no stream (it was closed) nothing is written. tqdm
    writes here, too: an error in the middle of its drawing would leave its lock taken.

    Attributes:
        error: the last one; nobody's having left (`| head`) is none.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.error: OSError | None = None
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(self._stream, io.TextIOWrapper) and self._stream.errors == "strict":
            self._stream.reconfigure(errors="backslashreplace")  # a terminal that is not of UTF-8
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or lose what could not be written yet."""
        self._try(self._stream.flush)

    def line(self, text: str) -> OSError | None:
        """A line, flushed; returns what kept it, or what was written before it, from being written whole."""
        with self._lock:
            self.error = None
            print(text, file=self, flush=True)
            return self.error

    def line_on_disk(self, text: str) -> OSError | None:
        """The same, and where it is a file that the disk has it: quotas and network file systems refuse late."""
        refused = self.line(text)
        try:
            os.fsync(self.fileno())
        except OSError as error:
            refused = refused or (error if error.errno in LATE else None)
        return refused

    def _try(self, write: Callable[[], object]) -> None:
        with self._lock:
            try:
                write()
            except BrokenPipeError:
                self._forget(for_good=True)
            except OSError as error:
                self.error = error
                self._forget(for_good=False)

    def _forget(self, *, for_good: bool) -> None:
        """Flush what the stream still holds into nothing: it would fail again, and spoil the exit code, when closed."""
        with suppress(OSError):  # of a stream that is no file
            descriptor = self._stream.fileno()
            inherited, kept = os.get_inheritable(descriptor), os.dup(descriptor)
            try:
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), descriptor, inherited)
                self._stream.flush()
            finally:
                if not for_good:
                    os.dup2(kept, descriptor, inherited)
                os.close(kept)
