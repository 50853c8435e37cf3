"""Tables of any size and anywhere: memory while reading, files opened once, estimates, names in templates, messages."""

from __future__ import annotations

import dataclasses
import datetime as dt
import gzip
import os
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import csv, feather
from pyarrow import parquet as pq

from beeray.config import CatalogTable, DataConfig, InteractionsTable
from beeray.data.catalog import catalog_texts
from beeray.data.file_tags import UNPACKED
from beeray.data.fragments import BATCH_BYTES, BATCH_ROWS
from beeray.data.quarantine import sort_out
from beeray.data.sources import open_catalog, open_source
from beeray.data.tables import Table
from beeray.errors import ConfigError, DataError

ITEMS = {"item_id": "item_id", "text": "text"}
MIB = 1 << 20


class CountingFileSystem(MemoryFileSystem):
    """fsspec's files in memory, which also knows how often each was opened for reading."""

    protocol = "counted"
    opened: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("counted://"))

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        if mode == "rb":
            self.opened[path] += 1
        return super()._open(path, mode=mode, **settings)


@pytest.fixture
def counted() -> Iterator[CountingFileSystem]:
    fsspec.register_implementation("counted", CountingFileSystem, clobber=True)
    filesystem = CountingFileSystem()
    filesystem.opened.clear()
    yield filesystem
    for path in filesystem.find("/warehouse"):
        filesystem.rm_file(path)


