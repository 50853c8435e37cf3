"""Ranges of id hashes: where a published item lies must never change, or a night's join finds nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beeray.data.id_ranges import HASH_BITS, evenly, hash_ids, overlapping_ranges, ranges_of

LAST_HASH = 2**64 - 1
TEXT_HASHES = {
    "a": 13950350942979735504,
    "": 1760245841805064774,
    "007": 4175678020806771434,
    "ünï": 5849291076344449718,
    "B000F83SZQ": 11647541570902967536,
}
INTEGER_HASHES = {
    0: 0,
    1: 6238072747940578789,
    -1: 13029008266876403067,
    42: 12058926934050108962,
    2**62: 1360429390938723525,
}


def hashes_of_text(*texts: str) -> list[int]:
    return hash_ids(pa.array(texts, pa.string())).tolist()


def test_hashes_of_texts_are_those_of_every_earlier_publication() -> None:
    assert dict(zip(TEXT_HASHES, hashes_of_text(*TEXT_HASHES), strict=True)) == TEXT_HASHES


def test_hashes_of_integers_are_those_of_every_earlier_publication() -> None:
    hashes = hash_ids(pa.array(list(INTEGER_HASHES), pa.int64())).tolist()
    assert dict(zip(INTEGER_HASHES, hashes, strict=True)) == INTEGER_HASHES


def test_an_id_has_one_hash_whatever_stands_around_it() -> None:
    assert hashes_of_text("b", "a", "b", "007")[1] == TEXT_HASHES["a"]
    assert hashes_of_text("a", "a", "b", "a") == hashes_of_text("a") * 2 + hashes_of_text("b", "a")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_ids_have_one_hash_in_every_type(kind: pa.DataType) -> None:
    assert hash_ids(pa.array(list(TEXT_HASHES), kind)).tolist() == list(TEXT_HASHES.values())


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64()])
def test_integer_ids_have_one_hash_in_every_type(kind: pa.DataType) -> None:
    assert hash_ids(pa.array([0, 1, 42], kind)).tolist() == [INTEGER_HASHES[one] for one in (0, 1, 42)]


def test_unsigned_ids_beyond_int64_are_hashed_and_differ() -> None:
    assert len(set(hash_ids(pa.array([2**63, 2**63 + 1, 2**64 - 1], pa.uint64())).tolist())) == 3


def test_a_number_and_the_same_number_as_text_are_different_ids() -> None:
    assert hashes_of_text("1") != [INTEGER_HASHES[1]]


def test_a_slice_is_hashed_by_what_it_holds() -> None:
    ids = pa.array(["x", "a", "007", "y"])
    assert hash_ids(ids.slice(1, 2)).tolist() == [TEXT_HASHES["a"], TEXT_HASHES["007"]]
    assert hash_ids(pa.array([9, 1, 42], pa.int32()).slice(1)).tolist() == [INTEGER_HASHES[1], INTEGER_HASHES[42]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.int64(), pa.int32()])
def test_no_ids_have_no_hashes(kind: pa.DataType) -> None:
    found = hash_ids(pa.array([], kind))
    assert (found.dtype, found.shape) == (np.uint64, (0,))
    assert ranges_of(found, 7).shape == (0,)


def test_ranges_of_the_pinned_ids_do_not_move() -> None:
    hashes = np.array(list(TEXT_HASHES.values()), dtype=np.uint64)
    assert ranges_of(hashes, 10).tolist() == [7, 0, 2, 3, 6]
    assert ranges_of(hashes, 1).tolist() == [0] * 5


def test_ids_fall_evenly_into_ranges() -> None:
    for ids in (pa.array(range(20_000)), pa.array([f"sku-{number}" for number in range(20_000)])):
        counts = np.bincount(ranges_of(hash_ids(ids), 20), minlength=20)
        assert counts.sum() == 20_000
        assert 850 < counts.min() <= counts.max() < 1150  # 1,000 ± 5 standard deviations of 31


@given(num_ranges=st.integers(1, 2_000_000), value=st.integers(0, LAST_HASH))
@settings(deadline=None, derandomize=True)
def test_every_hash_is_in_one_of_the_ranges_and_ranges_are_in_hash_order(num_ranges: int, value: int) -> None:
    hashes = np.array([0, value, min(value + 2**32, LAST_HASH), LAST_HASH], dtype=np.uint64)
    numbers = ranges_of(hashes, num_ranges).tolist()
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert numbers[-1] == num_ranges - 1
    assert numbers[1] == (value >> 32) * num_ranges >> 32


def hashes_around_all_borders(*numbers_of_ranges: int) -> np.ndarray:
    """The first and last hash of every range: what brute force must look at, and nothing more."""
    borders = {0, 2**HASH_BITS - 1}
    for num_ranges in numbers_of_ranges:
        for number in range(1, num_ranges):
            first = -(-(number << HASH_BITS) // num_ranges)
            borders |= {first - 1, first}
    return np.array(sorted(borders), dtype=np.uint64) << np.uint64(64 - HASH_BITS)


@given(num_ranges=st.integers(1, 60), other=st.integers(1, 60))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_overlapping_ranges_are_those_that_share_hashes(num_ranges: int, other: int) -> None:
    hashes = hashes_around_all_borders(num_ranges, other)
    mine, theirs = ranges_of(hashes, num_ranges), ranges_of(hashes, other)
    for number in range(num_ranges):
        shared = sorted(set(theirs[mine == number].tolist()))
        assert list(overlapping_ranges(number, num_ranges, other)) == shared


def test_as_many_ranges_as_before_overlap_with_themselves_alone() -> None:
    assert [list(overlapping_ranges(number, 7, 7)) for number in range(7)] == [[number] for number in range(7)]


def test_two_ranges_and_three_overlap_at_the_middle() -> None:
    assert [list(overlapping_ranges(number, 2, 3)) for number in range(2)] == [[0, 1], [1, 2]]
    assert [list(overlapping_ranges(number, 3, 2)) for number in range(3)] == [[0], [0, 1], [1]]


def test_some_of_many_rows_lie_evenly_and_few_are_all_taken() -> None:
    rows = np.arange(100, 110)
    assert evenly(rows, 3).tolist() == [100, 103, 106]
    assert evenly(rows, 10).tolist() == evenly(rows, 99).tolist() == rows.tolist()
    assert evenly(rows, 0).tolist() == []
    assert evenly(rows[:0], 3).tolist() == []
