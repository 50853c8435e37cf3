"""A catalog dealt to ranges and read back: the same rows, whatever the files, batches and ranges."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from beeray.config import CatalogTable, DataConfig
from beeray.data.catalog import content_hash
from beeray.data.dealing import (
    BATCH_ROWS,
    DEALT,
    ERRORS,
    IPC,
    SCATTERED,
    Dealing,
    Dealt,
    deal_batch,
    deal_catalog,
    dealt_is_whole,
    gather_group,
    group_path,
    read_range,
)
from beeray.data.fragments import FRAGMENT_SHIFT
from beeray.data.id_ranges import hash_ids, ranges_of
from beeray.data.quarantine import ERROR_SCHEMA
from beeray.data.slices import SLICE_BYTES
from beeray.data.sources import open_catalog
from beeray.data.storage import make_dir
from beeray.data.tables import Table
from beeray.errors import DataError

COLUMNS = {"item_id": "item_id", "title": "title"}
NUM_ITEMS = 300


def titles(num_items: int = NUM_ITEMS) -> dict[str, str]:
    return {f"sku-{number}": f"thing {number}" for number in range(num_items)}


def raw(items: dict[Any, Any], first_row: int = 0) -> pa.Table:
    rows = pa.array(range(first_row, first_row + len(items)), pa.int64())
    return pa.table({"item_id": list(items), "title": list(items.values()), "row": rows})


def dealing(folder: Path, num_ranges: int = 7, template: str = "{title}", num_groups: int | None = None) -> Dealing:
    for name in (SCATTERED, DEALT, ERRORS):
        make_dir(str(folder / name))
    return Dealing(template, 1000, num_ranges, num_groups or min(3, num_ranges), str(folder))


def gather(how: Dealing) -> list[int]:
    """Second step of the dealing; sizes of the groups' files."""
    names = sorted(str(file) for file in (Path(how.folder) / SCATTERED).iterdir())
    tables = gather_group({"group": list(range(how.num_groups))}, how, names)
    return [one["bytes"] for table in tables for one in table.to_pylist()]


def read_all(how: Dealing) -> list[pa.Table]:
    """All ranges' rows; a range whose group has no rows has none."""
    found = [read_range(how, number) for number in range(how.num_ranges)]
    (schema,) = {one.schema for one in found if one is not None}
    return [schema.empty_table() if one is None else one for one in found]


def contents(how: Dealing) -> list[dict[str, Any]]:
    """Id → text of every range, after checking that each id lies in the range of its hash and none is lost."""
    ranges = read_all(how)
    for number, one in enumerate(ranges):
        assert one.schema.names == ["item_id", "text", "content_hash", "row"]
        assert set(ranges_of(hash_ids(one["item_id"].combine_chunks()), how.num_ranges).tolist()) <= {number}
    return [dict(zip(one["item_id"].to_pylist(), one["text"].to_pylist(), strict=True)) for one in ranges]


