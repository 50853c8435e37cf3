"""Which process wrote something down, so that a later one can prove that it is gone.

A name of a host proves nothing: containers and machines share it. What does is the kernel's id since it started and the
namespace that numbers processes; a process is its number there and when it started, since numbers come again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
DEAD_STATES = "ZX"
"""Of `/proc/<pid>/stat`: it has ended, and its parent does not know yet."""


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
    if not alike or not written.get("started") or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)  # sees processes that /proc may hide from this user
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is there, and another user's
    try:
        state, started = _state_and_start(pid)
    except OSError:
        return False
    return state in DEAD_STATES or started != written["started"]


def _state_and_start(pid: int) -> tuple[str, int]:
    """State of a process, and when it started (clock ticks since the kernel did)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()  # a name before it may hold anything
    return fields[0], int(fields[19])
