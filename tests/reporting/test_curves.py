"""Smoothing and thinning of training curves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from beeray.reporting.curves import MAX_POINTS, smooth, thin, training_curves, validation_curves


def test_smoothing_is_a_weighted_mean_of_what_came_before_without_a_bias_at_the_start() -> None:
    # span 3: weights 1, 1/2, 1/4 …
    smoothed = smooth(np.array([4.0, 1.0, 2.0]), 3.0)
    assert smoothed.tolist() == [4.0, pytest.approx((1 + 2) / 1.5), pytest.approx((2 + 0.5 + 1) / 1.75)]
    assert smooth(np.full(5, 7.0), 3.0).tolist() == [7.0] * 5
    assert smooth(np.array([1.0, 9.0]), 1.0).tolist() == [1.0, 9.0]


def test_a_long_curve_is_thinned_to_means_and_a_short_one_is_left_alone() -> None:
    assert thin(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [2.0, 6.0]
    assert thin(np.array([1.0, 3.0]), 2).tolist() == [1.0, 3.0]


def a_step(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1.5 - step * 1e-4, "lr": 1e-3, "tokens": 100, "step_s": 0.5}


def test_curves_are_equally_long_and_bounded() -> None:
    curves = training_curves([a_step(step) for step in range(5000)])
    assert {len(values) for values in curves.values()} == {MAX_POINTS}
    assert curves["tokens_per_s"][0] == 200
    assert curves["loss"][0] > curves["loss"][-1]
    short = training_curves([a_step(0), a_step(1)])
    assert short["step"] == [1, 2]
    assert training_curves([]) == {"step": [], "loss": [], "smooth": [], "lr": [], "tokens_per_s": []}


def test_validation_curves_keep_a_place_for_an_epoch_without_a_metric() -> None:
    epochs = [{"epoch": 1, "step": 5, "validation/ndcg@10": 0.1}, {"epoch": 2, "step": 10}]
    assert validation_curves(epochs) == {"step": [5, 10], "metrics": {"ndcg@10": [0.1, None]}}


def test_what_is_no_number_is_a_gap_that_json_takes() -> None:
    curves = training_curves([a_step(0), a_step(1) | {"loss": float("nan")}, a_step(2) | {"loss": float("inf")}])
    assert curves["loss"] == [1.5, None, None] and curves["smooth"] == [1.5, None, None]
    epochs = validation_curves([{"epoch": 1, "step": 5, "validation/ndcg@10": float("nan")}])
    assert epochs["metrics"] == {"ndcg@10": [None]}
    json.dumps([curves, epochs], allow_nan=False)
