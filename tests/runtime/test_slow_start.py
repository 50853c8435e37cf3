"""A Ray that takes longer than Ray waits is started again, and what was begun is ended."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psutil
import pytest
import ray

from beeray.config import ClusterConfig
from beeray.errors import ClusterError
from beeray.runtime.session import ray_session


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """What a Ray that never comes up starts."""
    begun: list[subprocess.Popen[bytes]] = []

    def init(**_: Any) -> None:
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return begun


def test_a_slow_start_is_tried_again_and_then_told(begun: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(ClusterError, match="3 times, but it did not come up in time"), ray_session(ClusterConfig()):
        pass
    *earlier, last = begun
    assert [one.wait(timeout=10) for one in earlier] == [-9, -9], (
        "they would take memory and cores until the command ends"
    )
    assert psutil.pid_exists(last.pid)
    last.kill()
    last.wait()
