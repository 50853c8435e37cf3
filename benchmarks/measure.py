"""Running a command as a benchmark does: its last JSON line, wall time, CPU time and memory of its processes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "ray", "deepspeed", "sentence-transformers", "transformers", "numpy", "pyarrow")
POLL_S = 0.2


@dataclass
class Family:
    """What a process and all its descendants used, Ray's own daemons included.

    Attributes:
        cpu_s: seconds, user and system, of each process.
        peak_bytes: largest private memory (resident less shared) that each process was seen with.
        names: what each process calls itself.
        peak_total_bytes: most that all of them held at one moment: the sum of proportional set sizes, in which a page
            that several processes map (a library, Ray's object store) counts once.
    """

    cpu_s: dict[tuple[int, float], float] = field(default_factory=dict)
    peak_bytes: dict[tuple[int, float], int] = field(default_factory=dict)
    names: dict[tuple[int, float], str] = field(default_factory=dict)
    peak_total_bytes: int = 0
    with_total: bool = True

    def sample(self, pid: int) -> None:
        """Note what everyone used so far."""
        try:
            everyone = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        total_bytes = 0
        for one in everyone:
            try:
                total_bytes += _proportional_bytes(one.pid) if self.with_total else 0
                key, times, memory = (one.pid, one.create_time()), one.cpu_times(), one.memory_info()
                self.names[key] = (one.cmdline() or [one.name()])[0].rpartition("/")[2]
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            self.cpu_s[key] = times.user + times.system
            self.peak_bytes[key] = max(self.peak_bytes.get(key, 0), memory.rss - memory.shared)
        self.peak_total_bytes = max(self.peak_total_bytes, total_bytes)

    def peaks_mib(self) -> dict[str, float]:
        """The largest private memory of each kind of process, MiB."""
        peaks: dict[str, float] = {}
        for key, number in self.peak_bytes.items():
            kind = "driver" if key == min(self.peak_bytes, key=lambda one: one[1]) else self.names[key]
            peaks[kind] = max(peaks.get(kind, 0.0), round(number / 2**20, 1))
        return dict(sorted(peaks.items(), key=lambda item: -item[1]))


def _proportional_bytes(pid: int) -> int:
    """Resident memory of a process, each shared page divided by the number of those who map it; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def run_verb(
    verb: str, *arguments: str, cwd: Path, family: Family | None = None
) -> tuple[dict[str, Any], float, float]:
    """Run `python -m beeray.<verb>` to its end; see `run_command`."""
    return run_command([sys.executable, "-m", f"beeray.{verb}", *arguments], cwd, family)


def run_command(command: list[str], cwd: Path, family: Family | None = None) -> tuple[dict[str, Any], float, float]:
    """Run a command to its end.

    Args:
        family: takes what its processes used.

    Returns:
        the JSON of its last line on stdout, wall seconds, and CPU seconds of all processes.
    """
    family = family or Family(with_total=False)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        family.sample(process.pid)
        time.sleep(POLL_S)
    wall_s = time.monotonic() - started
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(lines[-1]), wall_s, sum(family.cpu_s.values())


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
