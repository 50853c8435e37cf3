"""That a run's folder is one and the same on every node.

The driver leaves a file of a name that nobody ever had, and every worker looks for it before it trains: a folder of the
same name on a node's own disk has none, nor has one that an earlier run left there. Without this each rank's part of a
checkpoint would lie on its own disk, and no checkpoint would ever be whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import ray.util

from beeray.data.storage import storage_errors

PREFIX = ".training-"
PATIENCE_S = 15.0
"""A network disk may show a folder a little later than it was made on another node."""
POLL_S = 0.5


@contextmanager
def marked(run_dir: Path) -> Iterator[str]:
    """Have a marker in a run's folder, which this command alone may use, until the context ends; gives its name.

    Raises:
        DataError: it cannot be written.
    """
    for left in run_dir.glob(f"{PREFIX}*"):  # by a command that was killed
        left.unlink(missing_ok=True)
    marker = run_dir / f"{PREFIX}{uuid4().hex}"
    with storage_errors(str(marker)):
        marker.touch()
    try:
        yield marker.name
    finally:
        with suppress(OSError):
            marker.unlink()


def what_is_not_shared(runs_dir: str, run_dir: Path, marker: str, patience_s: float = PATIENCE_S) -> str:
    """What is wrong where this process does not see the driver's marker; empty where it does.

    Args:
        runs_dir: as it is configured.
    """
    deadline = time.monotonic() + patience_s
    while not (run_dir / marker).is_file():
        if time.monotonic() >= deadline:
            return (
                f"runs_dir {runs_dir!r}: what this command writes to {run_dir} is not seen by a worker on node "
                f"{ray.util.get_node_ip_address()}, so the folder is not shared and no checkpoint would be whole; "
                "give runs_dir a folder on a disk that all nodes mount"
            )
        time.sleep(min(POLL_S, patience_s))
    return ""
