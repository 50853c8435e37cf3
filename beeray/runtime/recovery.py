"""Where a command's workers were lost: how often it goes on by itself."""

from __future__ import annotations

import re

from beeray.config import ClusterConfig
from beeray.console import Console
from beeray.errors import LostWorkersError


class Recovery:
    """Counts the losses of one command.

    Args:
        cluster: says how many are survived, in `max_failures`.
        console: is told of each.
    """

    def __init__(self, cluster: ClusterConfig, console: Console) -> None:
        self._allowed, self._console = cluster.max_failures, console
        self._losses = 0

    def go_on(self, error: LostWorkersError, how: str) -> None:
        """Count a loss, and say how the command goes on from it.

        Args:
            error: what was lost; raised where it has been too often.
            how: e.g. `from the last checkpoint`.
        """
        self._losses += 1
        if self._losses > self._allowed:
            raise error
        said = re.sub(r"; [^;]*run the same command again.*", "", str(error))
        self._console.line(f"{said}; going on {how} ({self._losses} of cluster.max_failures {self._allowed})")
