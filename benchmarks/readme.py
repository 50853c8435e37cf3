"""Writes `benchmarks/README.md` from the committed records and the first line of every program's docstring.

    python benchmarks/readme.py

A program is a file here or in `gpu/` with a `main`; its record is `records/<name>.json`, or `records/gpu_<name>.json`
for those in `gpu/`. A record without a program is shown with its own command. Figures are those of a record's
`headline`, or, in records that have none, the plain numbers at its top.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = "README.md"
NO_RECORD = "no record yet"
ENVIRONMENT = {"cores", "memory_gib", "gpu_memory_gib", "gpus"}
MOST_FIGURES = 4
INTRODUCTION = """\
# Benchmarks

Each benchmark is a program here that prints one JSON record (resolved config, versions, hardware, command) and writes
it to `records/`. Figures in the project's README and docs come from those records. This page is written by
`python benchmarks/readme.py`; what was tried and did not help is in `LOG.md`, with its figures. Behind a
median stand the smallest and the largest of n measurements: `2.8 [2.6, 6.0] (n 3)`. Brackets without an n are 95 %
intervals. One figure without either was measured once.
"""


def main() -> None:
    """Write the page."""
    (HERE / PAGE).write_text(page(HERE))


def page(folder: Path) -> str:
    """The page of a folder of programs and records."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))}
    rows = ["| program | what it measures | figures | hardware, date |", "|---|---|---|---|"]
    sections: list[str] = []
    for program in programs(folder):
        name = program.relative_to(folder).as_posix()
        stem = program.stem if program.parent == folder else f"{program.parent.name}_{program.stem}"
        record = records.pop(stem, None)
        rows.append(row(name, first_line(program), record))
        sections.append(section(name, record, stem))
    for stem, record in records.items():
        rows.append(row(stem, str(record.get("what", record.get("command", ""))), record))
        sections.append(section(stem, record, stem))
    return "\n".join([INTRODUCTION, *rows, "", "## Commands and records", "", *sections]) + "\n"


def programs(folder: Path) -> list[Path]:
    """Files with a `main`, but for the one that writes the page."""
    found = [*sorted(folder.glob("*.py")), *sorted((folder / "gpu").glob("*.py"))]
    return [path for path in found if path.name != Path(__file__).name and _has_main(path)]


def first_line(program: Path) -> str:
    """What a program says of itself first."""
    lines = (ast.get_docstring(ast.parse(program.read_text())) or "").splitlines()
    return lines[0] if lines else ""


def row(name: str, what: str, record: dict[str, Any] | None) -> str:
    """A program's row of the table."""
    if record is None:
        return f"| `{name}` | {_cell(what)} | {NO_RECORD} | |"
    figures = "<br>".join(f"{label}: {value}" for label, value in headline(record).items())
    return f"| `{name}` | {_cell(what)} | {_cell(figures)} | {_cell(hardware(record))} |"


def section(name: str, record: dict[str, Any] | None, stem: str) -> str:
    """How to run a program, and where its record is."""
    if record is None:
        return f"- `{name}`: {NO_RECORD}"
    command = record.get("command", f"python benchmarks/{name}")
    return f"- `{name}`: `{command}` → [`records/{stem}.json`](records/{stem}.json)"


def headline(record: dict[str, Any]) -> dict[str, str]:
    """A record's figures by label."""
    chosen = record.get("headline")
    if isinstance(chosen, dict):
        return {str(label): figure(value) for label, value in chosen.items()}
    plain = {name: value for name, value in record.items() if _is_number(value) and name not in ENVIRONMENT}
    return {name: figure(value) for name, value in list(plain.items())[:MOST_FIGURES]}


def figure(value: Any) -> str:
    """A number with thousands separated and four significant digits; text as it is."""
    if not _is_number(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def hardware(record: dict[str, Any]) -> str:
    """What a record was measured on, and when."""
    device = record.get("device") or record.get("cpu") or "hardware not told"
    cores = f", {record['cores']} cores" if "cores" in record and "device" not in record else ""
    memory = f", {record['memory_gib']:g} GiB" if _is_number(record.get("memory_gib")) else ""
    date = f", {record['date']}" if "date" in record else ""
    return f"{device}{cores}{memory}{date}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_main(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
