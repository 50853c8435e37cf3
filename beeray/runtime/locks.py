"""A file that one command holds, so that no two work on one run."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beeray.data.storage import storage_errors
from beeray.errors import DataError, RunError


@contextmanager
def locked_file(path: Path, said: str, remedy: str) -> Iterator[None]:
    """Hold a file's lock until the context ends; it is free when its process is gone.

    Args:
        path: made if need be.
        said, remedy: of the error, before and after the name of the holder.

    Raises:
        RunError: another process holds it.
        DataError: it cannot be made.
    """
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(f"{said} ({file.read().strip()}); {remedy}") from None
        except OSError as error:
            raise DataError(
                f"{path}: its file system takes no locks ({error.strerror}), so that two commands could spoil one run; "
                "mount it with locks, or give another runs_dir"
            ) from None
        with storage_errors(str(path)):
            file.truncate(0)
            holder = f"process {os.getpid()} on {socket.gethostname()}".encode()
            os.write(file.fileno(), holder)  # nothing left to flush
        yield