def errors(folder: Path) -> pa.Table:
    files = sorted((folder / ERRORS).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else ERROR_SCHEMA.empty_table()


@pytest.mark.parametrize("num_ranges", [1, 7, 100, 1000])
def test_a_table_dealt_and_read_back_is_the_same_rows(tmp_path: Path, num_ranges: int) -> None:
    how = dealing(tmp_path, num_ranges)
    table = raw(titles(), first_row=5 << FRAGMENT_SHIFT)
    report = deal_batch(table, how).to_pylist()[0]
    gather(how)
    back = pa.concat_tables(read_all(how)).sort_by("row")
    assert back["item_id"].to_pylist() == table["item_id"].to_pylist()
    assert back["text"].to_pylist() == table["title"].to_pylist()
    assert back["row"].equals(table["row"])
    assert report["range_rows"] == [len(one) for one in contents(how)]
    assert (report["rows"], report["reasons"], report["item_id_type"]) == (NUM_ITEMS, [], "string")


@pytest.mark.parametrize("cuts", [[0, 300], [0, 1, 2, 300], [0, 150, 150, 299, 300], list(range(0, 301, 10))])
def test_every_cut_into_batches_gives_the_same_ranges(tmp_path: Path, cuts: list[int]) -> None:
    table = raw(titles())
    whole, cut = dealing(tmp_path / "whole"), dealing(tmp_path / "cut")
    deal_batch(table, whole)
    for start, end in itertools.pairwise(cuts):
        deal_batch(table.slice(start, end - start), cut)
    assert gather(whole) == gather(cut)
    for expected, found in zip(read_all(whole), read_all(cut), strict=True):
        assert found.equals(expected)


def test_a_batch_of_many_rows_is_dealt_in_pieces(tmp_path: Path) -> None:
    how = dealing(tmp_path, 3)
    num_rows = BATCH_ROWS + 10
    table = pa.table(
        {"item_id": pa.array(range(num_rows)), "title": ["x"] * num_rows, "row": pa.array(range(num_rows))}
    )
    report = deal_batch(table, how).to_pylist()[0]
    assert [file.stem for file in sorted((tmp_path / SCATTERED).iterdir())] == [f"{0:016x}", f"{BATCH_ROWS:016x}"]
    gather(how)
    assert sum(report["range_rows"]) == num_rows
    found = sorted(one for table in read_all(how) for one in table["item_id"].to_pylist())
    assert found == list(range(num_rows))


def test_long_texts_are_dealt_in_pieces_of_so_many_bytes(tmp_path: Path) -> None:
    how = dealing(tmp_path, 3)
    how = dataclasses.replace(how, max_text_chars=SLICE_BYTES)
    items = {f"i{number}": "x" * (SLICE_BYTES // 3 - 100) for number in range(5)}
    deal_batch(raw(items), how)
    assert [int(file.stem, 16) for file in sorted((tmp_path / SCATTERED).iterdir())] == [0, 3]
    gather(how)
    assert {item: text for one in contents(how) for item, text in one.items()} == items


def test_a_group_is_gathered_in_the_memory_of_a_range(tmp_path: Path) -> None:
    """64 MiB of text in one group of 16 ranges, from 16 batches: neither the group nor its file is ever held."""
    how = dataclasses.replace(dealing(tmp_path, 16, num_groups=1), max_text_chars=1 << 20)
    generator = np.random.default_rng(0)
    for batch in range(16):
        deal_batch(raw({f"{batch}-{at}": generator.bytes(1 << 14).hex() for at in range(128)}, batch * 128), how)
    pool, peaks = pa.default_memory_pool(), []
    before = pool.bytes_allocated()

    class Watched(list[str]):
        def __iter__(self) -> Iterator[str]:
            for name in super().__iter__():
                peaks.append(pool.bytes_allocated() - before)
                yield name

    names = Watched(sorted(str(file) for file in (tmp_path / SCATTERED).iterdir()))
    gather_group_sizes = [one["bytes"][0].as_py() for one in gather_group({"group": [0]}, how, names)]
    assert gather_group_sizes[0] > 32 << 20
    assert len(peaks) == 16 and max(peaks) < 16 << 20


def test_more_text_in_a_range_than_a_string_holds_becomes_a_large_string(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = dealing(tmp_path, 2)
    deal_batch(raw(titles()), how)
    gather(how)
    plain = contents(how)
    assert {one.schema.field("text").type for one in read_all(how)} == {pa.string()}
    monkeypatch.setattr("beeray.data.dealing.LARGE_TEXT_BYTES", 1000)
    gather(how)
    assert {one.schema.field("text").type for one in read_all(how)} == {pa.large_string()}
    assert contents(how) == plain


def test_gathered_files_are_what_sorting_the_whole_group_at_once_would_write(tmp_path: Path) -> None:
    how = dealing(tmp_path, 7, num_groups=2)
    table = raw(titles())
    for start in range(0, NUM_ITEMS, 70):
        deal_batch(table.slice(start, 70), how)
    gather(how)
    numbers = ranges_of(hash_ids(table["item_id"].combine_chunks()), 7)
    for group in range(2):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, read_all(how)[0].schema, options=IPC) as writer:
            for number in how.ranges_in(group):
                rows = table.filter(pa.array(numbers == number))
                hashes = content_hash(rows["title"].combine_chunks())
                columns = [rows["item_id"].combine_chunks(), rows["title"].combine_chunks(), hashes]
                columns.append(rows["row"].combine_chunks())
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=read_all(how)[0].schema))
        assert Path(group_path(how.folder, group)).read_bytes() == sink.getvalue().to_pybytes()


def test_a_disk_of_temporary_files_that_is_full_or_gone_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = dealing(tmp_path, 4, num_groups=2)
    deal_batch(raw({f"sku-{number}": str(hash(str(number))) for number in range(5000)}), how)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            DataError, match=rf"^{scratch}/beeray-deal-\w+: cannot be read or written \(.*File too large\)"
        ):
            gather(how)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
    with pytest.raises(DataError, match=rf"^{scratch}: no such file or folder"):
        gather(how)
    scratch.mkdir()
    assert len(gather(how)) == 2


