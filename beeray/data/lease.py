"""Who is at work on a folder of an object store, where no lock reaches from one machine to another.

The holder writes `<folder>/.lease` anew every few seconds. Whoever finds the lease of another machine watches
it: if it changes, its holder lives; if it does not, its holder is gone. No clocks are compared.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from beeray.data.storage import delete_file, exists, join, read_bytes, write_bytes
from beeray.errors import BeerayError, RunError

LEASE = ".lease"
BEAT_S = 5.0
WATCH_S = 4 * BEAT_S
SETTLE_S = 1.0


@contextmanager
def leased(
    folder: str, say: Callable[[str], None], *, beat_s: float = BEAT_S, host: str | None = None
) -> Iterator[None]:
    """Hold a folder's lease until the context ends; commands of one machine keep apart by a lock of their own.

    Args:
        say: told when a lease is watched, which takes four beats.
        beat_s: seconds between two renewals.
        host: name of this machine.

    Raises:
        RunError: another machine holds it.
    """
    host = host or socket.gethostname()
    path = join(folder, LEASE)
    _wait_for_other(path, host, say, 4 * beat_s)
    ours = {"host": host, "pid": os.getpid(), "token": uuid4().hex}
    _renew(path, ours)
    time.sleep(min(SETTLE_S, beat_s))
    found = _read(path)
    if found is not None and found.get("token") != ours["token"]:  # two began at once: the later one has it
        raise RunError(_taken(folder, found))
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ours, beat_s, done), daemon=True, name="lease")
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        with suppress(BeerayError):
            delete_file(path)


def _wait_for_other(path: str, host: str, say: Callable[[str], None], watch_s: float) -> None:
    found = _read(path)
    if found is None or found.get("host") == host:
        return
    folder = path.removesuffix(f"/{LEASE}")
    say(f"{folder}: {found.get('host')} was at work there; watching for {watch_s:.0f} s whether it still is")
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, watch_s / 10))
        now = _read(path)
        if now is None:
            return
        if now != found:
            raise RunError(_taken(folder, now))


def _taken(folder: str, holder: dict[str, object]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')}"
    return f"{folder} is being worked on by another command ({who}); wait for it, or stop it"


def _beat(path: str, ours: dict[str, object], beat_s: float, done: threading.Event) -> None:
    while not done.wait(beat_s):
        with suppress(BeerayError):  # the next beat may arrive
            _renew(path, ours)


def _renew(path: str, ours: dict[str, object]) -> None:
    write_bytes(path, json.dumps({**ours, "beat": uuid4().hex}).encode())


def _read(path: str) -> dict[str, object] | None:
    if not exists(path):
        return None
    try:
        return dict(json.loads(read_bytes(path)))
    except (BeerayError, ValueError, TypeError):  # it went meanwhile, or is no lease
        return None
