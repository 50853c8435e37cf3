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
    """Point file descriptors 1 and 2, `sys.stdout` and `sys.stderr` at a log until the context ends.

    Args:
        log: descriptor of an open file.
    """
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = _stream(1), _stream(2)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr, *streams):  # a library may have kept any of them
                _flush_or_lose(stream)
            sys.stdout, sys.stderr = streams
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