def test_a_batch_dealt_twice_leaves_the_same_files(tmp_path: Path) -> None:
    how = dealing(tmp_path)
    table = raw(titles() | {None: "nobody", "empty": ""})
    first = deal_batch(table, how)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    assert {file.parent.name for file in files} == {SCATTERED, ERRORS}
    assert deal_batch(table, how).equals(first)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == files
    sizes = gather(how)
    files = {file: file.read_bytes() for file in (tmp_path / DEALT).iterdir()}
    assert gather(how) == sizes == [len(files[Path(group_path(how.folder, group))]) for group in range(3)]
    assert {file: file.read_bytes() for file in (tmp_path / DEALT).iterdir()} == files


def test_a_batch_of_bad_rows_alone_writes_only_errors(tmp_path: Path) -> None:
    how = dealing(tmp_path)
    report = deal_batch(raw({"a": None, "b": "", None: "x"}), how).to_pylist()[0]
    assert dict(zip(report["reasons"], report["counts"], strict=True)) == {
        "null_text": 1,
        "empty_text": 1,
        "null_item_id": 1,
    }
    assert sum(report["range_rows"]) == 0
    assert list((tmp_path / SCATTERED).iterdir()) == []
    assert errors(tmp_path)["reason"].to_pylist() == ["null_text", "empty_text", "null_item_id"]
    assert gather(how) == [0, 0, 0]
    assert dealt_is_whole(how, [0, 0, 0])
    assert [read_range(how, number) for number in range(7)] == [None] * 7


@pytest.mark.parametrize("ids", [["a"], [1]])
def test_an_empty_batch_writes_nothing_and_names_the_type_that_its_rows_would_have(tmp_path: Path, ids: Any) -> None:
    column = pa.array(ids).dictionary_encode()
    table = pa.table({"item_id": column, "title": ["x"], "row": pa.array([0])})
    types = [deal_batch(part, dealing(tmp_path)).to_pylist()[0]["item_id_type"] for part in (table, table.slice(1))]
    assert types == [str(column.type.value_type)] * 2
    assert pa.type_for_alias(types[1]) == column.type.value_type
    assert len(list((tmp_path / SCATTERED).iterdir())) == 1


def test_parts_with_ids_of_two_kinds_are_the_user_s_error(tmp_path: Path) -> None:
    how = dealing(tmp_path, 1)
    deal_batch(raw({"a": "x"}), how)
    deal_batch(raw({7: "y"}, first_row=1), how)
    with pytest.raises(DataError, match=r"catalog item_id: its parts have different types .*; give all parts one type"):
        gather(how)


def test_the_default_template_takes_a_column_called_text(tmp_path: Path) -> None:
    how = dealing(tmp_path, 2, template="{text}")
    table = raw({"a": "x", "b": None, "c": " ", "d": "y"}).rename_columns(["item_id", "text", "row"])
    report = deal_batch(table, how).to_pylist()[0]
    gather(how)
    assert {item: text for one in contents(how) for item, text in one.items()} == {"a": "x", "d": "y"}
    assert dict(zip(report["reasons"], report["counts"], strict=True)) == {"null_text": 1, "empty_text": 1}
    assert errors(tmp_path).select(["item_id", "row", "text_start"]).to_pylist() == [
        {"item_id": "b", "row": 1, "text_start": ""},
        {"item_id": "c", "row": 2, "text_start": ""},
    ]


