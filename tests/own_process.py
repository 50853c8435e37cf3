"""Python in a process of its own, with no model hub to ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(*arguments: str, cwd: Path, limit_s: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <arguments>` in a folder to its end, whatever its exit code.

    Args:
        environment: laid over this process's own.
    """
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
