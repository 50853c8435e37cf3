"""Neighbours by cosine and partners by shared users, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finished_run import a_run
from scipy import sparse

from beeray.reporting import neighbours
from beeray.reporting.neighbours import bought_together, nearest, neighbours_kept, users_in_common

ANGLES = np.radians([0.0, 10.0, 30.0, 90.0])
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
TOGETHER = sparse.csr_matrix(np.array([[0, 1, 40, 0], [1, 0, 0, 0], [40, 0, 0, 0], [0, 0, 0, 0]], dtype=np.int32))
NUM_USERS = np.array([100, 1, 64, 5])


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_the_nearest_are_by_angle_and_never_the_item_itself(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS_AT_ONCE", rows_at_once)
    places, cosines = nearest(CIRCLE, 2)
    assert places.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    np.testing.assert_allclose(cosines[0], np.cos(np.radians([10, 30])), rtol=1e-5)


def test_a_small_catalog_has_fewer_neighbours() -> None:
    places, _ = nearest(CIRCLE, 10)
    assert places.shape == (4, 3)
    assert [sorted([item, *row]) for item, row in enumerate(places.tolist())] == [[0, 1, 2, 3]] * 4


def test_the_share_of_neighbours_kept_is_counted_on_what_the_run_left(tmp_path: Path) -> None:
    folder = a_run(tmp_path).run_dir / "report"
    before, after = (np.load(folder / f"{name}.npy").astype(np.float32) for name in ("original", "trained"))
    before, after = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (before, after))
    kept = neighbours_kept(folder, 5)
    assert kept is not None
    for item in range(len(before)):
        closest = [np.argsort(-np.delete(rows @ rows[item], item), kind="stable")[:5] for rows in (before, after)]
        assert kept[item] == pytest.approx(len(set(closest[0]) & set(closest[1])) / 5)
    assert 0 < kept.mean() < 1
    np.save(folder / "trained.npy", before.astype(np.float16))
    assert neighbours_kept(folder, 5).tolist() == [1.0] * len(before)  # type: ignore[union-attr]
    (folder / "original.npy").unlink()
    assert neighbours_kept(folder, 5) is None


def test_a_pair_with_one_shared_user_does_not_come_before_one_with_forty() -> None:
    (first, second), other, _, nothing = bought_together(TOGETHER, NUM_USERS, 10)
    assert first == (2, 40, pytest.approx(40 / (80 + 10)))
    assert second == (1, 1, pytest.approx(1 / (10 + 10)))
    assert other == [(0, 1, pytest.approx(1 / 20))]
    assert nothing == []
    assert bought_together(TOGETHER, NUM_USERS, 1)[0] == [first]


def test_without_shrinkage_it_is_the_cosine_of_their_users() -> None:
    assert bought_together(TOGETHER, NUM_USERS, 1, shrinkage=0.0)[1] == [(0, 1, pytest.approx(1 / np.sqrt(100)))]


def test_users_in_common_are_looked_up_for_every_neighbour() -> None:
    assert users_in_common(TOGETHER, np.array([[2, 3], [2, 0], [0, 1], [0, 1]])).tolist() == [
        [40, 0],
        [0, 1],
        [40, 0],
        [0, 0],
    ]
