"""The benchmarks page is what its records and programs make of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import readme  # noqa: E402


def test_the_page_is_up_to_date() -> None:
    assert (BENCHMARKS / "README.md").read_text() == readme.page(BENCHMARKS), "run python benchmarks/readme.py"


def record_of(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((BENCHMARKS / "records" / f"{name}.json").read_text())
    return record


def test_headlines_name_their_runs_with_n_and_spread_and_are_made_of_the_records_own_figures() -> None:
    import checkpoint_cost
    import embed_throughput
    import step_cpu
    import train_overheads

    overheads, steps, embedding = (record_of(name) for name in ("train_overheads", "step_cpu", "embed_throughput"))
    doctor = overheads.get("doctor_s", {}).get("all", ())
    assert overheads["headline"] == train_overheads.headline(overheads["waiting"], overheads["startup"], doctor)
    assert steps["headline"] == step_cpu.headline(steps) and steps["ratios"] == {
        precision: step_cpu.ratios(rows) for precision, rows in steps["contenders"].items()
    }
    assert embedding["headline"] == embed_throughput.headline(embedding)
    checkpoints = record_of("checkpoint_cost")
    assert checkpoints["headline"] == checkpoint_cost.headline(checkpoints["seconds"])
    shares = {name: shown for name, shown in overheads["headline"].items() if "waiting" in name}
    assert len(shares) == len(overheads["waiting"]) and all("(n " in shown for shown in shares.values())
    spread = re.compile(r"[\d.]+ \[[\d.]+, [\d.]+\] \(n \d+( each)?\)")
    assert all(spread.fullmatch(shown) for shown in steps["headline"].values())


@pytest.mark.parametrize("program", readme.programs(BENCHMARKS), ids=lambda path: path.stem)
def test_the_command_of_a_program_that_needs_arguments_is_in_its_record(program: Path) -> None:
    record = BENCHMARKS / "records" / f"{program.stem}.json"
    if "required=True" in program.read_text() and record.is_file():
        assert " --" in json.loads(record.read_text())["command"]


def test_a_page_shows_headlines_plain_numbers_and_programs_without_a_record(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "gpu").mkdir()
    (tmp_path / "speed.py").write_text('"""How fast.\n\nMore."""\ndef main(): ...\n')
    (tmp_path / "shared.py").write_text('"""No program."""\n')
    (tmp_path / "gpu" / "speed.py").write_text('"""How fast on a GPU."""\ndef main(): ...\n')
    record = {"command": "python speed.py", "cpu": "X", "cores": 2, "date": "2026-01-02", "wall_s": 7.0}
    (tmp_path / "records" / "speed.json").write_text(json.dumps({**record, "headline": {"rate a|b": 1234.5}}))
    (tmp_path / "records" / "older.json").write_text(json.dumps({**record, "command": "make older"}))
    text = readme.page(tmp_path)
    assert "| `speed.py` | How fast. | rate a\\|b: 1,234 | X, 2 cores, 2026-01-02 |" in text
    assert "| `gpu/speed.py` | How fast on a GPU. | no record yet | |" in text
    assert "| `older` | make older | wall_s: 7 | X, 2 cores, 2026-01-02 |" in text
    assert "`python speed.py` → [`records/speed.json`]" in text
    assert "shared" not in text
    (tmp_path / "records" / "speed.json").write_text(json.dumps({**record, "headline": {"rate a|b": 1235.5}}))
    assert readme.page(tmp_path) != text
