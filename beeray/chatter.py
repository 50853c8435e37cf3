"""What libraries print while a verb is quiet: it goes to a log file, and what a full disk cannot take is lost.

A print that raises would end the verb, and what is left to be flushed would spoil its exit code.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

STREAMS = {"stdout": 1, "stderr": 2, "__stdout__": 1, "__stderr__": 2}
"""Names in `sys`, and the file descriptors that they write to."""


class _Descriptor(io.FileIO):
    """A file descriptor that takes whatever it is given, on a full disk too."""

    def write(self, data: Any) -> int:
        """Write bytes; those that cannot be written are lost."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def chatter_in(log: int) -> Iterator[None]:
    """Point file descriptors 1 and 2 and the streams of `sys` at a log until the context ends.

    A stream that a library kept from before writes to the log, too. A full disk makes it raise in a Python without
    buffers (`PYTHONUNBUFFERED`), and nowhere else.

    Args:
        log: descriptor of an open file.
    """
    streams = {name: getattr(sys, name) for name in STREAMS}
    before = [stream for stream in dict.fromkeys(streams.values()) if stream is not None]
    for stream in before:
        stream.flush()
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        ours = {descriptor: _stream(descriptor) for descriptor in (1, 2)}
        for name, descriptor in STREAMS.items():
            setattr(sys, name, ours[descriptor])
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr, *ours.values(), *before):  # a library may have kept any of them
                _flush_or_lose(stream)
            for name, stream in streams.items():
                setattr(sys, name, stream)
            for place, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, place)
    finally:
        for descriptor in kept:
            os.close(descriptor)


def _stream(descriptor: int) -> TextIO:
    raw = _Descriptor(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _flush_or_lose(stream: TextIO) -> None:
    """Flush a stream on descriptor 1 or 2; where the disk is full, into nothing."""
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        stream.flush()
