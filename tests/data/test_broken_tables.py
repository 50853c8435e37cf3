"""Tables damaged in hundreds of ways: one line that says what and where, or a counted row, and never half a store.

Each case prepares whole tables, with Ray Data's part done in this process (`in_process_ray.py`): bytes are cut off,
turned over, put in and taken out; values are what no contract allows. The same catalogs are dealt for the nightly job.
"""

from __future__ import annotations

import datetime
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process_ray import in_process_ray

from beeray.config import Config, validate_config
from beeray.data.dealing import Dealing, deal_catalog, read_range
from beeray.data.preparation import ensure_store
from beeray.data.sources import open_catalog
from beeray.data.store import Store
from beeray.errors import BeerayError, DataError

FORMATS = ("parquet", "csv", "feather")
TABLES = ("catalog", "interactions")
EXAMPLES = 60
LONG_EXAMPLES = 1000
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with in_process_ray():
        yield


def silent(stage: str, done: int, total: int | None) -> None:
    """Report to nobody."""


def good(*, text_ids: bool = False) -> dict[str, pa.Table]:
    """Ten items and sixty interactions of twelve users."""
    pairs = [(user, (user + step) % 10) for user in range(12) for step in range(5)]
    kind = pa.string() if text_ids else pa.int64()
    items = pa.table({"item_id": range(10), "text": [f"item {item}" for item in range(10)]})
    interactions = pa.table(
        {
            "user_id": [user for user, _ in pairs],
            "item_id": [item for _, item in pairs],
            "stars": [5.0] * len(pairs),
            "time": list(range(len(pairs))),
        }
    )
    tables = {"catalog": items, "interactions": interactions}
    for name, table in tables.items():
        for column in ("user_id", "item_id"):
            if column in table.column_names:
                tables[name] = table = with_column(table, column, table[column].cast(kind))
    return tables


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, name, values) if at >= 0 else table.append_column(name, values)


def encoded(table: pa.Table, kind: str) -> bytes:
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink, row_group_size=16)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        pyarrow.feather.write_feather(table, sink, compression="uncompressed")
    return sink.getvalue().to_pybytes()


def lay_out(folder: Path, tables: dict[str, pa.Table], kind: str = "parquet") -> None:
    for name, table in tables.items():
        (folder / f"{name}.{kind}").write_bytes(encoded(table, kind))


def config_of(folder: Path, **sections: Any) -> Config:
    """The config of the tables in a folder, whatever their formats; `data` is laid over that section."""
    paths = {name: str(next(folder.glob(f"{name}.*"), folder / f"{name}.parquet")) for name in TABLES}
    data = {
        "source": "tables",
        "catalog": {"path": paths["catalog"]},
        "interactions": {"path": paths["interactions"], "value": "stars", "timestamp": "time"},
        "store": str(folder / "stores" / "bad"),
        "num_buckets": 2,
    }
    tree: dict[str, Any] = {"name": "bad", "split": {"validation": 1, "test": 1}}
    return validate_config(tree | sections | {"data": data | sections.get("data", {})})


def outcome(config: Config) -> Store | str:
    """The store, or the line of the refusal; anything else that is raised, or left behind, fails the test."""
    stores = Path(config.store_path).parent
    try:
        store, _ = ensure_store(config, silent)
    except BeerayError as error:
        assert not stores.exists() or list(stores.iterdir()) == []
        return one_line(error)
    assert [path.name for path in stores.iterdir()] == [Path(config.store_path).name]
    return Store.open(store.path)


def one_line(error: BeerayError) -> str:
    said = str(error)
    assert said and said.isprintable(), repr(said)
    assert len(said) < 1200, said
    said.encode("utf-8")
    return said


def deal(config: Config, folder: Path) -> dict[str, int] | str:
    """Deal the catalog as a night does: rows by what became of them, or the line of the refusal."""
    try:
        catalog, template = open_catalog(config.data, None)
        catalog.check()
        dealing = Dealing(template, config.embed.max_text_chars, 4, 2, str(folder / "work"))
        dealt = deal_catalog(catalog, dealing, silent)
    except BeerayError as error:
        return one_line(error)
    assert dealt.rows == sum(dealt.range_rows) + sum(dealt.errors.values())
    rows = [read_range(dealing, number) for number in range(4)]
    assert sum(part.num_rows for part in rows if part is not None) == sum(dealt.range_rows)
    return {"good": sum(dealt.range_rows), **dealt.errors}


