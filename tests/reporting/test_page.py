"""The page as a text: what is in it, what is escaped, what may run, how large it is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from finished_run import HOSTILE, NUM_ITEMS, a_run, original_group, trained_group

from beeray.config import Config, load_config
from beeray.console import Console
from beeray.data.report_items import MAX_TEXT
from beeray.errors import RunError
from beeray.report import _expanded as expanded
from beeray.reporting.page import content_policy, embedded_json
from beeray.runtime.run_folder import RunFolder
from beeray.verbs.report import refresh_report, write_report

BOUND_BYTES = 8e6


def data_of(page: str) -> dict[str, Any]:
    """The data that the page's scripts read."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    record: dict[str, Any] = json.loads(text)
    return record


@pytest.fixture(scope="module")
def page(run: Config) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_a_hostile_text_is_data_and_comes_back_whole(page: str) -> None:
    assert data_of(page)["explorer"]["items"]["text"][0] == HOSTILE
    assert "<img src=x" not in page and "evil.example\\u0022" not in page.split("<script>")[0].replace(HOSTILE, "")
    assert "\u2028" not in page


def test_embedded_json_can_neither_end_its_element_nor_begin_another() -> None:
    hostile = {"</script>": "<!--<script>&\u2028"}
    text = embedded_json(hostile)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == hostile
    assert jinja2.Template("{{ it }}", autoescape=True).render(it=text) == text


def test_texts_of_items_are_shown_in_whichever_direction_they_are_read(page: str) -> None:
    assert "node.dir = 'auto'" in page and 'type="search" dir="auto"' in page
    shown = re.findall(r"(\w+)\('\w+', (?:title\()?items\.text", page)
    assert len(shown) >= 5 and set(shown) == {"written"}


def test_the_name_of_a_run_and_its_notes_are_escaped(tmp_path: Path) -> None:
    config = a_run(tmp_path)
    damaged = config.run_dir / "evaluations" / "<i>x"
    damaged.mkdir()
    (damaged / "metrics.json").write_text("{")
    head = write_report(config).read_text(encoding="utf-8").split("<script>")[0]
    assert "&lt;i&gt;x: its metrics.json cannot be read" in head and "<i>" not in head


def test_only_the_pages_own_scripts_may_run_and_nothing_may_be_fetched(page: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2 and len(scripts[0]) > 1_000_000  # plotly.js, once
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.replace("&#39;", "'") == content_policy(scripts)
    assert "default-src 'none'" in content_policy(scripts) and "http" not in content_policy(scripts)
    assert content_policy(scripts) != content_policy([scripts[0], scripts[1] + " "])


def test_neighbours_are_those_of_each_encoder(page: str) -> None:
    encoders = data_of(page)["explorer"]["encoders"]
    for item in range(NUM_ITEMS):
        assert {original_group(other) for other in encoders["original"]["places"][item][:9]} == {original_group(item)}
        assert {trained_group(other) for other in encoders["trained"]["places"][item][:9]} == {trained_group(item)}
        assert encoders["trained"]["common"][item][:9] == [7] * 9


def test_tables_hold_every_model_split_and_domain(page: str) -> None:
    head = page.split("<script>")[0]
    assert [
        len(re.findall(f'<th scope="row">{name}</th>', head)) for name in ("EASE", "Before training", "Trained")
    ] == [
        6,
        6,
        6,
    ]  # test, test of the films, validation; metrics and exposure
    assert re.findall(r"<option value=\"([^\"]*)\"", head) == [
        "test|held_out|",
        "test|held_out|films",
        "validation|held_out|",
    ]
    assert "0.4000</span> <small>0.350–0.450</small>" in head
    assert "10 nearest before training (among 5,000), 42%" in head
    assert "42%" in head and "40% – 44%" in head
    assert "1,234 users" in head


def test_the_page_is_small_enough_for_two_thousand_items_of_long_texts(page: str) -> None:
    """Its fixed part, and for every item the longest text of three-byte characters and all figures."""
    data = data_of(page)
    figures = len(json.dumps(data["explorer"], separators=(",", ":"))) / NUM_ITEMS
    fixed = len(page.encode()) - figures * NUM_ITEMS
    assert fixed + 2000 * (figures + 3 * MAX_TEXT) < BOUND_BYTES


def test_a_run_without_items_or_steps_has_a_page_with_its_metrics(tmp_path: Path) -> None:
    config = a_run(tmp_path)
    (config.run_dir / "report" / "items.parquet").unlink()
    (config.run_dir / "steps.jsonl").unlink()
    head = write_report(config).read_text(encoding="utf-8").split("<script>")[0]
    assert 'id="explorer"' not in head and 'id="map"' not in head and 'id="curves"' not in head
    assert "0.4000" in head


@pytest.mark.parametrize("content", ["rows", "infinite", "absent"])
def test_embeddings_that_are_missing_or_of_other_items_leave_the_other_encoder(tmp_path: Path, content: str) -> None:
    config = a_run(tmp_path)
    path = config.run_dir / "report" / "original.npy"
    path.unlink()
    if content != "absent":
        rows = np.full((NUM_ITEMS if content == "infinite" else 3, 16), np.inf if content == "infinite" else 1.0)
        np.save(path, rows.astype(np.float16))
    assert list(data_of(write_report(config).read_text(encoding="utf-8"))["explorer"]["encoders"]) == ["trained"]


def test_nothing_trained_or_evaluated_is_refused_in_one_line(tmp_path: Path) -> None:
    config = a_run(tmp_path)
    other = config.model_copy(update={"name": "never"})
    with pytest.raises(RunError, match=r"run 'never': nothing was trained or evaluated in .*; train it first, or give"):
        write_report(other)


def test_a_report_that_fails_says_so_in_one_line_and_leaves_the_run_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = a_run(tmp_path)
    (config.run_dir / "report" / "items.parquet").write_bytes(b"torn")
    before = RunFolder(config).measured()
    assert refresh_report(config, Console()) is None
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("warning: report.html was not written (")
    assert "try python -m beeray.report" in lines[0]
    assert RunFolder(config).measured() == before is not None
    assert not (config.run_dir / "report.html").exists()


def test_a_report_that_is_switched_off_is_not_written(tmp_path: Path) -> None:
    config = a_run(tmp_path, enabled=False)
    assert refresh_report(config, Console()) is None
    assert not (config.run_dir / "report.html").exists()


def test_the_command_finds_a_folder_whatever_signs_are_in_its_name(tmp_path: Path) -> None:
    shutil.copytree(a_run(tmp_path, name="mine").run_dir, tmp_path / "läufe 🐝" / "mine")
    arguments = expanded(str(tmp_path / "läufe 🐝" / "mine"))
    assert load_config(arguments[1], arguments[2:]).run_dir == tmp_path / "läufe 🐝" / "mine"
