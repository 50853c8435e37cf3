"""Which process wrote something down, so that a later one can prove that it is gone.

A name of a host proves nothing: containers and machines share it. What does is the kernel's id since it started and the
namespace that numbers processes; a process is its number there and when it started, since numbers come again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
DEAD_STATES = "ZX"
"""Of `/proc/<pid>/stat`: it has ended, and its parent does not know yet."""
TAG = r"[0-9a-f]{12}-\d+-\d+"
"""What a `tag_of_this_process` looks like, as a regular expression."""


def this_process() -> dict[str, object]:
    """What identifies this process on this machine; its `pid` alone without `/proc`, or with another namespace's."""
    pid = os.getpid()
    try:
        if str(Path("/proc/self").readlink()) != str(pid):
            return {"pid": pid}
        numbering = str(Path("/proc/self/ns/pid").readlink())
        return {"pid": pid, "boot": BOOT_ID.read_text().strip(), "pids": numbering, "started": _state_and_start(pid)[1]}
    except OSError:
        return {"pid": pid}


def is_provably_gone(written: Mapping[str, object]) -> bool:
    """Whether what `this_process` wrote down ran on this machine, under the same numbering, and has ended."""
    here, pid = this_process(), written.get("pid")
    alike = all(here.get(name) and here[name] == written.get(name) for name in ("boot", "pids"))
    started = written.get("started")
    return alike and isinstance(pid, int) and isinstance(started, int) and _has_ended(pid, started)


def tag_of_this_process() -> str:
    """What `this_process` says, short enough for a file's name; `000000000000-<pid>-0` where nothing can be proven."""
    here = this_process()
    return f"{_place(here)}-{here['pid']}-{here.get('started', 0)}"


def is_tag_of_gone(tag: str) -> bool:
    """Whether a `tag_of_this_process` is of one that ran on this machine, under the same numbering, and has ended."""
    place, pid, started = tag.split("-")
    return place == _place(this_process()) and _has_ended(int(pid), int(started))


def _place(process: Mapping[str, object]) -> str:
    """The kernel's start and the numbering of processes, as 12 hexadecimal digits; zeros where they are not known."""
    if "boot" not in process:
        return "0" * 12
    return hashlib.sha256(f"{process['boot']} {process['pids']}".encode()).hexdigest()[:12]


def _has_ended(pid: int, started: int) -> bool:
    """Whether the process of this number that started then has; no process if either is 0 or less."""
    if pid <= 0 or started <= 0:
        return False
    try:
        os.kill(pid, 0)  # sees processes that /proc may hide from this user
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is there, and another user's
    try:
        state, since = _state_and_start(pid)
    except OSError:
        return False
    return state in DEAD_STATES or since != started


def _state_and_start(pid: int) -> tuple[str, int]:
    """State of a process, and when it started (clock ticks since the kernel did)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()  # a name before it may hold anything
    return fields[0], int(fields[19])
