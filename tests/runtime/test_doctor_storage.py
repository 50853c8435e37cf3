"""Probe files: where they cannot be written, where they are not seen, and that none is left behind."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beeray.config import Config, validate_config
from beeray.data.storage import write_json
from beeray.data.store_meta import SCHEMA_VERSION, StoreMeta
from beeray.errors import ConfigError, DataError, StoreError
from beeray.runtime.doctor.probe import Here
from beeray.runtime.doctor.storage import Place, check_places, check_storage, nearest_folder, places_of
from beeray.runtime.doctor.tables import check_data
from beeray.runtime.run_folder import RunFolder


class Elsewhere:
    """A node on which a folder is another one: its disk is not shared."""

    name = "node b"

    def __init__(self, folder: Path, theirs: Path) -> None:
        self.folder, self.theirs = str(folder), str(theirs)

    def call(self, work: Callable[..., str], *arguments: str) -> Callable[[], str]:
        result = work(*(self.theirs if one == self.folder else one for one in arguments))
        return lambda: result


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def a_config(folder: Path, **data: Any) -> Config:
    return validate_config(
        {"name": "probed", "runs_dir": str(folder / "runs"), "data": {"source": "shop", "store": str(folder / "store")}}
        | data
    )


def test_folders_that_do_not_exist_are_probed_where_they_would_be_made_and_nothing_is_left(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    places = places_of(config)
    assert [(place.key, place.folder) for place in places] == [
        ("runs_dir", str(tmp_path)),
        ("data.store", str(tmp_path)),
    ]
    finding = check_storage(places, [Here(), Here()])
    assert finding.status == "ok", finding.said
    assert str(tmp_path / "runs") in finding.said
    assert list(tmp_path.iterdir()) == []


def test_a_file_uri_is_the_folder_that_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "with space").mkdir()
    for uri in (f"file://{tmp_path}/with%20space/new", f"file://localhost{tmp_path}/with%20space/new"):
        assert nearest_folder(uri) == str(tmp_path / "with space")


def test_a_folder_that_cannot_be_written_is_named_with_its_key_and_what_to_do(tmp_path: Path) -> None:
    finding = check_storage([Place("runs_dir", "/proc/runs", nearest_folder("/proc/runs"))], [Here()])
    assert finding.status == "FAILED"
    assert finding.said.startswith("runs_dir '/proc/runs': this command cannot write there (/proc/.beeray-doctor-")
    assert finding.said.endswith(
        "give this command the right to write there, or set runs_dir to a folder that every node can write to"
    )


def test_a_file_system_that_takes_no_locks_fails_as_every_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    config = a_config(tmp_path)
    assert check_storage(places_of(config), [Here(), Here()]).status == "ok"
    monkeypatch.setattr("fcntl.flock", refuse)
    finding = check_storage(places_of(config), [Here(), Here()])
    assert finding.status == "FAILED"
    assert finding.said.startswith(f"runs_dir {str(tmp_path / 'runs')!r}: {tmp_path}/.beeray-doctor-")
    assert finding.said.endswith(
        "-lock: its file system takes no locks (No locks available), so that two commands could spoil one run; mount "
        "it with locks, or give another runs_dir"
    )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"its file system takes no locks"), RunFolder(config).locked():
        pass


def test_the_lock_is_tried_where_runs_have_theirs(tmp_path: Path) -> None:
    """Its folder may be another disk than the rest of `runs_dir`, or another's."""
    config = a_config(tmp_path)
    with RunFolder(config).locked():
        (lock,) = files(tmp_path)
    runs = places_of(config)[0]
    assert (runs.folder, runs.locks) == (str(tmp_path / "runs"), str(next(tmp_path.rglob(lock)).parent))
    finding = check_storage([replace(runs, locks="/proc")], [Here()])
    assert finding.status == "FAILED" and finding.said.startswith(f"runs_dir {runs.path!r}: /proc/.beeray-doctor-")
    assert files(tmp_path) == [lock]


