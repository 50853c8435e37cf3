"""What a machine is: versions, memory, disk, clock. Read without importing any of the libraries it tells of."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import beeray
from beeray.runtime.cores import cores_here

PACKAGES = ("torch", "ray", "deepspeed", "sentence-transformers", "transformers", "numpy", "pyarrow")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class NodeFacts:
    """One machine, as a process on it sees it.

    Attributes:
        name: as errors call it.
        versions: of Python, beeray (with a digest of its source), packages, torch's CUDA, the NVIDIA driver.
        free_memory_bytes: what a new process may take; of a container with a limit, what that leaves.
        disk_used: share that is taken of the disk for temporary files, where Ray keeps objects.
        clock_s: seconds since the epoch, while the facts were read.
        num_gpus: that Ray gives away there.
    """

    name: str
    versions: Mapping[str, str]
    num_cpus: int
    memory_bytes: int
    free_memory_bytes: int
    disk_used: float
    clock_s: float = field(default_factory=time.time)
    num_gpus: float = 0.0


def read_facts(name: str = "", num_gpus: float = 0.0) -> NodeFacts:
    """The facts of the machine of this process.

    Args:
        name: of the node; the machine's own unless given.
        num_gpus: of the node, as Ray counts them.
    """
    memory = psutil.virtual_memory()
    limit, free = _container_memory(memory.total, memory.available)
    disk = shutil.disk_usage(tempfile.gettempdir())
    return NodeFacts(
        name=name or socket.gethostname(),
        versions=read_versions(),
        num_cpus=cores_here(),
        memory_bytes=limit,
        free_memory_bytes=free,
        disk_used=1.0 - disk.free / disk.total,
        num_gpus=num_gpus,
    )


def read_versions() -> dict[str, str]:
    """Name → version of all that must be alike on every machine."""
    versions = {"python": platform.python_version(), "beeray": f"{beeray.__version__}+{source_digest()}"}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["CUDA of torch"] = _cuda_of_torch()
    driver = re.search(r"\d+\.\d+(\.\d+)?", NVIDIA_DRIVER.read_text()) if NVIDIA_DRIVER.is_file() else None
    versions["NVIDIA driver"] = driver[0] if driver else "none"
    return versions


def source_digest() -> str:
    """Eight hex digits that change with beeray's source: two checkouts may have one version."""
    root = Path(beeray.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def _cuda_of_torch() -> str:
    """What torch's own version file says; importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return "none"
    file = Path(next(iter(spec.submodule_search_locations))) / "version.py"
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)", file.read_text(), re.MULTILINE) if file.is_file() else None
    return match[1] if match else "none"


def _container_memory(total: int, available: int) -> tuple[int, int]:
    """Memory and what of it is free, where a container (cgroup v2) has less than the machine."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return total, available
    if limit >= total:
        return total, available
    return limit, min(available, max(0, limit - used + (int(cached[1]) if cached else 0)))
