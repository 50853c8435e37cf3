"""Who is at work on a folder of an object store, where no lock reaches from one machine to another.

The holder writes `<folder>/.lease` anew every few seconds. Whoever finds a lease watches it: if it changes, its holder
lives; if it does not, its holder is gone. No clocks are compared. Only the lease of a process that provably ran on this
machine and has ended is taken at once.

A holder that could not write for longer than others watch may have been followed by another. So each renewal reads
first, and one that finds another's lease leaves it alone and is lost for good. `Lease.check` renews, so for a watch
from then on nobody else takes over; it is called before whatever two commands must not both do.

What remains: what a check allowed (a write, a removal) may hang for longer than a watch, and come when another is at
work. Where the store knows no conditional writes (`tagged_file.py`), a renewal that hangs so long may replace the lease
of a command that took over meanwhile; that one finds its own lost within a beat, and at its next check.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from beeray.data.process_identity import is_provably_gone, this_process
from beeray.data.storage import delete_file, join
from beeray.data.tagged_file import read_tagged, write_tagged
from beeray.errors import BeerayError, DataError, RunError

LEASE = ".lease"
BEAT_S = 5.0
NUM_WATCHED = 4
SETTLE_S = 1.0


@dataclass(frozen=True)
class Claim:
    """What tells a lease from all others; picklable, for tasks that write to the folder."""

    folder: str
    token: str

    @property
    def path(self) -> str:
        """The lease's file."""
        return join(self.folder, LEASE)

    def check(self) -> None:
        """Read the lease.

        Raises:
            RunError: another command holds it, or nobody does.
        """
        self.check_found(_read(self.path)[0])

    def check_found(self, found: dict[str, object]) -> None:
        """The same for a lease that has been read."""
        if found.get("token") != self.token:
            raise RunError(
                f"{self.folder}: this command could not renew its lease there in time, and {_named(found)} has it now; "
                "it stops; wait for the other, or stop it, and run the same command again"
            )


class Lease:
    """A lease that is held.

    Args:
        claim: on the folder.
        holder: what else the lease says.
        beat_s: seconds between two renewals.
    """

    def __init__(self, claim: Claim, holder: dict[str, object], beat_s: float) -> None:
        self.claim = claim
        self._ours, self._beat_s = {**holder, "token": claim.token}, beat_s
        self._lock = threading.Lock()
        self._renewed_at = -math.inf
        self._lost: RunError | None = None

    def check(self) -> None:
        """Renew the lease.

        Raises:
            RunError: another command has it, or had it: it is lost for good.
            DataError: the store cannot be reached.
        """
        with self._lock:
            self.check_known()
            try:
                found, etag = _read(self.claim.path)
                self.claim.check_found(found)
                self.claim.check_found(self.write(etag))
            except RunError as error:
                self._lost = error
                raise

    def check_known(self) -> None:
        """Raise what a renewal has found out; asks nobody, so it may be called often."""
        if self._lost is not None:
            raise RunError(str(self._lost))

    def write(self, etag: str | None) -> dict[str, object]:
        """Write the lease over what was read with this ETag; returns what is there then.

        After a time in which others may have taken it, all wait a moment before they look: the later one has it.
        """
        began = time.monotonic()
        record = {**self._ours, "beat": uuid4().hex, "renewed": datetime.now(UTC).isoformat(timespec="seconds")}
        write_tagged(self.claim.path, json.dumps(record).encode(), etag)
        if time.monotonic() - self._renewed_at > NUM_WATCHED * self._beat_s:
            time.sleep(min(SETTLE_S, self._beat_s))
        found, _ = _read(self.claim.path)
        self._renewed_at = began
        return found

    def renew_until(self, done: threading.Event) -> None:
        """Renew it, every beat, until it is done or lost."""
        while not done.wait(self._beat_s):
            try:
                self.check()
            except RunError:
                return
            except BeerayError:
                continue  # the next beat may arrive


@contextmanager
def leased(
    folder: str, say: Callable[[str], None], *, beat_s: float = BEAT_S, host: str | None = None
) -> Iterator[Lease]:
    """Hold a folder's lease until the context ends; `Lease.check` tells whether it is still held.

    Args:
        say: told when a lease is watched, which takes four beats.
        beat_s: seconds between two renewals.
        host: name of this machine, for those who read it.

    Raises:
        RunError: another command holds it.
    """
    claim = Claim(folder, uuid4().hex)
    lease = Lease(claim, {"host": host or socket.gethostname(), **this_process()}, beat_s)
    found = lease.write(_wait_for_other(claim, say, NUM_WATCHED * beat_s))
    if found.get("token") != claim.token:  # two began at once
        raise RunError(_taken(folder, found or {"pid": "?", "host": "?"}))
    done = threading.Event()
    beating = threading.Thread(target=lease.renew_until, args=(done,), daemon=True, name="lease")
    beating.start()
    try:
        yield lease
    except Exception:
        with suppress(DataError):
            lease.check()  # of what a job finds wrong that was superseded, that is the cause
        raise
    finally:
        done.set()
        beating.join()
        with suppress(BeerayError):
            lease.check()
            delete_file(claim.path)


def _wait_for_other(claim: Claim, say: Callable[[str], None], watch_s: float) -> str | None:
    """Wait until nobody holds the lease; returns the ETag of what is left of it, None: nothing."""
    found, etag = _read(claim.path)
    if not found or is_provably_gone(found):
        return etag
    say(f"{claim.folder}: {found.get('host')} was at work there; watching for {watch_s:.0f} s whether it still is")
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, watch_s / 10))
        now, etag = _read(claim.path)
        if not now:
            break
        if now != found:
            raise RunError(_taken(claim.folder, now))
    return etag


def _taken(folder: str, holder: dict[str, object]) -> str:
    return f"{folder} is being worked on by another command ({_named(holder)}); wait for it, or stop it"


def _named(holder: dict[str, object]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}" if holder else "nobody"


def _read(path: str) -> tuple[dict[str, object], str | None]:
    """What a lease says, nothing where there is none or nobody can read it, and its ETag (see `tagged_file.py`)."""
    found = read_tagged(path)
    if found is None:
        return {}, None
    try:
        return dict(json.loads(found[0])), found[1]
    except (ValueError, TypeError):
        return {}, found[1]