def test_a_node_that_lacks_the_folder_cannot_write_there(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    finding = check_storage([Place("runs_dir", str(tmp_path), str(tmp_path))], [Here(), Elsewhere(tmp_path, theirs)])
    assert finding.status == "FAILED"
    assert f"node b cannot write there ({theirs} is not there); give node b the right to write there" in finding.said
    assert files(tmp_path) == []


def test_a_folder_of_the_same_name_on_another_disk_is_found_out(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    finding = check_storage([Place("runs_dir", str(ours), str(ours))], [Here(), Elsewhere(ours, theirs)])
    assert finding.status == "FAILED"
    assert finding.said == (
        f"runs_dir {str(ours)!r}: what node b writes there is not seen by this command, so the folder is not shared; "
        "give runs_dir a folder on a disk that all nodes mount"
    )
    assert files(tmp_path) == []


def test_a_prepared_store_that_may_not_be_written_is_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    write_json(str(tmp_path / "store" / "meta.json"), {})
    store = places_of(a_config(tmp_path))[1]
    assert not store.must_be_written
    refused = Place(store.key, "/proc/store", "/proc", store.must_be_written)
    finding = check_storage([refused], [Here()])
    assert finding.status == "warning"
    assert "it can be read, but tokens of another encoder cannot be added" in finding.said


def test_a_relative_path_of_a_submitted_job_fails_and_of_any_other_command_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1a2b3c"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    config = a_config(tmp_path, embed={"path": "embeddings"})
    assert check_places(config, [Here()]).status == "ok"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    finding = check_places(config, [Here()])
    assert finding.status == "FAILED"
    assert finding.said.startswith(f"embed.path is 'embeddings': in a submitted job that is {copy}/embeddings, in the ")
    assert check_places(a_config(tmp_path), [Here()]).status == "ok", "embed.path is not asked for where it is not set"


def test_a_job_that_only_embeds_needs_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1a2b3c"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    catalog = {"source": "tables", "catalog": {"path": "items", "item_id": "sku", "template": "{title}"}}
    embedding = a_config(tmp_path, data=catalog, embed={"path": str(tmp_path / "embeddings")})
    assert [place.key for place in places_of(embedding)] == ["runs_dir", "embed.path"]
    assert check_places(embedding, [Here()]).status == "ok"
    training = catalog | {"interactions": {"path": "clicks", "user_id": "buyer", "item_id": "sku"}}
    finding = check_places(a_config(tmp_path, data=training), [Here()])
    assert finding.status == "FAILED" and finding.said.startswith("data.store is not set: in a submitted job")


def tables(folder: Path, **section: Any) -> Config:
    catalog, interactions = folder / "catalog.parquet", folder / "interactions.parquet"
    pq.write_table(pa.table({"sku": ["a", "b"], "title": ["ba", "bo"]}), catalog)
    pq.write_table(pa.table({"buyer": ["x", "y"], "sku": ["a", "b"]}), interactions)
    source = {
        "source": "tables",
        "catalog": {"path": str(catalog), "item_id": "sku", "template": "{title}"},
        "interactions": {"path": str(interactions), "user_id": "buyer", "item_id": "sku"},
        "store": str(folder / "store"),
    }
    return a_config(folder, data=source, **section)


def test_raw_tables_are_read_where_there_is_no_store_and_nothing_is_prepared(tmp_path: Path) -> None:
    finding = check_data(tables(tmp_path))
    assert finding.said == "no store yet; raw tables of items are readable (2 files opened, first rows read)"
    assert files(tmp_path) == ["catalog.parquet", "interactions.parquet"]


def test_raw_tables_that_preparing_would_refuse_are_refused(tmp_path: Path) -> None:
    config = tables(tmp_path)
    (tmp_path / "interactions.parquet").rename(tmp_path / "moved.parquet")
    with pytest.raises(DataError, match=r"interactions.parquet: no such file"):
        check_data(config)
    config = tables(tmp_path, split={"kind": "time"})
    with pytest.raises(ConfigError, match="the interactions have no timestamp; name the column"):
        check_data(config)
    (tmp_path / "catalog.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match=r"catalog.parquet"):
        check_data(tables_without_writing(tmp_path))


def tables_without_writing(folder: Path) -> Config:
    kept = (folder / "catalog.parquet").read_bytes()
    config = tables(folder)
    (folder / "catalog.parquet").write_bytes(kept)
    return config


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    counts = dict.fromkeys(("num_items", "num_users", "num_interactions"), 0)
    more: dict[str, Any] = {name: {} for name in ("items", "users", "interactions", "training_users")}
    meta = StoreMeta("f", "item", ["items"], **counts, **more, schema_version=99)
    write_json(str(tmp_path / "store" / "meta.json"), dataclasses.asdict(meta))
    with pytest.raises(StoreError, match=f"schema_version is 99, this beeray reads {SCHEMA_VERSION}; update beeray"):
        check_data(a_config(tmp_path))


def test_a_store_of_an_older_version_is_prepared_anew_if_its_tables_can_be_read(tmp_path: Path) -> None:
    config = tables(tmp_path)
    (tmp_path / "store").mkdir()
    write_json(str(tmp_path / "store" / "meta.json"), {"schema_version": SCHEMA_VERSION - 1})
    finding = check_data(config)
    assert finding.status == "warning"
    assert finding.said == (
        f"store {str(tmp_path / 'store')!r} is an older version's: train prepares it anew, and refuses to resume runs "
        "of the old one; raw tables of items are readable (2 files opened, first rows read)"
    )
    (tmp_path / "interactions.parquet").unlink()
    with pytest.raises(DataError, match=r"interactions.parquet: no such file"):
        check_data(config)