def refused(folder: Path, *expected: str, **sections: Any) -> None:
    """Preparing is refused in a line that holds all of these."""
    said = outcome(config_of(folder, **sections))
    assert isinstance(said, str), said.meta
    for piece in expected:
        assert piece in said


# ---- bytes


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """What may happen to a file: places are fractions, so that they fit any."""
    kind = draw(st.sampled_from(["cut", "flip", "overwrite", "insert", "remove", "repeat"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=6))
    junk = draw(st.binary(min_size=1, max_size=24))

    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        for place in places[: 1 if kind in ("cut", "repeat") else None]:
            at = int(place * len(changed))
            if kind == "cut":
                del changed[at:]
            elif kind == "flip":
                changed[at : at + 1] = bytes([(changed[at] if at < len(changed) else 0) ^ junk[0] or 1])
            elif kind == "overwrite":
                changed[at : at + len(junk)] = junk
            elif kind == "insert":
                changed[at:at] = junk
            elif kind == "remove":
                del changed[at : at + len(junk)]
            else:
                changed += changed[at:]
        return bytes(changed)

    return damage


def try_damaged(kind: str, which: str, damage: Damage, text_ids: bool, split: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out_damaged(folder, kind, which, damage, text_ids)
        read_damaged(folder, which, split)


def lay_out_damaged(folder: Path, kind: str, which: str, damage: Damage, text_ids: bool) -> Path:
    lay_out(folder, good(text_ids=text_ids), kind)
    path = folder / f"{which}.{kind}"
    path.write_bytes(damage(path.read_bytes()))
    return path


def read_damaged(folder: Path, which: str, split: str) -> None:
    config = config_of(folder, split={"kind": split} if split == "time" else {"validation": 1, "test": 1})
    outcome(config)
    if which == "catalog":
        deal(config, folder)


def in_a_fork(work: Callable[[], None]) -> int:
    """Do something in a copy of this process.

    Returns:
        0: it came to its end; 1: something was raised, which the copy printed; below 0: the signal that ended the copy.
    """
    copy = os.fork()
    if copy == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("which", TABLES)
@pytest.mark.parametrize("kind", FORMATS)
@QUICK
@given(damage=damages(), text_ids=st.booleans(), split=st.sampled_from(["item", "time"]))
def test_damaged_bytes_are_refused_in_one_line_or_read(
    kind: str, which: str, damage: Damage, text_ids: bool, split: str
) -> None:
    try_damaged(kind, which, damage, text_ids, split)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("which", TABLES)
@pytest.mark.parametrize("kind", FORMATS)
@settings(QUICK, max_examples=LONG_EXAMPLES, derandomize=False)
@given(damage=damages(), text_ids=st.booleans(), split=st.sampled_from(["item", "time"]))
def test_thousands_of_damages(kind: str, which: str, damage: Damage, text_ids: bool, split: str) -> None:
    """In a process of its own each, so that one at which Arrow ends the process is told, bytes and all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = lay_out_damaged(folder, kind, which, damage, text_ids)
        ended = in_a_fork(partial(read_damaged, folder, which, split))
        assert ended == 0, f"{path.name}, {text_ids=}, {split=}: {ended}; {path.read_bytes().hex()}"


@pytest.mark.parametrize("which", TABLES)
@pytest.mark.parametrize("kind", ["parquet", "feather"])
@pytest.mark.parametrize("left", [0, 1, 4, 0.25, 0.5, 0.75, -9, -8, -1])
def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path: Path, which: str, kind: str, left: float) -> None:
    lay_out(tmp_path, good(), kind)
    path = tmp_path / f"{which}.{kind}"
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    refused(tmp_path, f"{which}.{kind}: cannot be read (", "; re")


def test_offsets_of_a_feather_file_that_point_outside_it_are_refused(tmp_path: Path) -> None:
    """Arrow takes them as they are, and the first to look at the texts would end the process."""
    tables = good(text_ids=True)
    lay_out(tmp_path, tables, "feather")
    path = tmp_path / "catalog.feather"
    content = bytearray(path.read_bytes())
    offsets = b"".join(int(at).to_bytes(4, "little") for at in range(11))  # of ten ids of one character
    at = content.index(offsets)
    content[at + 4 : at + 8] = b"\x00\x00\x00\x7f"
    path.write_bytes(content)
    refused(tmp_path, "catalog.feather: cannot be read (column 'item_id': ", "repair the file")
    assert "column 'item_id'" in str(deal(config_of(tmp_path), tmp_path))


def test_codes_of_a_dictionary_that_are_not_in_it_are_refused(tmp_path: Path) -> None:
    tables = good(text_ids=True)
    codes = pa.DictionaryArray.from_arrays(
        pa.array(range(10), pa.int8()), tables["catalog"]["item_id"].combine_chunks()
    )
    tables["catalog"] = with_column(tables["catalog"], "item_id", codes)
    lay_out(tmp_path, tables, "feather")
    path = tmp_path / "catalog.feather"
    path.write_bytes(path.read_bytes().replace(bytes(range(10)), bytes([0, 1, 100, *range(3, 10)])))
    refused(tmp_path, "catalog.feather: cannot be read (column 'item_id': ")


# ---- encodings and shapes of files

CATALOG_CSV = "item_id,text\n" + "".join(f"{item},caf\u00e9 {item}\n" for item in range(10))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_csv_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    lay_out(tmp_path, good())
    (tmp_path / "catalog.parquet").unlink()
    (tmp_path / "catalog.csv").write_bytes(CATALOG_CSV.encode(encoding))
    refused(tmp_path, "catalog.csv" if encoding.startswith("utf") else "UTF8")


def test_a_csv_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    lay_out(tmp_path, good())
    (tmp_path / "catalog.parquet").unlink()
    (tmp_path / "catalog.csv").write_bytes(CATALOG_CSV.encode("utf-8-sig"))
    store = outcome(config_of(tmp_path))
    assert isinstance(store, Store) and store.meta.num_items == 10


@pytest.mark.parametrize("kind", ["parquet", "feather"])
@pytest.mark.parametrize(
    "broken", [b"\xff", b"caf\xe9", b"in the \xff middle", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80"]
)
@pytest.mark.parametrize("place", ["catalog.text", "catalog.item_id", "interactions.user_id", "interactions.item_id"])
def test_text_that_is_no_utf8_is_refused_whatever_the_format(
    tmp_path: Path, kind: str, broken: bytes, place: str
) -> None:
    tables = good(text_ids=True)
    which, column = place.split(".")
    values = [value.encode() for value in tables[which][column].to_pylist()]
    raw = pa.array([values[0], broken, *values[2:]], pa.binary())
    tables[which] = with_column(tables[which], column, raw.view(pa.string()))
    lay_out(tmp_path, tables, kind)
    refused(tmp_path, f"{which} {column}", "UTF")
    if which == "catalog":
        reason = "broken_unicode" if column == "text" else "broken_item_id"
        assert deal(config_of(tmp_path), tmp_path) == {"good": 9, reason: 1}


@pytest.mark.parametrize("name", ["catalog.csv", "catalog.parquet", "catalog.feather", "catalog.csv.gz"])
@pytest.mark.parametrize("content", [b"", b"\n", b"\x00" * 64, b"PAR1", b"ARROW1\x00\x00", b"\x1f\x8b\x08"])
def test_a_file_of_nothing_or_of_a_beginning_alone_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    lay_out(tmp_path, good())
    (tmp_path / "catalog.parquet").unlink()
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "no such file, folder or match"),
        (["_hidden.parquet"], "no such file, folder or match"),
        (["a.parquet", "empty.parquet"], "empty.parquet: cannot be read"),
        (["a.parquet", "notes.txt"], "notes.txt: not a known table format"),
    ],
)
def test_a_folder_with_empty_or_foreign_files_is_refused(tmp_path: Path, names: list[str], expected: str) -> None:
    tables = good()
    lay_out(tmp_path, tables)
    (tmp_path / "catalog.parquet").unlink()
    folder = tmp_path / "catalog.parts"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(encoded(tables["catalog"], "parquet") if name == "a.parquet" else b"")
    refused(tmp_path, expected)


def test_shards_without_rows_and_shards_twice_count_once(tmp_path: Path) -> None:
    tables = good()
    lay_out(tmp_path, tables)
    for name in TABLES:
        (tmp_path / f"{name}.parquet").unlink()
        (tmp_path / f"{name}.parts").mkdir()
        for number, table in enumerate([tables[name], tables[name].slice(0, 0), tables[name]]):
            (tmp_path / f"{name}.parts" / f"{number}.parquet").write_bytes(encoded(table, "parquet"))
    store = outcome(config_of(tmp_path))
    assert isinstance(store, Store)
    assert (store.meta.num_items, store.meta.num_interactions) == (10, 60)
    assert (store.meta.dropped["items_repeated"], store.meta.dropped["interactions_repeated"]) == (10, 60)
    assert deal(config_of(tmp_path), tmp_path) == {"good": 20}


def test_names_of_columns_may_hold_anything_and_stay_on_one_line(tmp_path: Path) -> None:
    tables = good()
    tables["catalog"] = tables["catalog"].rename_columns(["item_id", "te\nxt\x1b[31m" + "x" * 5000])
    lay_out(tmp_path, tables)
    refused(tmp_path, "has no column 'text'", r"te\nxt\x1b[31mxxx", " …; map the column")


@pytest.mark.parametrize("header", [b"\xff\xfe,text\n", b"item_id,te\xe9xt\n", b"item_id,item_id\n", b"\x00,\x00\n"])
def test_a_header_that_names_no_known_columns_is_refused(tmp_path: Path, header: bytes) -> None:
    lay_out(tmp_path, good())
    (tmp_path / "catalog.parquet").unlink()
    (tmp_path / "catalog.csv").write_bytes(header + b"1,a\n2,b\n")
    refused(tmp_path, "catalog.csv: ")


# ---- values

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["", " ", "\x00", "../../etc/passwd", "a/b", "a\nb", "\u202e", "nan", "inf", "-0", "007", "1e3"]),
    st.binary(max_size=6),
    st.lists(st.integers(0, 3), max_size=2),
    st.fixed_dictionaries({"a": st.integers(0, 3)}),
    st.datetimes(),
    st.dates(),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**6), max_value=10**6),
)
COLUMNS = [
    ("catalog", "item_id"),
    ("catalog", "text"),
    *(("interactions", name) for name in ("user_id", "item_id", "stars", "time")),
]


@st.composite
def columns(draw: st.DrawFn, length: int) -> pa.Array:
    """A column of one kind of value, of the few kinds that Arrow puts into one column, or of none at all."""
    first = draw(VALUES)
    same = VALUES.filter(lambda value: value is None or isinstance(value, type(first)))
    values = [first, *draw(st.lists(same, min_size=2, max_size=4))]
    try:
        column = pa.array([values[at % len(values)] for at in range(length)])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.nulls(length)
    kind = draw(st.sampled_from([None, pa.float32(), pa.uint64(), pa.large_string(), pa.string(), pa.int8(), "coded"]))
    try:
        return column.dictionary_encode() if kind == "coded" else column.cast(kind) if kind else column
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return column


@pytest.mark.parametrize(("which", "column"), COLUMNS)
@settings(QUICK, max_examples=EXAMPLES // 2, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data(), split=st.sampled_from(["item", "time", "user"]), drop=st.booleans())
def test_a_column_of_anything_is_refused_in_one_line_or_read(
    which: str, column: str, data: st.DataObject, split: str, drop: bool
) -> None:
    tables = good(text_ids=data.draw(st.booleans()))
    table = tables[which]
    rest = data.draw(st.integers(0, table.num_rows - 1))
    strange = data.draw(columns(length=table.num_rows - rest))
    try:  # after good rows, where the types allow it
        whole = pa.concat_arrays([table[column].combine_chunks().slice(0, rest).cast(strange.type), strange])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        whole = pa.concat_arrays([pa.nulls(rest, strange.type), strange])
    tables[which] = with_column(table, column, whole)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            lay_out(folder, tables)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # no table of that kind can be written
            return
        sizes = {"validation": 0.2, "test": 0.2} if split == "time" else {"validation": 1, "test": 1}
        config = config_of(folder, split={"kind": split, **sizes}, data={"empty_text": "drop" if drop else "error"})
        outcome(config)
        if which == "catalog":
            deal(config, folder)


def interactions_with(tmp_path: Path, **changed: Any) -> None:
    tables = good()
    for column, values in changed.items():
        tables["interactions"] = with_column(tables["interactions"], column, values)
    lay_out(tmp_path, tables)


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([float("inf")], "inf"),
        ([float("-inf")], "-inf"),
        ([1e300], "1000000"),
        ([-1e19], "-10000000000000000000"),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array([Decimal(10**25)], pa.decimal128(30, 2)), ""),
        (pa.array([2**62], pa.timestamp("ms")), "out of bounds"),
    ],
)
def test_a_timestamp_beyond_64_bits_is_refused(tmp_path: Path, times: Any, shown: str) -> None:
    column = times if isinstance(times, pa.Array) else pa.array(times)
    interactions_with(tmp_path, time=pa.concat_arrays([column] * 60))
    refused(tmp_path, "interactions timestamp: a value does not fit 64 bits (", shown, "mend or drop such rows")


def test_timestamps_of_nan_and_null_are_earliest_and_negative_ones_stay_in_order(tmp_path: Path) -> None:
    interactions_with(tmp_path, time=pa.array([float("nan"), None, *(float(at) for at in range(-29, 29))]))
    split = {"kind": "time", "validation": 0.2, "test": 0.2}
    store = outcome(config_of(tmp_path, split=split))
    assert isinstance(store, Store)
    assert store.meta.time_boundaries == [5, 17]
    assert store.meta.interactions == {"train": 36, "validation": 12, "test": 12}


def test_values_of_nan_and_null_are_counted_as_too_small_and_infinite_ones_are_large(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    interactions_with(tmp_path, stars=pa.array([nan, None, -inf, -1e300, *[inf] * 56]))
    store = outcome(config_of(tmp_path, data={"min_user_interactions": 2}))
    assert isinstance(store, Store)
    assert store.meta.dropped["interactions_below_min_value"] == 4
    assert store.meta.num_interactions == 55  # the first user is left with one, and goes


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([0.0, 1.0, 2.0, float("nan"), *(float(one) for one in range(4, 10))]),
        pa.array([True, False] * 5),
        pa.array([[one] for one in range(10)]),
        pa.array([{"id": one} for one in range(10)]),
        pa.array([datetime.date(2020, 1, one + 1) for one in range(10)]),
        pa.array([str(one).encode() for one in range(10)]),
        pa.array([2**64 - 1, *range(9)], pa.uint64()),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_other_types_are_refused(tmp_path: Path, ids: pa.Array) -> None:
    tables = good()
    tables["catalog"] = with_column(tables["catalog"], "item_id", ids)
    lay_out(tmp_path, tables)
    refused(tmp_path, "catalog item_id: ", "strings")


STRANGE_IDS = ["../../x", "/etc/passwd", "a/b", "..", ".", "a\nb", "\x00", "\u202e", "%2e%2e", "c:\\x"]


def test_ids_that_look_like_paths_are_ids_and_no_file_is_named_after_them(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    tables = good(text_ids=True)
    names = pa.array(STRANGE_IDS)
    tables["catalog"] = with_column(tables["catalog"], "item_id", names)
    codes = [int(one) for one in tables["interactions"]["item_id"].to_pylist()]
    tables["interactions"] = with_column(tables["interactions"], "item_id", names.take(pa.array(codes)))
    users = pa.array([f"../{one}\n/\x00" for one in tables["interactions"]["user_id"].to_pylist()])
    tables["interactions"] = with_column(tables["interactions"], "user_id", users)
    lay_out(folder, tables)
    store = outcome(config_of(folder))
    assert isinstance(store, Store)
    assert sorted(store.item_ids().to_pylist()) == sorted(STRANGE_IDS)
    assert deal(config_of(folder), folder) == {"good": 10}
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    own = r"(meta\.json|[0-9a-z-]+\.(parquet|arrow))"
    assert [name for name in files if not re.fullmatch(rf"a/b/([a-z]+/)*{own}", name)] == []


def test_texts_of_ten_megabytes_are_prepared_and_set_aside_by_night(tmp_path: Path) -> None:
    tables = good()
    texts = [f"item {item}" for item in range(9)] + ["long \x00\x1b \U0001f41d" * 1_000_000]
    assert len(texts[-1].encode()) > 10_000_000
    tables["catalog"] = with_column(tables["catalog"], "text", pa.array(texts))
    lay_out(tmp_path, tables)
    store = outcome(config_of(tmp_path))
    assert isinstance(store, Store)
    assert sorted(store.catalog(["text"])["text"].to_pylist(), key=len)[-1] == texts[-1]
    assert deal(config_of(tmp_path), tmp_path) == {"good": 9, "too_long_text": 1}


@pytest.mark.parametrize("which", TABLES)
def test_a_refusal_leaves_the_earlier_store_as_it_was(tmp_path: Path, which: str) -> None:
    lay_out(tmp_path, good())
    config = config_of(tmp_path)
    assert isinstance(outcome(config), Store)
    before = {path: path.read_bytes() for path in (tmp_path / "stores").rglob("*") if path.is_file()}
    path = tmp_path / f"{which}.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError):
        ensure_store(config, silent)
    tables = good()
    tables["interactions"] = with_column(tables["interactions"], "time", pa.array([float("inf")] * 60))
    lay_out(tmp_path, tables)
    with pytest.raises(DataError, match="timestamp"):  # found when half of the work is done
        ensure_store(config, silent)
    assert {path: path.read_bytes() for path in (tmp_path / "stores").rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["bad"]
