"""A run's folder on a full disk, with damaged files, or half cleared: one line, nothing that seems what it is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from beeray.config import validate_config
from beeray.errors import DataError, RunError
from beeray.runtime.run_folder import RunFolder


def a_folder(runs_dir: Path) -> RunFolder:
    return RunFolder(validate_config({"name": "mine", "runs_dir": str(runs_dir), "data": {"source": "shop"}}))


def claimed(runs_dir: Path) -> RunFolder:
    folder = a_folder(runs_dir)
    folder.claim("store-a")
    return folder


def test_a_full_disk_while_a_model_is_taken_is_one_line_and_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the very end of training."""
    folder = claimed(tmp_path)
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "weights").write_text("good")

    def copyfile(source: str, target: str, **_: Any) -> None:
        Path(target).write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", copyfile)
    with pytest.raises(DataError) as caught:
        folder.take_model(exported)
    assert str(caught.value).startswith(f"{folder.model}: cannot be read or written (")
    assert "No space left on device" in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "run.json"]


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(DataError, match=r"mine: cannot be read or written \(File exists\)"):
        a_folder(tmp_path).claim("store-a")


DAMAGED = ["", "{", "[]", "\udcff", '{"store_fingerprint": 3}', '{"store_fingerprint": "store-a", "num_shards": "two"}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_record_of_the_beginning_that_is_damaged_is_told_with_what_to_do(text: str, tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    marker = folder.path / "run.json"
    marker.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RunError) as caught:
        folder.check_store("store-a")
        folder.begun_with()
        _ = folder.num_shards
    assert str(caught.value).startswith(f"run 'mine': {marker} is damaged (")
    assert str(caught.value).endswith("choose another name=… or start over with --fresh")
    with pytest.raises(RunError, match="is damaged"):
        folder.claim("store-a")


@pytest.mark.parametrize("text", ["", "[]", '{"loss": 0.'])
def test_measurements_that_are_damaged_are_told_with_what_to_do(text: str, tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    folder.model.mkdir()
    folder.metrics.write_text(text)
    with pytest.raises(RunError, match=r"metrics\.json is damaged \(.*start over with --fresh$"):
        folder.finished()


def test_a_folder_that_is_being_cleared_is_never_finished_nor_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = claimed(tmp_path)
    folder.model.mkdir()
    (folder.path / "checkpoints").mkdir()
    folder.finish({"loss": 0.5})

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.clear()
    assert folder.finished() is None
    assert folder.begun and (folder.path / "config.yaml").is_file(), "its checkpoints would be another config's"
    folder.clear()
    assert not folder.path.exists()
