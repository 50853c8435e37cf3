"""Where the relative paths of a config begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from beeray import report
from beeray.config import load_config, validate_config
from beeray.config.paths import found, from_root, in_working_folder
from beeray.data import generated_catalog, generated_interactions
from beeray.data.storage import resolve
from beeray.errors import ConfigError
from beeray.inputs import located_encoder
from beeray.verbs.index import index_path


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk that the environment names, and another folder to work in."""
    disk, work = tmp_path / "shared", tmp_path / "work"
    disk.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("BEERAY_ROOT", str(disk))
    return disk


def test_what_a_run_leaves_begins_at_the_shared_disk_and_an_absolute_path_stays(shared: Path) -> None:
    config = validate_config({"name": "shop", "data": {"source": "shop"}})
    assert config.run_dir == shared / "runs" / "shop"
    assert config.store_path == str(shared / "stores" / "shop")
    assert config.embeddings_path == str(shared / "embeddings" / "shop")
    data = {"source": "shop", "store": "s3://bucket/s"}
    elsewhere = validate_config({"name": "n", "runs_dir": "/data/runs", "data": data, "embed": {"path": "e"}})
    assert (elsewhere.run_dir.parent, elsewhere.store_path) == (Path("/data/runs"), "s3://bucket/s")
    assert elsewhere.embeddings_path == str(shared / "e")


def test_what_is_read_is_looked_for_in_the_working_folder_first(shared: Path, tmp_path: Path) -> None:
    for folder in (shared, tmp_path / "work"):
        (folder / "data").mkdir()
    (shared / "data" / "theirs.csv").touch()
    for folder in (shared, tmp_path / "work"):
        (folder / "data" / "both.csv").touch()
    assert resolve("data/theirs.csv")[1] == str(shared / "data" / "theirs.csv")
    assert resolve("data/both.csv")[1] == str(tmp_path / "work" / "data" / "both.csv")
    assert found("data/none.csv") == shared / "data" / "none.csv"
    (shared / "models" / "mine").mkdir(parents=True)
    assert located_encoder("models/mine") == str(shared / "models" / "mine")
    assert located_encoder("sentence-transformers/all-mpnet-base-v2") == "sentence-transformers/all-mpnet-base-v2"


def test_without_the_variable_they_begin_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEERAY_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert from_root("runs") == found("runs") == tmp_path / "runs"
    monkeypatch.setenv("BEERAY_ROOT", "")
    assert from_root("runs") == tmp_path / "runs"


def test_a_relative_root_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEERAY_ROOT", "shared")
    with pytest.raises(ConfigError, match=r"BEERAY_ROOT is 'shared' in the environment: it must be an absolute path"):
        load_config("demo")


def test_a_pattern_is_looked_for_in_the_working_folder_first(shared: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for folder, name in ((work, "a-1.csv"), (shared, "a-1.csv"), (shared, "b-1.csv")):
        (folder / "tables").mkdir(exist_ok=True)
        (folder / "tables" / name).touch()
    assert resolve("tables/a-*.csv")[1] == str(work / "tables" / "a-*.csv")
    assert resolve("tables/b-*.csv")[1] == str(shared / "tables" / "b-*.csv")
    assert resolve("**/a-[0-9].csv")[1] == str(work / "**" / "a-[0-9].csv")


def test_what_a_tool_is_told_to_write_lies_where_it_was_typed(shared: Path, tmp_path: Path) -> None:
    assert in_working_folder("catalog") == str(tmp_path / "work" / "catalog")
    assert in_working_folder("s3://bucket/catalog") == "s3://bucket/catalog"
    for number, tool in enumerate((generated_catalog.main, generated_interactions.main)):
        sizes = ["--items", "40", *(["--users", "9", "--interactions", "60"] if number else [])]
        for name in ("new", "there"):
            out = tmp_path / "work" / f"{name}-{number}"
            if name == "there":
                out.mkdir()
            assert tool([*sizes, "--files", "2", "--out", out.name]) == 0
            assert list(out.glob("part-*"))
    assert not list(shared.iterdir())


def test_an_index_is_written_to_the_shared_disk(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "mine").mkdir()
    data = {"name": "shop", "data": {"source": "shop"}}
    placed = [index_path(validate_config(data | {"index": {"path": path}}), "v") for path in ("mine", "/x", "s3://b/i")]
    assert placed == [str(shared / "mine"), "/x", "s3://b/i"]


def test_a_report_with_a_relative_root_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEERAY_ROOT", "shared")
    assert report.main(["--config", "demo"]) == 2
    assert capsys.readouterr().err.startswith("beeray report: BEERAY_ROOT is 'shared' in the environment")
