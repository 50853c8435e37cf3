"""The benchmarks page is what its records and programs make of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import readme  # noqa: E402


def test_the_page_is_up_to_date() -> None:
    assert (BENCHMARKS / "README.md").read_text() == readme.page(BENCHMARKS), "run python benchmarks/readme.py"


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
