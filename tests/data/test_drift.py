"""The drift report on vectors whose movement is known: a rotation, a permutation, none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beeray.data.drift import NEIGHBOURS, RANGES_IN_VAIN, measure_drift, neighbours_kept
from beeray.data.embedding_format import EmbeddingFormat, Vectors
from beeray.data.id_ranges import hash_ids, ranges_of
from beeray.data.reuse import EarlierRows
from beeray.errors import DataError

ROWS, DIM = 200, 8
FLOAT = EmbeddingFormat("float32", DIM, False)


def vectors(dim: int = DIM, rows: int = ROWS, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def write(
    folder: Path,
    given: Vectors,
    *,
    num_ranges: int = 4,
    how: EmbeddingFormat | None = None,
    ids: list[int] | None = None,
    changed: set[int] | None = None,
    id_type: pa.DataType | None = None,
) -> EarlierRows:
    """Files of items 0, 1, … (or `ids`); the text of `changed` ones is another."""
    folder.mkdir()
    how = how or EmbeddingFormat("float32", given.shape[1], False)
    numbers = list(range(len(given))) if ids is None else ids
    hashes = [(b"other" if one in (changed or set()) else str(one).encode()).ljust(16) for one in numbers]
    table = pa.table(
        {
            "item_id": pa.array(numbers, id_type or pa.int64()),
            "embedding": how.encode(given),
            "content_hash": pa.array(hashes, pa.binary(16)),
        }
    )
    places = ranges_of(hash_ids(table["item_id"].combine_chunks()), num_ranges)
    for number in range(num_ranges):
        pq.write_table(table.filter(pa.array(places == number)), folder / f"{number}.parquet")
    return EarlierRows(tuple(str(folder / f"{number}.parquet") for number in range(num_ranges)))


def rotated(given: Vectors, degrees: float) -> Vectors:
    """Turned in every plane of two neighbouring dimensions, so each vector's cosine is that of the angle."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (given.reshape(len(given), -1, 2) @ turn.T).reshape(given.shape).astype(np.float32)


def test_nothing_moved(tmp_path: Path) -> None:
    rows = write(tmp_path / "same", vectors())
    found = measure_drift(rows, FLOAT, rows, FLOAT, 1000)
    assert found == {
        "rows": ROWS,
        "cosine_median": pytest.approx(1),
        "cosine_p1": pytest.approx(1),
        "neighbours_kept": 1.0,
    }


@pytest.mark.parametrize("degrees", [10, 60, 90, 180])
def test_a_rotation_moves_cosines_by_its_angle_and_keeps_neighbours(tmp_path: Path, degrees: float) -> None:
    old = write(tmp_path / "old", vectors())
    new = write(tmp_path / "new", 7 * rotated(vectors(), degrees), num_ranges=3)
    found = measure_drift(new, FLOAT, old, FLOAT, 1000)
    assert found is not None
    assert found["cosine_median"] == pytest.approx(np.cos(np.radians(degrees)), abs=1e-5)
    assert found["cosine_p1"] == pytest.approx(np.cos(np.radians(degrees)), abs=1e-5)
    assert found["neighbours_kept"] > 0.995


def test_one_item_in_twenty_that_turned_round_is_seen_in_the_percentile_alone(tmp_path: Path) -> None:
    moved = vectors()
    moved[::20] *= -1
    old, new = write(tmp_path / "old", vectors()), write(tmp_path / "new", moved)
    found = measure_drift(new, FLOAT, old, FLOAT, 1000)
    assert found is not None
    assert (found["cosine_median"], found["cosine_p1"]) == (pytest.approx(1), pytest.approx(-1))


