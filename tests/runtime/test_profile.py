"""A trace of real work, and the page that sums it up."""

from __future__ import annotations

import gzip
import json
import re
import time
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from beeray.core.step import SCOPE
from beeray.runtime.profile import SUMMARY, TRACE, StepProfiler


def run_steps(folder: Path | None, num_steps: int) -> list[Path]:
    """Steps of which `encode` takes 20 ms and `wait` nothing; returns what was said to be written."""
    written: list[Path] = []
    with StepProfiler(folder, num_steps, title="a <run>", written=written.append) as profiler:
        for _ in range(num_steps):
            with record_function(f"{SCOPE}wait"):
                pass
            with record_function(f"{SCOPE}encode"):
                torch.mm(torch.ones(8, 8), torch.ones(8, 8))
                time.sleep(0.02)
            profiler.step_done()
    return written


@pytest.mark.parametrize(("num_steps", "num_traced"), [(9, 4), (2, 1), (1, 1)])
def test_a_trace_and_a_page_of_the_steps_after_the_first(tmp_path: Path, num_steps: int, num_traced: int) -> None:
    assert run_steps(tmp_path / "profile", num_steps) == [tmp_path / "profile" / SUMMARY]
    with gzip.open(tmp_path / "profile" / TRACE, "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    assert names.count(f"{SCOPE}encode") == num_traced
    assert "aten::mm" in names
    page = (tmp_path / "profile" / SUMMARY).read_text()
    assert f"mean of {num_traced} step" in page
    (encode,) = re.findall(r'</span>encode</td><td class="number">([\d.]+)</td>', page)
    assert float(encode) >= 20
    assert num_traced == 1 or float(encode) < 20 * num_traced  # each of the traced steps alone, not their sum
    assert "a &lt;run&gt;" in page and "<script" not in page and "http" not in page


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    assert run_steps(None, 9) == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_at_its_last_step_keeps_the_profile_that_it_has(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text("good")
    assert run_steps(tmp_path, 0) == []
    assert [path.name for path in tmp_path.iterdir()] == [SUMMARY] and (tmp_path / SUMMARY).read_text() == "good"
