"""Paired bootstrap and Holm's correction: known answers, p uniform where nothing differs and small where it does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from beeray.core import significance
from beeray.core.significance import holm, paired_bootstrap


def systems(*rows: list[float]) -> NDArray[np.float64]:
    """Scores of one metric: a row a system, a column a user."""
    return np.array(rows, dtype=np.float64)[:, :, None]


def test_holm_multiplies_the_smallest_by_all_and_the_largest_by_one() -> None:
    # sorted 0.005 0.01 0.03 0.04 → ×4 ×3 ×2 ×1 = 0.02 0.03 0.06 0.04; and none may be below the one before it
    adjusted = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_leaves_a_single_p_alone() -> None:
    assert holm(np.array([0.6, 0.7, 0.9])).tolist() == [1.0, 1.0, 1.0]
    assert holm(np.array([0.04])).tolist() == [0.04]
    assert holm(np.array([])).tolist() == []


def test_two_users_have_four_resamples_and_so_three_means() -> None:
    # differences 1 and −1/2: resampled means are −1/2 (1 of 4), 1/4 (2 of 4), 1 (1 of 4)
    found = paired_bootstrap(systems([0.0, 0.5], [1.0, 0.0]), num_bootstrap=40_000)
    assert found.means[:, 0].tolist() == [0.25, 0.5]
    assert found.differences[0, 0] == pytest.approx(0.25)
    assert found.difference_intervals[0, 0].tolist() == [-0.5, 1.0]
    # a quarter of the resamples is at or below zero, twice that is p
    assert found.p_values[0, 0] == pytest.approx(0.5, abs=0.01)
    assert found.intervals[1, 0].tolist() == [0.0, 1.0]


def test_systems_that_are_equal_have_p_of_one_and_no_difference() -> None:
    values = np.random.default_rng(1).random(50).tolist()
    found = paired_bootstrap(systems(values, values))
    assert found.p_values.tolist() == [[1.0]]
    assert found.difference_intervals.tolist() == [[[0.0, 0.0]]]


def test_a_constant_gain_is_certain_however_much_users_differ() -> None:
    values = np.random.default_rng(2).random(50)
    found = paired_bootstrap(systems(values.tolist(), (values + 0.01).tolist()), num_bootstrap=999)
    assert found.p_values[0, 0] == pytest.approx(2 / 1000)  # the smallest there is
    np.testing.assert_allclose(found.difference_intervals[0, 0], [0.01, 0.01])
    # unpaired, the intervals of the two means overlap nearly whole
    assert found.intervals[0, 0, 1] - found.intervals[1, 0, 0] > 0.1


def test_p_is_uniform_where_nothing_differs() -> None:
    draw = np.random.default_rng(3)
    # 300 users, 200 systems like the reference: each difference is noise around zero
    scores = np.concatenate([np.zeros((1, 300, 1)), draw.normal(size=(200, 300, 1))])
    p_values = np.sort(paired_bootstrap(scores, num_bootstrap=1000, seed=4).p_values[:, 0])
    expected = (np.arange(200) + 0.5) / 200
    # Kolmogorov–Smirnov: 1.63 / sqrt(200) = 0.115 is passed by one sample in a hundred
    assert np.abs(p_values - expected).max() < 0.115
    assert (p_values <= 0.05).mean() < 0.1
    # Holm: no false finding among all 200
    assert holm(p_values).min() > 0.05


def test_p_is_small_where_a_small_gain_is_there() -> None:
    draw = np.random.default_rng(5)
    scores = np.concatenate([np.zeros((1, 300, 1)), draw.normal(0.25, 1.0, size=(20, 300, 1))])  # 4.3 standard errors
    p_values = paired_bootstrap(scores, num_bootstrap=2000).p_values[:, 0]
    assert (p_values < 0.05).mean() > 0.9


def test_p_agrees_with_the_interval_and_with_the_normal_approximation() -> None:
    draw = np.random.default_rng(6)
    differences = draw.normal(0.1, 1.0, size=500)
    found = paired_bootstrap(systems([0.0] * 500, differences.tolist()), num_bootstrap=20_000)
    error = differences.std() / np.sqrt(500)
    low, high = found.difference_intervals[0, 0]
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)
    assert (found.p_values[0, 0] < 0.05) == (low > 0 or high < 0)


def test_blocks_and_other_systems_beside_it_change_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(7).random((3, 40, 2))
    whole = paired_bootstrap(scores, num_bootstrap=300, seed=1)
    alone = paired_bootstrap(scores[:2], num_bootstrap=300, seed=1)
    np.testing.assert_allclose(alone.difference_intervals[0], whole.difference_intervals[0])
    assert alone.p_values[0].tolist() == whole.p_values[0].tolist()
    other = paired_bootstrap(scores, num_bootstrap=300, seed=2)
    assert not np.array_equal(other.difference_intervals, whole.difference_intervals)
    monkeypatch.setattr("beeray.core.significance.COUNTS_AT_ONCE", 90)
    blocks = paired_bootstrap(scores, num_bootstrap=300, seed=1)
    np.testing.assert_allclose(blocks.difference_intervals, whole.difference_intervals)


def test_no_user_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match="no user was scored by all systems"):
        paired_bootstrap(np.empty((2, 0, 1)))


def test_columns_that_do_not_fit_at_once_are_resampled_with_the_same_users(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(5).random((3, 40, 4))
    whole = paired_bootstrap(scores, num_bootstrap=500, seed=6)
    monkeypatch.setattr(significance, "MEANS_AT_ONCE", 1500)  # three of twenty columns
    parts = paired_bootstrap(scores, num_bootstrap=500, seed=6)
    for name in ("means", "intervals", "differences", "difference_intervals"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    np.testing.assert_array_equal(parts.p_values, whole.p_values)
