"""The table in docs/scaling.md is the one that its record gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scaling_model import BEGIN, DOC, END, RECORD, Inputs, cases, table  # noqa: E402


def shown() -> str:
    return DOC.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def test_the_table_is_what_the_records_inputs_give() -> None:
    record = json.loads(RECORD.read_text())
    assert shown() == table(record["rows"]) == table(cases(Inputs(**record["inputs"])))


def test_another_assumption_gives_another_table() -> None:
    assert shown() != table(cases(Inputs(mfu=0.2)))


def test_faster_links_and_larger_steps_scale_better_and_one_gpu_sends_nothing() -> None:
    by_case = {(row["case"], row["gpus"], row["link"]): row for row in cases(Inputs())}
    slow = by_case["as configured", 64, "ethernet"]
    assert slow["efficiency"] < by_case["as configured", 64, "nvlink"]["efficiency"] < 1
    assert slow["efficiency"] < by_case["8 × items and users", 64, "ethernet"]["efficiency"]
    alone = by_case["as configured", 1, "nvlink"]
    assert sum(value for name, value in alone.items() if name.startswith("sent_")) == 0