def put(filesystem: CountingFileSystem, path: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    {"parquet": pq.write_table, "csv": csv.write_csv, "feather": feather.write_feather}[path.rpartition(".")[2]](
        table, sink
    )
    filesystem.pipe_file(path, sink.getvalue().to_pybytes())


def items(*numbers: int) -> pa.Table:
    return pa.table({"item_id": pa.array(numbers, pa.int64()), "text": [f"item {number}" for number in numbers]})


def ids_of(table: Table) -> list[Any]:
    return [one for fragment in table.fragments() for batch in fragment.read() for one in batch["item_id"].to_pylist()]


def line_of(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- memory


@pytest.mark.parametrize(("num_rows", "text_bytes"), [(90_000, 1024), (4000, 32 << 10)])
def test_a_row_group_is_never_held_whole(tmp_path: Path, num_rows: int, text_bytes: int) -> None:
    generator = np.random.default_rng(0)
    texts = [generator.bytes(text_bytes // 2).hex() for _ in range(num_rows)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"item_id": range(num_rows), "text": texts}), path, row_group_size=num_rows)
    table = Table(str(path), ITEMS)
    (fragment,) = table.fragments()
    assert pq.ParquetFile(path).metadata.num_row_groups == 1

    before, peak, rows = pa.total_allocated_bytes(), 0, []
    for batch in fragment.read():
        assert batch.num_rows <= BATCH_ROWS
        assert batch.nbytes <= 1.1 * BATCH_BYTES
        assert batch["text"][0].as_py() == texts[len(rows)]
        rows += batch["row"].to_pylist()
        peak = max(peak, pa.total_allocated_bytes() - before)
        del batch
    assert rows == list(range(num_rows))
    assert peak < num_rows * text_bytes * 0.75  # all of it, read at once, is 90 MiB


def test_a_wide_column_that_is_not_read_does_not_shorten_the_batches(tmp_path: Path) -> None:
    table = pa.table(
        {"item_id": range(4000), "text": ["x"] * 4000, "image": [bytes([n % 256]) * 20_000 for n in range(4000)]}
    )
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False)
    (fragment,) = Table(str(tmp_path / "t.parquet"), ITEMS).fragments()
    assert [batch.num_rows for batch in fragment.read()] == [4000]


def test_every_format_comes_in_batches_in_order(tmp_path: Path) -> None:
    table = items(*range(BATCH_ROWS * 2 + 5))
    pq.write_table(table, tmp_path / "t.parquet")
    feather.write_feather(table, tmp_path / "t.feather")
    csv.write_csv(table, tmp_path / "t.csv")
    for name in ("t.parquet", "t.feather", "t.csv"):
        (fragment,) = Table(str(tmp_path / name), ITEMS).fragments()
        batches = list(fragment.read())
        assert max(batch.num_rows for batch in batches) <= BATCH_ROWS
        whole = pa.concat_tables(batches)
        assert whole["item_id"].to_pylist() == whole["row"].to_pylist() == list(range(table.num_rows))


# --- estimates


def csv_lines(number: int) -> bytes:
    words = random.Random(0)
    return b"item_id,text\n" + b"".join(
        b"%d,%032x and the same words again\n" % (n, words.getrandbits(128)) for n in range(number)
    )


@pytest.mark.parametrize("member_bytes", [None, 60_000])
def test_rows_of_a_zipped_csv_are_estimated_from_what_its_beginning_unzips_to(
    tmp_path: Path, member_bytes: int | None
) -> None:
    whole = csv_lines(200_000)
    step = member_bytes or len(whole)
    zipped = b"".join(gzip.compress(whole[at : at + step], 1) for at in range(0, len(whole), step))
    (tmp_path / "t.csv.gz").write_bytes(zipped)
    (tmp_path / "t.csv").write_bytes(whole)
    assert len(zipped) > 4 * MIB  # the estimate is one: the file is longer than the sample
    for name in ("t.csv.gz", "t.csv"):
        assert Table(str(tmp_path / name), ITEMS).estimated_rows() == pytest.approx(200_000, rel=0.05)


def test_rows_of_a_zipped_csv_that_shrinks_a_hundredfold(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"item_id,text\n" + b"1,the same text every time\n" * 3_000_000))
    assert Table(str(tmp_path / "t.csv.gz"), ITEMS).estimated_rows() == pytest.approx(3_000_000, rel=0.05)


# --- files are opened once


@pytest.mark.parametrize(("ending", "most"), [("parquet", 1), ("feather", 2), ("csv", 2)])
def test_a_command_opens_every_file_once_for_all_its_questions(
    counted: CountingFileSystem, ending: str, most: int
) -> None:
    for part in range(40):
        put(counted, f"/warehouse/items/{part:02d}.{ending}", items(part))
    table = Table("counted://warehouse/items", ITEMS)
    table.check()
    assert set(counted.opened.values()) <= set(range(1, most + 1)) and len(counted.opened) == 40
    once = dict(counted.opened)
    table.check()
    assert len(table.fragments()) == 40
    assert dict(counted.opened) == once
    assert table.estimated_rows() == pytest.approx(40, abs=40)
    assert ids_of(table) == list(range(40))


def test_files_that_changed_are_opened_again(counted: CountingFileSystem) -> None:
    put(counted, "/warehouse/items/0.parquet", items(1))
    table = Table("counted://warehouse/items", ITEMS)
    assert ids_of(table) == [1]
    put(counted, "/warehouse/items/1.parquet", items(2, 3))
    assert (ids_of(table), table.estimated_rows()) == ([1, 2, 3], 3)


def test_a_table_travels_without_its_open_files(counted: CountingFileSystem) -> None:
    put(counted, "/warehouse/items/0.parquet", items(1, 2))
    table = Table("counted://warehouse/items", ITEMS)
    bare = len(pickle.dumps(table))
    assert ids_of(table) == [1, 2]
    assert len(pickle.dumps(table)) == bare
    back = pickle.loads(pickle.dumps(table))
    assert back == table and ids_of(back) == [1, 2]
    assert dataclasses.replace(table, columns={"item_id": "text"}).check().types == [pa.string()]


# --- names in templates


def own(tmp_path: Path, template: str, ids: str = "sku", **columns: list[Any]) -> DataConfig:
    columns = {"sku": ["007", "b"], "title": ["A", "B"]} | columns
    csv.write_csv(pa.table(columns), tmp_path / "items.csv")
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["b"]}), tmp_path / "clicks.parquet")
    catalog = CatalogTable(path=str(tmp_path / "items.csv"), item_id=ids, template=template)
    return DataConfig(
        source="tables", catalog=catalog, interactions=InteractionsTable(path=str(tmp_path / "clicks.parquet"))
    )


def texts_of(config: DataConfig) -> list[dict[str, str]]:
    """Ids and texts as `prepare` makes them, after checking that `embed` makes the same."""
    raw = open_source(config)
    (batch,) = [batch for fragment in raw.catalog.fragments() for batch in fragment.read()]
    prepared = catalog_texts(batch, raw.template, "error").select(["item_id", "text"])
    catalog, template = open_catalog(config, None)
    (batch,) = [batch for fragment in catalog.fragments() for batch in fragment.read()]
    assert sort_out(batch, template, 1000)[0].select(["item_id", "text"]).equals(prepared)
    return list(prepared.to_pylist())