def test_vectors_drawn_anew_keep_no_more_neighbours_than_chance(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", vectors()), write(tmp_path / "new", vectors(seed=1))
    found = measure_drift(new, FLOAT, old, FLOAT, 1000)
    assert found is not None
    assert found["neighbours_kept"] == pytest.approx(NEIGHBOURS / (ROWS - 1), abs=0.02)
    assert abs(found["cosine_median"]) < 0.1


def test_neighbours_by_hand() -> None:
    """Two bundles of 11: each row's ten nearest are its bundle; a row that changes sides loses all of them."""
    bundles = np.repeat(np.eye(2, dtype=np.float32), 11, axis=0)
    assert neighbours_kept(bundles, bundles) == 1.0
    assert neighbours_kept(bundles, bundles[::-1]) == 1.0  # the bundles change places
    swapped = bundles.copy()
    swapped[[0, 11]] = swapped[[11, 0]]
    # rows 0 and 11 keep none of ten; the 20 others keep nine: their bundle without the one that left
    assert neighbours_kept(bundles, swapped) == pytest.approx((2 * 0 + 20 * 9) / 220)


def test_other_dimensions_have_neighbours_but_no_cosines(tmp_path: Path) -> None:
    wide = np.concatenate([vectors(), np.zeros((ROWS, 4), np.float32)], axis=1)
    old, new = write(tmp_path / "old", vectors()), write(tmp_path / "new", wide)
    found = measure_drift(new, EmbeddingFormat("float32", DIM + 4, False), old, FLOAT, 1000)
    assert found == {"rows": ROWS, "cosine_median": None, "cosine_p1": None, "neighbours_kept": 1.0}


def test_another_dtype_is_compared_as_decoded(tmp_path: Path) -> None:
    codes = EmbeddingFormat("int8", DIM, False, 0.03)
    old, new = write(tmp_path / "old", vectors()), write(tmp_path / "new", vectors(), how=codes)
    found = measure_drift(new, codes, old, FLOAT, 1000)
    assert found is not None
    assert 0.999 < found["cosine_median"] < 1
    assert 0.9 < found["neighbours_kept"] < 1


def test_only_items_of_both_with_the_same_text_are_compared(tmp_path: Path) -> None:
    moved = vectors()
    moved[:50] *= -1  # their text changed, so they may
    old = write(tmp_path / "old", vectors())
    new = write(tmp_path / "new", moved[:150], changed=set(range(50)))
    found = measure_drift(new, FLOAT, old, FLOAT, 1000)
    assert found is not None
    assert (found["rows"], found["cosine_p1"]) == (100, pytest.approx(1))


def test_nothing_in_common_is_none(tmp_path: Path) -> None:
    old = write(tmp_path / "old", vectors())
    others = write(tmp_path / "others", vectors(), ids=list(range(1000, 1000 + ROWS)))
    changed = write(tmp_path / "changed", vectors(), changed=set(range(ROWS)))
    empty = write(tmp_path / "empty", vectors()[:0])
    for new in (others, changed, empty):
        assert measure_drift(new, FLOAT, old, FLOAT, 1000) is None
        assert measure_drift(old, FLOAT, new, FLOAT, 1000) is None


@pytest.mark.parametrize("max_rows", [1, 10, 11, 57, 199, 200, 201])
def test_no_more_rows_are_compared_than_asked_for(tmp_path: Path, max_rows: int) -> None:
    old, new = write(tmp_path / "old", vectors()), write(tmp_path / "new", vectors(), num_ranges=7)
    found = measure_drift(new, FLOAT, old, FLOAT, max_rows)
    assert found is not None
    assert found["rows"] == min(max_rows, ROWS)
    assert (found["neighbours_kept"] is None) == (max_rows <= NEIGHBOURS)
    assert found == measure_drift(new, FLOAT, old, FLOAT, max_rows)


def test_a_sample_of_one_range_is_not_that_of_the_lowest_ids(tmp_path: Path) -> None:
    """Old items did not move and new ones, whose ids are higher, did: half of a sample must show it."""
    moved = vectors()
    moved[ROWS // 2 :] *= -1
    old, new = write(tmp_path / "old", vectors(), num_ranges=1), write(tmp_path / "new", moved, num_ranges=1)
    found = measure_drift(new, FLOAT, old, FLOAT, 40)
    assert found is not None
    assert (found["rows"], found["cosine_p1"]) == (40, pytest.approx(-1))
    assert abs(found["cosine_median"]) < 1e-6  # as many at 1 as at −1


def test_vectors_of_zeros_are_no_error(tmp_path: Path) -> None:
    given = vectors()
    given[:5] = 0
    old, new = write(tmp_path / "old", given), write(tmp_path / "new", given)
    found = measure_drift(new, FLOAT, old, FLOAT, 1000)
    assert found is not None
    assert np.isfinite([found["cosine_median"], found["cosine_p1"], found["neighbours_kept"]]).all()


def test_ids_of_another_width_are_the_same_items(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", vectors(), id_type=pa.int32()), write(tmp_path / "new", vectors())
    for one, other in ((new, old), (old, new)):
        found = measure_drift(one, FLOAT, other, FLOAT, 1000)
        assert found is not None
        assert (found["rows"], found["cosine_p1"]) == (ROWS, pytest.approx(1))


def test_a_changed_template_is_found_out_after_a_few_ranges(tmp_path: Path) -> None:
    """Later ranges are not read: here their files are not there."""
    old = write(tmp_path / "old", vectors(), num_ranges=32)
    new = write(tmp_path / "new", vectors(), num_ranges=32, changed=set(range(ROWS)))
    for path in new.paths[RANGES_IN_VAIN:]:
        Path(str(path)).unlink()
    assert measure_drift(new, FLOAT, old, FLOAT, 1000) is None
    Path(str(new.paths[RANGES_IN_VAIN - 1])).unlink()
    with pytest.raises(DataError, match="no such file"):
        measure_drift(new, FLOAT, old, FLOAT, 1000)
