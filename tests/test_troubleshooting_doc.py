"""docs/troubleshooting.md quotes what beeray says to the letter: the code makes every quoted line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
DOC = PROJECT / "docs" / "troubleshooting.md"
VARIES = "…"


def quoted(text: str) -> list[str]:
    """Indented lines that are no command."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if not line.startswith(("python ", "ray job "))]


def said() -> list[str]:
    """Every string of the code, with `…` for what is put into it."""
    texts: list[str] = []
    for file in sorted((PROJECT / "beeray").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [str(one.value) if isinstance(one, ast.Constant) else VARIES for one in node.values]
                texts.append("".join(parts))
    return texts


def is_said(line: str, texts: list[str]) -> bool:
    """Whether one string has all pieces of a line, in order."""
    return any(_in_order(line, text) for text in texts)


def _in_order(line: str, text: str) -> bool:
    start = 0
    for piece in (piece.strip() for piece in line.split(VARIES)):
        found = text.find(piece, start)
        if found < 0:
            return False
        start = found + len(piece)
    return True


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return said()


def test_every_line_that_the_page_quotes_is_said_by_the_code(texts: list[str]) -> None:
    lines = quoted(DOC.read_text())
    assert len(lines) > 15
    assert [line for line in lines if not is_said(line, texts)] == []


def test_a_line_that_nothing_says_is_found(texts: list[str]) -> None:
    assert not is_said("cluster.num_workers is …: the cluster can place … of us", texts)
    assert not is_said("so training stopped; … the loss became", texts), "in another order"


def test_every_check_of_the_doctor_is_on_the_page() -> None:
    from beeray.verbs.doctor import ON_CLUSTER

    text = DOC.read_text()
    assert [name for name in ("ray", *ON_CLUSTER, "mlflow") if f"`{name}`" not in text] == []
