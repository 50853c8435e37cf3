"""Workers on their way: told of where they find no place, given up on where they die again and again.

Ray Train tries both for ever and says nothing: `max_failures` counts workers that have begun to work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from beeray.data.streaming import what_it_says
from beeray.errors import RunError


class WorkerStarts(WorkerGroupCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller, around every start of the workers.

    Args:
        monitor: is told `unplaced`, with the number of the try, when there was no place for a minute.
        max_failures: how often workers may die while they start.
    """

    def __init__(self, monitor: Any, max_failures: int) -> None:
        self.monitor, self.max_failures = monitor, max_failures
        self.failed = self.unplaced = 0

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Around one start.

        Raises:
            RunError: workers have died too often.
        """
        try:
            yield
        except WorkerGroupStartupTimeoutError:
            self.unplaced += 1
            self.monitor.send.remote({"kind": "unplaced", "tries": self.unplaced})
            raise
        except WorkerGroupStartupFailedError as error:
            self.failed += 1
            if self.failed <= self.max_failures:
                raise
            times = "" if self.failed == 1 else f" {self.failed} times"
            raise RunError(
                f"training stopped: workers died{times} while they started, and cluster.max_failures is "
                f"{self.max_failures} ({what_it_says(error)}); see the memory of the nodes, and run the same command "
                "again"
            ) from error
        self.unplaced = 0
