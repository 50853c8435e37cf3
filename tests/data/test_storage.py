"""Paths on any filesystem, and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from beeray.data import process_identity
from beeray.data.process_identity import tag_of_this_process
from beeray.data.staging import Staging, staged_file
from beeray.data.storage import exists, join, list_files, make_dir, read_json, remove_tree, write_json
from beeray.errors import DataError


def gone_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def tag_of_gone() -> str:
    """What a process of this machine that has ended put into its names."""
    place, _, started = tag_of_this_process().split("-")
    if started == "0":
        pytest.skip("without /proc nothing is proven, and nothing swept")
    return f"{place}-{gone_pid()}-{started}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def remote() -> Iterator[str]:
    """A folder on a filesystem that only fsspec knows and that has no rename, as on S3."""
    yield "memory://bucket/beeray"
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_staged_folder_appears_when_it_is_published_and_not_before(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "store"
    with Staging(str(final)) as staging:
        write_json(join(staging.path, "meta.json"), {"a": 1})
        assert not final.exists()
        staging.publish()
        assert read_json(str(final / "meta.json")) == {"a": 1}
    assert names(final.parent) == ["store"]


def test_a_staged_folder_leaves_nothing_when_its_writer_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Staging(str(tmp_path / "store")) as staging:
        write_json(join(staging.path, "meta.json"), {})
        raise RuntimeError("half-way")
    assert names(tmp_path) == []


def test_a_staged_folder_that_is_never_published_leaves_nothing(tmp_path: Path) -> None:
    with Staging(str(tmp_path / "store")) as staging:
        write_json(join(staging.path, "meta.json"), {})
    assert names(tmp_path) == []


def test_publishing_replaces_an_older_folder_whole(tmp_path: Path) -> None:
    final = tmp_path / "store"
    final.mkdir()
    (final / "old.txt").write_text("old")
    with Staging(str(final)) as staging:
        write_json(join(staging.path, "meta.json"), {"new": True})
        assert names(final) == ["old.txt"]
        staging.publish()
    assert names(final) == ["meta.json"]
    assert names(tmp_path) == ["store"]


def test_a_folder_that_is_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    large = tmp_path / "large"
    (large / "shop").mkdir(parents=True)
    (large / "shop" / "old.txt").write_text("old")
    link = tmp_path / "stores" / "link"
    link.parent.mkdir()
    (tmp_path / "mounted").symlink_to(tmp_path)  # as other nodes may know it by no other name
    link.symlink_to(tmp_path / "mounted" / "large" / "shop")
    with Staging(str(link)) as staging:
        assert Path(staging.path).parent == tmp_path / "mounted" / "large"
        (Path(staging.path) / "meta.json").write_text("{}")
        staging.publish()
    assert link.is_symlink() and names(link) == ["meta.json"]
    assert names(large) == ["shop"] and names(link.parent) == ["link"]


def test_an_older_folder_survives_a_writer_that_fails(tmp_path: Path) -> None:
    final = tmp_path / "store"
    final.mkdir()
    (final / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), Staging(str(final)):
        raise RuntimeError("half-way")
    assert names(tmp_path) == ["store"]
    assert names(final) == ["old.txt"]


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    place, pid, _ = tag_of_this_process().split("-")
    dead = [tmp_path / f"store.partial-{tag_of_gone()}-aaaaaaaa", tmp_path / f"store.partial-{place}-{pid}-1-bbbbbbbb"]
    others = [
        tmp_path / f"store.partial-{tag_of_this_process()}-aaaaaaaa",
        tmp_path / f"store.partial-{tag_of_gone().replace(place, '0123456789ab')}-bbbbbbbb",  # another machine's
        tmp_path / f"store.partial-another-host-{tag_of_gone()}-cccccccc",
        tmp_path / f"store2.partial-{tag_of_gone()}-dddddddd",
    ]
    for folder in (*dead, *others):
        folder.mkdir()
    with Staging(str(tmp_path / "store")) as staging:
        staging.publish()
    assert names(tmp_path) == sorted(["store", *(folder.name for folder in others)])


def test_where_processes_cannot_be_told_apart_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_identity, "this_process", lambda: {"pid": gone_pid()})
    theirs = Staging(str(tmp_path / "store"))
    make_dir(theirs.path)
    with Staging(str(tmp_path / "store")) as staging:
        staging.publish()
    assert names(tmp_path) == ["store", Path(theirs.path).name]


def test_what_stands_beside_a_folder_whose_name_holds_a_bracket_is_swept(tmp_path: Path) -> None:
    with contextlib.suppress(KeyError), Staging(str(tmp_path / "store[1]")) as staging:
        left = Path(staging.path).with_name(Path(staging.path).name.replace(tag_of_this_process(), tag_of_gone()))
        left.mkdir()
        raise KeyError
    with Staging(str(tmp_path / "store[1]")):
        assert not left.exists()


def test_an_old_folder_that_was_moved_aside_by_a_process_that_died_then_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f"store.replaced-{tag_of_gone()}-aaaaaaaa"
    aside.mkdir()
    (aside / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), Staging(str(tmp_path / "store")):
        raise RuntimeError("half-way")
    assert names(tmp_path) == ["store"]
    assert names(tmp_path / "store") == ["old.txt"]


def test_where_there_is_no_rename_the_old_folder_stays_until_the_new_one_is_whole(remote: str) -> None:
    write_json(join(remote, "store", "meta.json"), {"old": True})
    with pytest.raises(RuntimeError), Staging(join(remote, "store"), "meta.json"):
        raise RuntimeError("half-way")
    assert read_json(join(remote, "store", "meta.json")) == {"old": True}
    assert [file.path.rpartition("/")[2] for file in list_files(remote)] == ["meta.json"]
    with Staging(join(remote, "store"), "meta.json") as staging:
        write_json(join(staging.path, "meta.json"), {"new": True})
        staging.publish()
    assert read_json(join(remote, "store", "meta.json")) == {"new": True}


def test_a_store_written_again_where_there_is_no_rename_keeps_no_part_of_the_old_one(remote: str) -> None:
    write_json(join(remote, "store", "users", "part-00007.parquet"), "old")
    with Staging(join(remote, "store"), "meta.json") as staging:
        write_json(join(staging.path, "users", "part-00000.parquet"), "new")
        write_json(join(staging.path, "meta.json"), {})
        staging.publish()
    assert [file.path.rpartition("/")[2] for file in list_files(join(remote, "store", "users"))] == [
        "part-00000.parquet"
    ]


def test_json_can_be_written_and_read_anywhere_that_fsspec_reaches(remote: str) -> None:
    path = join(remote, "runs", "record.json")
    assert not exists(path)
    write_json(path, {"ndcg": 0.5, "ids": ["á", 1]})
    assert exists(path)
    assert exists(join(remote, "runs"))
    assert read_json(path) == {"ndcg": 0.5, "ids": ["á", 1]}


def test_files_and_globs_are_listed_anywhere_that_fsspec_reaches(remote: str) -> None:
    for name in ("b.csv", "a.csv", "c.txt", "_hidden.csv"):
        write_json(join(remote, "raw", name), {})
    assert [file.path.rpartition("/")[2] for file in list_files(join(remote, "raw"))] == ["a.csv", "b.csv", "c.txt"]
    assert [file.path.rpartition("/")[2] for file in list_files(join(remote, "raw", "?.csv"))] == ["a.csv", "b.csv"]
    with pytest.raises(DataError, match="no such file, folder or match"):
        list_files(join(remote, "nothing"))


def test_a_tree_is_removed_anywhere_and_one_that_is_not_there_is_no_error(remote: str, tmp_path: Path) -> None:
    for place in (remote, str(tmp_path)):
        write_json(join(place, "scratch", "x.json"), {}) if "://" in place else make_dir(join(place, "scratch"))
        remove_tree(join(place, "scratch"))
        assert not exists(join(place, "scratch"))
        remove_tree(join(place, "scratch"))


def test_a_kind_of_path_that_nothing_reads_says_what_to_install() -> None:
    with pytest.raises(DataError, match="install its fsspec package") as caught:
        exists("nowhere://bucket/x")
    assert "\n" not in str(caught.value)


def test_a_folder_lists_all_below_it_sorted_and_passes_over_hidden_names(tmp_path: Path) -> None:
    for name in ("b/2.csv", "b/1.csv", "a.csv", "_SUCCESS", ".crc/x.csv", "b/_temporary/y.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * 3)
    files = list_files(str(tmp_path))
    assert [Path(file.path).relative_to(tmp_path).as_posix() for file in files] == ["a.csv", "b/1.csv", "b/2.csv"]
    assert {file.size for file in files} == {3}


def test_a_folder_below_a_hidden_one_is_not_hidden_by_it(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "raw"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("x")
    assert len(list_files(str(folder))) == 1


def test_a_glob_lists_what_it_matches_and_a_file_itself(tmp_path: Path) -> None:
    for name in ("part-1.csv", "part-2.csv", "other.csv"):
        (tmp_path / name).write_text("x")
    assert [Path(file.path).name for file in list_files(f"{tmp_path}/part-*.csv")] == ["part-1.csv", "part-2.csv"]
    assert [Path(file.path).name for file in list_files(f"file://{tmp_path}/other.csv")] == ["other.csv"]


@pytest.mark.parametrize("pattern", ["orders/dt=2025-*", "orders/dt=2025-*/", "orders/dt=2025-*/**", "*/dt=2025-*"])
def test_a_glob_of_folders_lists_what_is_below_them_once(remote: str, tmp_path: Path, pattern: str) -> None:
    kept = ["orders/dt=2025-01/a.csv", "orders/dt=2025-02/b/c.csv"]
    for place in (remote, str(tmp_path)):
        for name in [*kept, "orders/dt=2024-12/z.csv", "orders/dt=2025-01/_SUCCESS"]:
            if "**" not in pattern or "_" not in name:  # what a glob itself matches may be hidden
                write_json(join(place, name), {})
        inside = [file.path.partition("orders/")[2] for file in list_files(join(place, pattern))]
        assert [f"orders/{path}" for path in inside] == kept


def test_a_glob_of_folders_without_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dt=2025-01").mkdir()
    with pytest.raises(DataError, match="no such file, folder or match"):
        list_files(f"{tmp_path}/dt=2025-*")


def test_a_folder_whose_name_holds_a_bracket_is_read_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (folder / "a.csv").write_text("x")
    assert [Path(file.path).name for file in list_files(str(folder))] == ["a.csv"]


@pytest.mark.parametrize("pattern", ["absent.csv", "absent/", "absent-*.csv", ""])
def test_nothing_to_list_is_an_error_that_names_the_path(tmp_path: Path, pattern: str) -> None:
    path = f"{tmp_path}/{pattern}"
    with pytest.raises(DataError, match="no such file, folder or match; check the path") as caught:
        list_files(path)
    assert str(caught.value).startswith(path)


def test_a_changed_file_has_another_stat(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("one")
    before = list_files(str(file))
    os.utime(file, ns=(1, 1))
    assert list_files(str(file)) != before


def test_two_that_write_one_file_at_once_each_leave_a_whole_one(tmp_path: Path) -> None:
    final = tmp_path / "map.npz"
    final.write_text("old")
    with staged_file(final) as first:
        first.write_text("first, half")
        with staged_file(final) as second:
            second.write_text("second")
        assert final.read_text() == "second"
        first.write_text("first, whole")
    assert final.read_text() == "first, whole"
    assert names(tmp_path) == ["map.npz"]


def test_a_file_whose_writer_fails_stays_as_it_was(tmp_path: Path) -> None:
    final = tmp_path / "map.npz"
    final.write_text("old")
    with pytest.raises(RuntimeError), staged_file(final) as partial:
        partial.write_text("half")
        raise RuntimeError("half-way")
    assert final.read_text() == "old" and names(tmp_path) == ["map.npz"]


def test_half_a_file_of_a_process_that_is_gone_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    final = tmp_path / "map.npz"
    dead = tmp_path / f"map.npz.partial-{tag_of_gone()}-aaaaaaaa"
    living = tmp_path / f"map.npz.partial-{tag_of_this_process()}-bbbbbbbb"
    other = tmp_path / f"old-map.npz.partial-{tag_of_gone()}-cccccccc"
    for file in (dead, living, other):
        file.write_text("half")
    with staged_file(final) as partial:
        partial.write_text("whole")
    assert names(tmp_path) == sorted(["map.npz", living.name, other.name])