def test_every_range_is_in_one_group_and_groups_agree_about_it() -> None:
    for num_ranges, num_groups in itertools.product((1, 2, 3, 7, 10, 64, 1000), (1, 2, 3, 7, 10, 64, 1000)):
        if num_groups > num_ranges:
            continue
        how = Dealing("{title}", 1000, num_ranges, num_groups, "unused")
        ranges = [how.ranges_in(group) for group in range(num_groups)]
        assert [number for one in ranges for number in one] == list(range(num_ranges))
        assert {len(one) for one in ranges} <= {num_ranges // num_groups, -(-num_ranges // num_groups)}
        for group, one in enumerate(ranges):
            assert {how.group_of(number) for number in one} == {group}


@pytest.mark.parametrize("num_items", [3, NUM_ITEMS])
@pytest.mark.parametrize("num_groups", range(1, 9))
def test_every_number_of_groups_gives_the_same_ranges(tmp_path: Path, num_groups: int, num_items: int) -> None:
    """With three items most ranges are empty, and many groups have no row at all."""
    table = raw(titles(num_items))
    one, many = dealing(tmp_path / "one", 8, num_groups=1), dealing(tmp_path / "many", 8, num_groups=num_groups)
    for how in (one, many):
        for start in range(0, num_items, 70):
            deal_batch(table.slice(start, 70), how)
    assert (len(gather(one)), len(gather(many))) == (1, num_groups)
    for expected, found in zip(read_all(one), read_all(many), strict=True):
        assert found.equals(expected)
    assert len(list((tmp_path / "many" / DEALT).iterdir())) == num_groups
    rows = pa.concat_tables(read_all(many)).sort_by("row")
    assert rows["item_id"].to_pylist() == table["item_id"].to_pylist()
    assert [set(part) for part in contents(many)] == [set(part) for part in contents(one)]


@pytest.mark.parametrize("change", ["missing", "shorter", "longer", "emptied"])
def test_a_group_s_file_that_is_not_as_it_was_written_is_seen(tmp_path: Path, change: str) -> None:
    how = dealing(tmp_path)
    deal_batch(raw(titles()), how)
    sizes = gather(how)
    assert dealt_is_whole(how, sizes)
    path = Path(group_path(how.folder, 1))
    data = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes({"shorter": data[:-1], "longer": data + b"x", "emptied": b""}[change])
    assert not dealt_is_whole(how, sizes)
    path.write_bytes(data)
    assert dealt_is_whole(how, sizes)


def quiet(*_: Any) -> None:
    pass


def deal(path: Path, folder: Path, num_ranges: int = 7) -> tuple[Dealt, Dealing]:
    config = DataConfig(source="goodbooks", path="unused")
    catalog, template = open_catalog(config, CatalogTable(path=str(path), template="{title}"))
    catalog.check()
    how = Dealing(template, 1000, num_ranges, 3, str(folder))
    return deal_catalog(catalog, how, quiet), how


def write_parts(folder: Path, tables: list[pa.Table], suffix: str = "parquet", **options: Any) -> Path:
    folder.mkdir(parents=True)
    for number, table in enumerate(tables):
        if suffix == "parquet":
            pq.write_table(table, folder / f"part-{number}.parquet", **options)
        else:
            pyarrow.feather.write_feather(table, folder / f"part-{number}.feather")
    return folder


@pytest.mark.usefixtures("ray_session")
def test_every_layout_of_files_gives_the_same_ranges(tmp_path: Path) -> None:
    table = raw(titles()).drop_columns("row")
    empty = table.slice(0, 0)
    layouts = [
        write_parts(tmp_path / "one", [table]),
        write_parts(tmp_path / "groups", [table], row_group_size=13),
        write_parts(tmp_path / "empties", [empty, table.slice(0, 100), empty, table.slice(100), empty]),
        write_parts(tmp_path / "feather", [table.slice(0, 150), table.slice(150)], "feather"),
    ]
    dealt = [deal(layout, tmp_path / f"{layout.name}-dealt") for layout in layouts]
    for found, how in dealt:
        assert (found.rows, found.errors, found.item_id_type) == (NUM_ITEMS, {}, "string")
        assert contents(how) == contents(dealt[0][1])
        assert found.range_rows == [len(one) for one in contents(how)]
    assert {item: text for one in contents(dealt[0][1]) for item, text in one.items()} == titles()


@pytest.mark.usefixtures("ray_session")
def test_dealing_again_into_the_same_folder_leaves_nothing_of_before(tmp_path: Path) -> None:
    before = write_parts(tmp_path / "before", [raw(titles(500) | {"bad": None}).drop_columns("row")] * 2)
    deal(before, tmp_path / "work", num_ranges=9)
    now = write_parts(tmp_path / "now", [raw(titles()).drop_columns("row")])
    once, how = deal(now, tmp_path / "work")
    files = {file: file.read_bytes() for file in (tmp_path / "work").rglob("*.*")}
    twice, _ = deal(now, tmp_path / "work")
    assert {file: file.read_bytes() for file in (tmp_path / "work").rglob("*.*")} == files
    assert errors(tmp_path / "work").num_rows == 0
    assert sum(len(one) for one in contents(how)) == NUM_ITEMS
    assert once == twice
    assert dealt_is_whole(how, once.group_bytes)
    assert not (tmp_path / "work" / SCATTERED).exists()


@pytest.mark.usefixtures("ray_session")
def test_a_catalog_without_a_row_is_dealt_to_nothing(tmp_path: Path) -> None:
    empty = raw(titles()).drop_columns("row").slice(0, 0)
    found, how = deal(write_parts(tmp_path / "empty", [empty, empty]), tmp_path / "work")
    assert (found.rows, found.errors, found.range_rows) == (0, {}, [0] * 7)
    assert [read_range(how, number) for number in range(7)] == [None] * 7


@pytest.mark.usefixtures("ray_session")
def test_a_catalog_of_bad_rows_is_counted_and_told_but_no_error_here(tmp_path: Path) -> None:
    bad = pa.table({"item_id": ["a", None], "title": pa.array([None, "x"])})
    found, _ = deal(write_parts(tmp_path / "bad", [bad, bad]), tmp_path / "work")
    assert (found.rows, found.errors) == (4, {"null_text": 2, "null_item_id": 2})
    assert sum(found.range_rows) == 0
    told = errors(tmp_path / "work").sort_by([("fragment", "ascending"), ("row", "ascending")])
    assert list(zip(told["fragment"].to_pylist(), told["row"].to_pylist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


@pytest.mark.usefixtures("ray_session")
def test_rows_of_a_csv_that_are_no_utf8_are_refused_and_the_others_dealt(tmp_path: Path) -> None:
    lines = [b"item_id,title", *(f"i{number},thing {number}".encode() for number in range(20)), b"i20,caf\xe9"]
    (tmp_path / "catalog.csv").write_bytes(b"\n".join([*lines, "i21,ünï\n".encode()]))
    found, how = deal(tmp_path / "catalog.csv", tmp_path / "work")
    assert (found.rows, found.errors) == (22, {"broken_unicode": 1})
    assert errors(tmp_path / "work")["item_id"].to_pylist() == ["i20"]
    texts = {item: text for one in contents(how) for item, text in one.items()}
    assert texts == {f"i{number}": f"thing {number}" for number in range(20)} | {"i21": "ünï"}


@pytest.mark.usefixtures("ray_session")
def test_a_csv_may_be_no_utf8_far_behind_the_block_whose_columns_were_looked_at(tmp_path: Path) -> None:
    """The first 8 MiB tell that columns are text; what comes after is still no reason to stop."""
    num_rows = 2**20 // 10
    with open(tmp_path / "catalog.csv", "wb") as file:
        file.write(b"item_id,title\n")
        file.writelines(b"i%06d,%s\n" % (number, b"x" * 80) for number in range(num_rows))
        file.write(b"last,caf\xe9\ncaf\xe9,title\n")
    assert (tmp_path / "catalog.csv").stat().st_size > 2**23
    found, _ = deal(tmp_path / "catalog.csv", tmp_path / "work")
    assert (found.rows, found.errors) == (num_rows + 2, {"broken_unicode": 1, "broken_item_id": 1})
    assert sum(found.range_rows) == num_rows
    told = errors(tmp_path / "work").select(["item_id", "fragment", "row", "text_start"]).to_pylist()
    assert told == [
        {"item_id": "last", "fragment": 0, "row": num_rows, "text_start": ""},
        {"item_id": "", "fragment": 0, "row": num_rows + 1, "text_start": "title"},
    ]


@pytest.mark.usefixtures("ray_session")
def test_integer_ids_of_two_widths_become_one_type_in_all_ranges(tmp_path: Path) -> None:
    parts = [
        pa.table({"item_id": pa.array(range(40), pa.int32()), "title": ["x"] * 40}),
        pa.table({"item_id": pa.array(range(40, 80), pa.int64()), "title": ["x"] * 40}),
    ]
    found, how = deal(write_parts(tmp_path / "parts", parts), tmp_path / "work")
    assert found.item_id_type == "int64"
    assert {one["item_id"].type for one in read_all(how)} == {pa.int64()}
    assert sorted(item for one in contents(how) for item in one) == list(range(80))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"item_id": [1.5, 2.0], "title": ["x", "y"]}, "catalog item_id: ids are of type double"),
        ({"item_id": [1, 2], "title": [["x"], ["y"]]}, "catalog title: is of type list<"),
    ],
)
def test_an_error_of_the_user_s_in_a_task_is_one_line_of_theirs(
    tmp_path: Path, column: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        deal(write_parts(tmp_path / "parts", [pa.table(column)]), tmp_path / "work")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("ray_session")
def test_a_table_in_memory_is_dealt_like_its_file_and_reports_as_it_goes(tmp_path: Path) -> None:
    table = raw(titles()).drop_columns("row")
    told: list[tuple[str, int, int | None]] = []
    how = Dealing("{title}", 1000, 7, 3, str(tmp_path / "memory"))
    deal_catalog(Table(table, COLUMNS, "catalog"), how, lambda *event: told.append(event))
    _, from_file = deal(write_parts(tmp_path / "file", [table]), tmp_path / "work")
    assert contents(how) == contents(from_file)
    assert told[0] == ("deal catalog", 0, NUM_ITEMS)
    assert ("deal catalog", NUM_ITEMS, NUM_ITEMS) in told
    assert told[-1] == ("sort catalog", 3, 3)
