"""What the GPU benchmarks share: the device, its name, its matrix rate, waiting for it, and keeping a record."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def first_device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """For a record."""
    return torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu"


def peak_memory_gib(device: torch.device) -> float | None:
    """Most GPU memory held since it was last reset; None elsewhere."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def versions() -> dict[str, str]:
    """Of what computes."""
    return {name: version(name) for name in ("torch", "transformers", "sentence-transformers")}


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Multiplications and additions per second of one large product of square matrices, ten in a row."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    wait_for(device)
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    wait_for(device)
    return 10 * 2 * size**3 / (time.perf_counter() - started)


def publish(record: dict[str, Any], path: Path, *, dry: bool) -> None:
    """Print a short table, then the record as one line of JSON; write it unless `dry`."""
    print("\n".join(f"{name:<28}{value}" for name, value in record.items() if not isinstance(value, dict)))
    if not dry:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))
