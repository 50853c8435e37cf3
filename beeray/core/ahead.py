"""Making the next thing while the last one is used: an iterator that runs in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
POLL_S, LEAVE_S = 0.1, 5.0


class Ahead(Generic[T]):
    """Iterates over `items` in a background thread from now on, `depth` of them ahead; use as a context.

    What the iterator raises is raised where the thing would have come. Leaving the context ends the thread as soon
    as it is between two items, and waits a moment for it; it is a daemon, so that one that is in a collective which
    another rank's thread has left no longer holds anybody up, and ends with the process.

    Args:
        items: iterated by the thread alone.
        depth: things that may lie ready.
    """

    def __init__(self, items: Iterable[T], depth: int = 1) -> None:
        self._ready: queue.Queue[Callable[[], T]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(iter(items),), daemon=True, name="ahead")
        self._thread.start()

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if kind is None:
            self._thread.join(timeout=LEAVE_S)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._ready.get()()

    def _run(self, items: Iterator[T]) -> None:
        while not self._stop.is_set():
            try:
                item = next(items)
            except BaseException as error:  # the end, too: whoever iterates shall see it
                self._put(_raise(error))
                return
            self._put(lambda item=item: item)  # type: ignore[misc]
            del item

    def _put(self, give: Callable[[], T]) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(give, timeout=POLL_S)
            except queue.Full:
                continue


def _raise(error: BaseException) -> Callable[[], Any]:
    def give() -> Any:
        raise error

    return give
