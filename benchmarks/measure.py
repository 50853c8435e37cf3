"""Running a command as a benchmark does: its last JSON line, wall time, and CPU time of all its processes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "ray", "deepspeed", "sentence-transformers", "transformers", "numpy", "pyarrow")
POLL_S = 0.2


def run_verb(verb: str, *arguments: str, cwd: Path) -> tuple[dict[str, Any], float, float]:
    """Run `python -m beeray.<verb>` to its end.

    Returns:
        the JSON of its last line on stdout, wall seconds, and CPU seconds (user + system) of the process and
        all its descendants, Ray's own daemons included.
    """
    command = [sys.executable, "-m", f"beeray.{verb}", *arguments]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    seconds: dict[tuple[int, float], float] = {}
    while process.poll() is None:
        _sample(process.pid, seconds)
        time.sleep(POLL_S)
    wall_s = time.monotonic() - started
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(lines[-1]), wall_s, sum(seconds.values())


def _sample(pid: int, seconds: dict[tuple[int, float], float]) -> None:
    """Note the CPU time so far of a process and its descendants; the last note of each counts."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            times = one.cpu_times()
            seconds[one.pid, one.create_time()] = times.user + times.system
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def environment() -> dict[str, Any]:
    """Hardware and versions, as every record carries them."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }
