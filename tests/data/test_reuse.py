"""The join with earlier rows against one by hand, over dictionaries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from beeray.data.id_ranges import hash_ids, ranges_of
from beeray.data.reuse import NOT_REUSED, EarlierRows, Join, join_range, reused_numbers, same_kind
from beeray.errors import DataError, RunError

WIDTH = 3
Texts = dict[Any, str]
Numbers = dict[Any, list[float]]
NOTHING = {"reused": 0, "recovered": 0, "new": 0, "changed": 0, "deleted": 0, "damaged_files": 0}


def digest(text: str) -> bytes:
    return hashlib.md5(text.encode()).digest()


def table(texts: Texts, kind: pa.DataType) -> pa.Table:
    ids = sorted(texts)
    hashes = pa.array([digest(texts[item]) for item in ids], pa.binary(16))
    return pa.table({"item_id": pa.array(ids, kind), "content_hash": hashes})


def vector(source: int, item: Any) -> list[float]:
    """A vector that tells from where it was taken; NaN, −0 and denormals must come through as they are."""
    seed = int.from_bytes(digest(f"{source}|{item}")[:4], "little")
    return [float(seed % 1000), [np.nan, -0.0, 1e-42, np.inf][seed % 4], float(source)]


def write(folder: Path, texts: Texts, kind: pa.DataType, num_ranges: int, source: int = 0) -> tuple[str, ...]:
    """Files by ranges, as a publication has them; ranges without items have a file of no rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(texts, kind)
    flat = np.array([vector(source, item) for item in sorted(texts)], dtype=np.float32).reshape(-1)
    rows = rows.append_column("embedding", pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), WIDTH))
    numbers = ranges_of(hash_ids(rows["item_id"].combine_chunks()), num_ranges)
    paths = [folder / f"part-{number:05d}.parquet" for number in range(num_ranges)]
    for number, path in enumerate(paths):
        pq.write_table(rows.filter(pa.array(numbers == number)), path, row_group_size=5)
    return tuple(str(path) for path in paths)


def in_ranges(texts: Texts, kind: pa.DataType, num_ranges: int) -> list[pa.Table]:
    rows = table(texts, kind)
    numbers = ranges_of(hash_ids(rows["item_id"].combine_chunks()), num_ranges)
    return [rows.filter(pa.array(numbers == number)) for number in range(num_ranges)]


def fill(
    items: pa.Table, join: Join, earlier: list[EarlierRows], number: int, num_ranges: int, numbers: NDArray[np.generic]
) -> None:
    ids, hashes = items["item_id"].combine_chunks(), items["content_hash"].combine_chunks()
    reused_numbers(ids, hashes, join, earlier, number, num_ranges, numbers)


def joined(
    now: Texts, earlier: list[EarlierRows], num_ranges: int, kind: pa.DataType
) -> tuple[dict[Any, tuple[int, bytes]], dict[str, int]]:
    """Item → source and the bytes of its vector, over all ranges; and the sum of the counts."""
    found: dict[Any, tuple[int, bytes]] = {}
    counts = dict.fromkeys(NOTHING, 0)
    for number, items in enumerate(in_ranges(now, kind, num_ranges)):
        join = join_range(items, earlier, number, num_ranges)
        numbers = np.full((items.num_rows, WIDTH), 7.5, dtype=np.float32)
        fill(items, join, earlier, number, num_ranges, numbers)
        assert ((join.source == NOT_REUSED) == (join.source_row == NOT_REUSED)).all()
        for item, source, row in zip(items["item_id"].to_pylist(), join.source, numbers, strict=True):
            found[item] = (int(source), row.tobytes())
        counts = {name: counts[name] + join.counts[name] for name in counts}
    return found, counts


def by_hand(now: Texts, sources: list[tuple[Texts, bool]]) -> tuple[dict[Any, tuple[int, bytes]], dict[str, int]]:
    found: dict[Any, tuple[int, bytes]] = {}
    counts = dict.fromkeys(NOTHING, 0)
    for item, text in now.items():
        place = next((at for at, (before, _) in enumerate(sources) if before.get(item) == text), None)
        if place is not None:
            found[item] = (place, np.array(vector(place, item), np.float32).tobytes())
            counts["reused" if sources[place][1] else "recovered"] += 1
        else:
            found[item] = (NOT_REUSED, np.full(WIDTH, 7.5, np.float32).tobytes())
            known = any(item in before for before, published in sources if published)
            counts["changed" if known else "new"] += 1
    counts["deleted"] = sum(item not in now for before, published in sources if published for item in before)
    return found, counts


KINDS = {
    "integer": (pa.int64(), st.integers(-5, 40)),
    "small integer": (pa.int32(), st.integers(-5, 40)),
    "text": (pa.string(), st.integers(0, 40).map("sku-{}".format)),
    "large text": (pa.large_string(), st.sampled_from(["", "a", "b", "ünï", "a\x00", "a\x00b", "10", "9", " a"])),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), before=st.integers(1, 6), now=st.integers(1, 6), left=st.integers(1, 6))
@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_join_is_that_of_two_dictionaries(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject, before: int, now: int, left: int
) -> None:
    id_type, ids = KINDS[kind]
    catalogs = st.dictionaries(ids, st.sampled_from(["x", "y"]), max_size=30)
    published, stopped, catalog = data.draw(catalogs), data.draw(catalogs), data.draw(catalogs)
    missing = data.draw(st.sets(st.integers(0, left - 1)))
    folder = tmp_path_factory.mktemp("join")
    sources = [EarlierRows(write(folder / "published", published, id_type, before))]
    paths = write(folder / "stopped", stopped, id_type, left, source=1)
    there = tuple(None if number in missing else path for number, path in enumerate(paths))
    sources.append(EarlierRows(there, published=False))
    kept = dict(stopped)
    for number, items in enumerate(in_ranges(stopped, id_type, left)):
        if number in missing:
            kept = {item: text for item, text in kept.items() if item not in items["item_id"].to_pylist()}
    assert joined(catalog, sources, now, id_type) == by_hand(catalog, [(published, True), (kept, False)])


def test_the_same_catalog_is_reused_whole_and_one_changed_item_is_not(tmp_path: Path) -> None:
    texts = {number: f"text {number}" for number in range(200)}
    earlier = [EarlierRows(write(tmp_path, texts, pa.int64(), 4))]
    found, counts = joined(texts, earlier, 4, pa.int64())
    assert {source for source, _ in found.values()} == {0}
    assert counts == NOTHING | {"reused": 200}
    found, counts = joined(texts | {7: "other", 999: "new"}, earlier, 4, pa.int64())
    assert {item for item, (source, _) in found.items() if source == NOT_REUSED} == {7, 999}
    assert counts == NOTHING | {"reused": 199, "changed": 1, "new": 1}


def test_with_nothing_before_everything_is_new(tmp_path: Path) -> None:
    assert joined({1: "x", 2: "y"}, [], 3, pa.int64())[1] == NOTHING | {"new": 2}
    empty = [EarlierRows(write(tmp_path, {}, pa.int64(), 2))]
    assert joined({1: "x", 2: "y"}, empty, 3, pa.int64())[1] == NOTHING | {"new": 2}


def test_an_empty_catalog_deletes_everything(tmp_path: Path) -> None:
    earlier = [EarlierRows(write(tmp_path, {1: "x", 2: "y"}, pa.int64(), 5))]
    assert joined({}, earlier, 3, pa.int64()) == ({}, NOTHING | {"deleted": 2})


def test_the_publication_is_preferred_to_what_a_stopped_job_left(tmp_path: Path) -> None:
    published = EarlierRows(write(tmp_path / "published", {1: "x", 2: "old"}, pa.int64(), 2))
    stopped = EarlierRows(write(tmp_path / "stopped", {1: "x", 2: "new", 3: "z"}, pa.int64(), 3, source=1), False)
    found, counts = joined({1: "x", 2: "new", 3: "z"}, [published, stopped], 2, pa.int64())
    assert {item: source for item, (source, _) in found.items()} == {1: 0, 2: 1, 3: 1}
    assert counts == NOTHING | {"reused": 1, "recovered": 2}


def test_a_missing_file_of_a_publication_is_not_passed_over_as_new_items(tmp_path: Path) -> None:
    paths = write(tmp_path, {number: "x" for number in range(50)}, pa.int64(), 2)
    Path(paths[1]).unlink()
    with pytest.raises(DataError, match="no such file"):
        joined({number: "x" for number in range(50)}, [EarlierRows(paths)], 2, pa.int64())


def test_a_stopped_job_that_left_no_file_is_none() -> None:
    left = EarlierRows((None, None), published=False)
    assert left.read(0, 3, ["embedding"]) is None
    assert joined({1: "x"}, [left], 3, pa.int64())[1] == NOTHING | {"new": 1}


@pytest.mark.parametrize("numpy_type", [np.float32, np.float16, np.int8, np.uint8])
def test_vectors_of_every_dtype_come_over_to_the_bit(tmp_path: Path, numpy_type: Any) -> None:
    draw = np.random.default_rng(0)
    stored = draw.integers(0, 256, (40, 4 * np.dtype(numpy_type).itemsize), dtype=np.uint8).view(numpy_type)
    texts = {number: "x" for number in range(40)}
    rows = table(texts, pa.int64()).append_column(
        "embedding", pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), stored.shape[1])
    )
    numbers_of = ranges_of(hash_ids(rows["item_id"].combine_chunks()), 2)
    for number in range(2):
        pq.write_table(rows.filter(pa.array(numbers_of == number)), tmp_path / f"{number}.parquet")
    earlier = [EarlierRows((str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet")))]
    for number, items in enumerate(in_ranges(texts, pa.int64(), 3)):
        numbers = np.zeros((items.num_rows, stored.shape[1]), numpy_type)
        fill(items, join_range(items, earlier, number, 3), earlier, number, 3, numbers)
        assert numbers.tobytes() == stored[items["item_id"].to_numpy()].tobytes()


TEXT_KINDS = [pa.string(), pa.large_string()]
NUMBER_KINDS = [pa.int32(), pa.int64()]


@pytest.mark.parametrize(
    ("before", "now"), [(one, two) for kinds in (TEXT_KINDS, NUMBER_KINDS) for one in kinds for two in kinds]
)
def test_ids_of_another_width_are_the_same_items(tmp_path: Path, before: pa.DataType, now: pa.DataType) -> None:
    ids: list[Any] = list(range(60)) if pa.types.is_integer(now) else [f"sku-{number}" for number in range(60)]
    old: Texts = dict.fromkeys(ids[:50], "x")
    new: Texts = dict.fromkeys(ids[10:], "x") | {ids[20]: "y"}
    assert same_kind(before, now)
    found = joined(new, [EarlierRows(write(tmp_path, old, before, 3))], 4, now)
    assert found == by_hand(new, [(old, True)])
    assert found[1] == NOTHING | {"reused": 39, "new": 10, "changed": 1, "deleted": 10}


def test_text_and_numbers_cannot_be_compared() -> None:
    for text in TEXT_KINDS:
        for number in (*NUMBER_KINDS, pa.uint64()):
            assert not same_kind(text, number)
            assert not same_kind(number, text)


def test_an_earlier_id_too_large_for_tonight_s_type_is_one_that_has_gone(tmp_path: Path) -> None:
    old: Texts = {1: "x", 2: "x", 2**40: "x"}
    earlier = [EarlierRows(write(tmp_path, old, pa.int64(), 2))]
    assert joined({1: "x", 2: "x"}, earlier, 3, pa.int32())[1] == NOTHING | {"reused": 2, "deleted": 1}


BEFORE = {f"sku-{number}": f"text {number}" for number in range(30)}
REPLACED = {
    "other items": {f"other-{number}": "x" for number in range(30)},
    "one item more before them": BEFORE | {"a": "x"},
    "the last item gone": {item: text for item, text in BEFORE.items() if item != max(BEFORE)},
    "no items": {},
    "another text of one": BEFORE | {"sku-7": "other"},
}


@pytest.mark.parametrize("after", REPLACED)
@pytest.mark.parametrize("published", [True, False])
def test_earlier_rows_replaced_between_join_and_write_are_not_mixed_in(
    tmp_path: Path, after: str, published: bool
) -> None:
    """A row number of the join would point to the vector of another item, or of another text."""
    earlier = [EarlierRows(write(tmp_path, BEFORE, pa.string(), 1), published)]
    (items,) = in_ranges(BEFORE, pa.string(), 1)
    join = join_range(items, earlier, 0, 1)
    write(tmp_path, REPLACED[after], pa.string(), 1, source=9)
    with pytest.raises(RunError, match=r"part-00000\.parquet: earlier vectors changed .* run the same command again"):
        fill(items, join, earlier, 0, 1, np.zeros((30, WIDTH), np.float32))
    write(tmp_path, BEFORE, pa.string(), 1)
    numbers = np.zeros((30, WIDTH), np.float32)
    fill(items, join, earlier, 0, 1, numbers)
    assert numbers.tobytes() == np.array([vector(0, item) for item in sorted(BEFORE)], np.float32).tobytes()


def test_rows_that_changed_but_are_not_reused_are_no_reason_to_stop(tmp_path: Path) -> None:
    earlier = [EarlierRows(write(tmp_path, BEFORE, pa.string(), 1))]
    (items,) = in_ranges({"sku-0": "text 0", "sku-1": "text 1"}, pa.string(), 1)
    join = join_range(items, earlier, 0, 1)
    write(tmp_path, BEFORE | {"sku-9": "other"}, pa.string(), 1)
    numbers = np.zeros((2, WIDTH), np.float32)
    fill(items, join, earlier, 0, 1, numbers)
    assert numbers.tobytes() == np.array([vector(0, "sku-0"), vector(0, "sku-1")], np.float32).tobytes()


def test_a_file_that_a_stopped_job_wrote_after_the_listing_moves_no_row(tmp_path: Path) -> None:
    paths = write(tmp_path, BEFORE, pa.string(), 2)
    earlier = [EarlierRows((None, paths[1]), published=False)]  # listed when only the second was there
    (items,) = in_ranges(BEFORE, pa.string(), 1)
    join = join_range(items, earlier, 0, 1)
    numbers = np.zeros((30, WIDTH), np.float32)
    fill(items, join, earlier, 0, 1, numbers)
    late = ranges_of(hash_ids(items["item_id"].combine_chunks()), 2) == 0
    assert 0 < late.sum() < 30
    assert ((join.source == NOT_REUSED) == late).all()
    expected = np.array([vector(0, item) for item in sorted(BEFORE)], np.float32)
    assert numbers[~late].tobytes() == expected[~late].tobytes()
    assert not numbers[late].any()


def flip_a_vector(path: Path) -> None:
    """One bit of one vector, where neither size nor ids nor hashes tell."""
    column = pq.ParquetFile(path).metadata.row_group(0)
    place = next(column.column(at) for at in range(3) if column.column(at).path_in_schema.startswith("embedding"))
    data = bytearray(path.read_bytes())
    data[place.data_page_offset + place.total_compressed_size // 2] ^= 0x40
    path.write_bytes(data)


def cut_the_footer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40:-8] = bytes(32)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip_a_vector, cut_the_footer])
def test_a_damaged_file_of_the_publication_is_encoded_anew_and_not_copied(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    paths = write(tmp_path, BEFORE, pa.string(), 2)
    checksums = tuple(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths)
    in_second = {item["item_id"] for item in pq.read_table(paths[1]).to_pylist()}
    damage(Path(paths[1]))
    found, counts = joined(BEFORE, [EarlierRows(paths, sha256=checksums)], 1, pa.string())
    assert {item for item, (source, _) in found.items() if source == NOT_REUSED} == in_second
    assert counts == NOTHING | {"reused": 30 - len(in_second), "new": len(in_second), "damaged_files": 1}


def test_another_encoders_rows_are_counted_and_not_reused(tmp_path: Path) -> None:
    earlier = [EarlierRows(write(tmp_path, {1: "x", 2: "old", 3: "gone"}, pa.int64(), 2), reusable=False)]
    found, counts = joined({1: "x", 2: "new", 4: "y"}, earlier, 3, pa.int64())
    assert {source for source, _ in found.values()} == {NOT_REUSED}
    assert counts == NOTHING | {"new": 1, "changed": 1, "deleted": 1}