def test_a_template_may_name_the_column_of_the_ids(tmp_path: Path) -> None:
    expected = [{"item_id": "007", "text": "007 A"}, {"item_id": "b", "text": "b B"}]
    assert texts_of(own(tmp_path, "{sku} {title}")) == expected
    assert texts_of(own(tmp_path, "{item_id} {title}", "item_id", item_id=["007", "b"])) == expected


def test_a_text_column_may_have_the_name_of_other_ids(tmp_path: Path) -> None:
    found = texts_of(own(tmp_path, "{user_id}: {title}", user_id=["Ann", "Bob"]))
    assert found == [{"item_id": "007", "text": "Ann: A"}, {"item_id": "b", "text": "Bob: B"}]


@pytest.mark.parametrize("name", ["item_id", "row"])
@pytest.mark.parametrize("open_it", [open_source, lambda config: open_catalog(config, None)])
def test_a_text_column_never_takes_the_place_of_the_ids_or_the_row_numbers(
    tmp_path: Path, name: str, open_it: Any
) -> None:
    template = f"{{title}} {{{name}}}"
    config = own(tmp_path, template, **{name: ["x", "y"]})
    with pytest.raises(ConfigError) as caught:
        open_it(config)
    assert f"data.catalog.template {template!r}: names a column {name!r}" in line_of(caught)


def test_a_column_called_row_may_be_the_ids(tmp_path: Path) -> None:
    assert [one["item_id"] for one in texts_of(own(tmp_path, "{title}", "row", row=["x", "y"]))] == ["x", "y"]


def test_one_column_may_be_two_standard_columns_in_every_format(tmp_path: Path) -> None:
    pq.write_table(items(1), tmp_path / "t.parquet")
    feather.write_feather(items(1), tmp_path / "t.feather")
    csv.write_csv(items(1), tmp_path / "t.csv")
    for source in (*(str(tmp_path / name) for name in ("t.parquet", "t.feather", "t.csv")), items(1)):
        (fragment,) = Table(source, {"item_id": "item_id", "value": "item_id"}).fragments()
        assert next(fragment.read()).to_pylist() == [{"item_id": 1, "value": 1, "row": 0}]


# --- texts of CSVs


WRITTEN = ["1.50", "007", "TRUE", "2024-01-01 10:00", "1e3", "NA", " 1984"]


def test_texts_of_a_csv_are_taken_as_they_are_written(tmp_path: Path) -> None:
    config = own(tmp_path, "{title}", title=["x", "y"])
    for text in WRITTEN:  # alone in its file: its column would be one of numbers, truths or times
        (tmp_path / "items.csv").write_text(f"sku,title\n1,{text}\n2,{text}\n")
        assert texts_of(config) == [{"item_id": 1, "text": text.strip()}, {"item_id": 2, "text": text.strip()}]


def test_a_column_may_look_like_numbers_in_one_file_and_like_text_in_the_next_or_far_below(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "a.csv").write_text("item_id,text\n1,1984\n")
    (tmp_path / "items" / "b.csv").write_text("item_id,text\n2,Dune\n")
    lines = "".join(f"{number},{number:0200}\n" for number in range(3, 50_000))
    (tmp_path / "items" / "c.csv").write_text(f"item_id,text\n{lines}50000,Emma\n")
    assert (tmp_path / "items" / "c.csv").stat().st_size > 9 * MIB
    table = Table(str(tmp_path / "items"), ITEMS, typed=("item_id",))
    assert table.check().types == [pa.int64(), pa.string()]
    texts = pa.concat_tables([batch for fragment in table.fragments() for batch in fragment.read()])["text"]
    assert (texts[0].as_py(), texts[1].as_py(), texts[-1].as_py()) == ("1984", "Dune", "Emma")


def test_numbers_of_interactions_stay_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item_id,stars,when\n1,4.5,1700000000\n")
    table = Table(str(tmp_path / "t.csv"), {"item_id": "item_id", "value": "stars", "timestamp": "when"})
    assert table.check().types == [pa.int64(), pa.float64(), pa.int64()]


