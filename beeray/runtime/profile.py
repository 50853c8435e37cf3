"""A trace of a few steady steps of one rank, and what a page says of it.

profile/trace.json.gz   for ui.perfetto.dev or chrome://tracing
profile/summary.html    where the time of a step went, on one page
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from beeray.core.step import SCOPE
from beeray.runtime.profile_page import profile_page

TRACE, SUMMARY = "trace.json.gz", "summary.html"
SKIPPED, TRACED = 3, 4
"""Steps before the trace, whose allocations and measurements no later step has, and steps in it."""
PARTS = ("wait", "table", "encode", "gather", "loss", "backward", "optimizer", "report")


@dataclass(frozen=True)
class ProfileSummary:
    """What a trace says of its steps.

    Attributes:
        title: which run and rank.
        num_steps: steps in the trace.
        part_ms: milliseconds a step of each part that occurred, on the host.
        device_ms: the same on the GPU; empty on a CPU.
        operations: (name, calls a step, milliseconds a step) of the costliest operations.
    """

    title: str
    num_steps: int
    part_ms: dict[str, float]
    device_ms: dict[str, float]
    operations: list[tuple[str, float, float]]


class StepProfiler:
    """Profiles some steps of a run; use as a context, and call `step_done` after each step.

    Args:
        folder: takes trace and page; None: nothing is profiled.
        num_steps: steps that are still to come; without any, what is in the folder stays.
        title: of the page.
        written: told the page's path.
    """

    def __init__(self, folder: Path | None, num_steps: int, *, title: str, written: Callable[[Path], None]) -> None:
        self.folder, self.title, self.written = folder, title, written
        skipped = max(0, min(SKIPPED, num_steps - 1))
        self.num_traced = max(1, min(TRACED, num_steps - skipped))
        self._profile: Any = None
        if folder is not None and num_steps > 0:
            on_gpu = torch.cuda.is_available()
            self._profile = profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
                schedule=schedule(wait=max(0, skipped - 1), warmup=min(1, skipped), active=self.num_traced, repeat=1),
                on_trace_ready=self._write,
            )

    def __enter__(self) -> StepProfiler:
        if self._profile is not None:
            self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.__exit__(kind, error, trace)

    def step_done(self) -> None:
        """One more step is over."""
        if self._profile is not None:
            self._profile.step()

    def _write(self, finished: Any) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(self.folder / TRACE))
        path = self.folder / SUMMARY
        path.write_text(profile_page(summarise(finished, self.title, self.num_traced), TRACE), encoding="utf-8")
        self.written(path)


def summarise(finished: Any, title: str, num_steps: int, num_operations: int = 15) -> ProfileSummary:
    """Sum a torch profile up.

    Args:
        finished: a `torch.profiler.profile` after its last step.
        num_steps: steps in it.
    """
    averages = {entry.key: entry for entry in finished.key_averages()}
    scopes = {part: averages[SCOPE + part] for part in PARTS if SCOPE + part in averages}
    device_ms = {part: entry.device_time_total / 1e3 / num_steps for part, entry in scopes.items()}
    own = [entry for key, entry in averages.items() if not key.startswith((SCOPE, "ProfilerStep"))]
    cost = {entry.key: max(entry.self_cpu_time_total, entry.self_device_time_total) / 1e3 for entry in own}
    costliest = sorted(own, key=lambda entry: -cost[entry.key])[:num_operations]
    return ProfileSummary(
        title=title,
        num_steps=num_steps,
        part_ms={part: entry.cpu_time_total / 1e3 / num_steps for part, entry in scopes.items()},
        device_ms=device_ms if any(device_ms.values()) else {},
        operations=[(entry.key, entry.count / num_steps, cost[entry.key] / num_steps) for entry in costliest],
    )
