"""Semantic neighbours of items laid out on a circle, so that everyone can see who they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beeray.core.neighbours import nearest_items, sample_items, share_kept

DEGREES = np.array([0, 10, 25, 90, 100, 180])
CIRCLE = torch.tensor(np.stack([np.cos(np.radians(DEGREES)), np.sin(np.radians(DEGREES))], axis=1), dtype=torch.float32)


@pytest.mark.parametrize("items_per_block", [2, 100])
def test_the_nearest_come_first_and_an_item_is_not_its_own_neighbour(items_per_block: int) -> None:
    found = nearest_items(CIRCLE, np.array([0, 3, 5]), 2, items_per_block=items_per_block)
    assert found.tolist() == [[1, 2], [4, 2], [4, 3]]


def test_a_catalog_of_few_items_has_fewer_neighbours() -> None:
    assert nearest_items(CIRCLE[:3], np.array([1]), 10).tolist() == [[0, 2]]
    assert nearest_items(CIRCLE, np.array([], dtype=np.int64), 2).shape == (0, 2)


def test_the_share_kept_is_counted_in_any_order() -> None:
    before = np.array([[1, 2], [4, 2], [4, 3], [0, 1]], dtype=np.int32)
    after = np.array([[2, 1], [2, 5], [0, 1], [0, 1]], dtype=np.int32)
    assert share_kept(before, after).tolist() == [1.0, 0.5, 0.0, 1.0]


def test_turning_the_circle_keeps_every_neighbour_and_swapping_two_items_does_not() -> None:
    every = np.arange(6)
    before = nearest_items(CIRCLE, every, 2)
    assert share_kept(before, nearest_items(CIRCLE.flip(1), every, 2)).mean() == 1.0
    assert share_kept(before, nearest_items(CIRCLE[[3, 1, 2, 0, 4, 5]], every, 2)).mean() < 1.0


def test_a_sample_is_drawn_by_its_seed_and_a_small_catalog_is_taken_whole() -> None:
    assert sample_items(5, 10, 1).tolist() == [0, 1, 2, 3, 4]
    drawn = sample_items(1000, 10, 1)
    assert len(set(drawn.tolist())) == 10 and drawn.tolist() == sorted(drawn.tolist())
    assert drawn.tolist() == sample_items(1000, 10, 1).tolist() != sample_items(1000, 10, 2).tolist()