# --- messages


def test_errors_name_a_file_with_its_scheme(counted: CountingFileSystem) -> None:
    def refusal(path: str) -> str:
        with pytest.raises(DataError) as caught:
            ids_of(Table(path, ITEMS, "data.catalog"))
        return line_of(caught)

    counted.pipe_file("/warehouse/a/items.xlsx", b"PK")
    put(counted, "/warehouse/b/items.parquet", pa.table({"item_id": [1]}))
    counted.pipe_file("/warehouse/c/items.parquet", b"PAR1 no more")
    put(counted, "/warehouse/d/0.parquet", items(1))
    put(counted, "/warehouse/d/1.parquet", pa.table({"item_id": [[1]], "text": ["x"]}))
    counted.pipe_file("/warehouse/e/items.csv", b"item_id,text\n1,x\n2\n")
    assert refusal("counted://warehouse/a").startswith("counted://warehouse/a/items.xlsx: not a known table format")
    assert refusal("counted://warehouse/b").startswith(
        "counted://warehouse/b/items.parquet: data.catalog has no column"
    )
    assert refusal("counted://warehouse/c").startswith("counted://warehouse/c/items.parquet: cannot be read")
    assert refusal("counted://warehouse/d").startswith("counted://warehouse/d/1.parquet: data.catalog's columns have")
    assert refusal("counted://warehouse/e").startswith("counted://warehouse/e/items.csv: cannot be read")


def test_damage_found_while_reading_is_told_with_the_scheme(counted: CountingFileSystem) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(items(*range(1000)), sink, compression="snappy", use_dictionary=False)
    whole = sink.getvalue().to_pybytes()
    counted.pipe_file("/warehouse/items.parquet", whole[:30] + b"\xff" * 300 + whole[330:])
    with pytest.raises(DataError) as caught:
        ids_of(Table("counted://warehouse/items.parquet", ITEMS))
    assert line_of(caught).startswith("counted://warehouse/items.parquet: cannot be read")


def test_tables_that_travel_with_a_job_are_known_by_their_content_wherever_they_are_unpacked(tmp_path: Path) -> None:
    """Ray names the folder after all that is in it, and files there are as old as the node's copy."""

    def unpacked(package: str, content: str, seconds: int) -> str:
        folder = tmp_path / UNPACKED / package / "tables"
        folder.mkdir(parents=True)
        path = folder / "items.csv"
        path.write_text(f"item_id,text\n1,{content}\n")
        os.utime(path, (seconds, seconds))
        return Table(str(path), ITEMS).fingerprint()

    first = unpacked("_ray_pkg_1", "A4", 1)
    assert unpacked("_ray_pkg_2", "A4", 2) == first
    assert unpacked("_ray_pkg_3", "A5", 1) != first


def test_a_file_of_which_nothing_but_its_size_is_told_is_known_by_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beeray.data.storage.etags_of", lambda filesystem, paths, ask: [""] * len(paths))
    memory = fsspec.filesystem("memory")
    try:
        found = []
        for content in ("A4", "A5", "A4"):
            memory.pipe_file("/bucket/items.csv", f"item_id,text\n1,{content}\n".encode())
            found.append(Table("memory://bucket/items.csv", ITEMS).fingerprint())
    finally:
        memory.rm("/bucket", recursive=True)
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("kind", "when"),
    [(pa.timestamp("s"), ""), (pa.timestamp("s"), "2024-01-01 10:00:00"), (pa.date32(), "2024-01-01")],
)
def test_a_csv_may_lie_beside_files_that_know_their_types(tmp_path: Path, kind: pa.DataType, when: str) -> None:
    columns = {"user_id": "user_id", "item_id": "item_id", "timestamp": "when"}
    times = pa.array([dt.date(2024, 1, 2)], pa.date32()).cast(kind)
    pq.write_table(pa.table({"user_id": [1], "item_id": [1], "when": times}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(f"user_id,item_id,when\n2,2,{when}\n")
    table = Table(str(tmp_path), columns)
    assert pa.types.is_temporal(table.check().field("timestamp").type)
    assert ids_of(table) == [1, 2]
