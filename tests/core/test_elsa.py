"""The ELSA scores and their normalised error, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from beeray.core import elsa
from beeray.core.elsa import elsa_scores, nmse_per_user, normalize_rows


def test_rows_get_unit_length_and_a_zero_row_stays_zero() -> None:
    rows = normalize_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_rows_are_normalised_in_float32_or_better(given: torch.dtype, returned: torch.dtype) -> None:
    rows = normalize_rows(torch.tensor([[1.0, 2.0, 2.0]], dtype=given))
    assert rows.dtype == returned
    torch.testing.assert_close(rows, torch.tensor([[1 / 3, 2 / 3, 2 / 3]], dtype=returned))


def test_scores_of_a_checkerboard_catalog_are_those_worked_out_by_hand() -> None:
    # items 0 and 2 point one way, 1 and 3 the other; the user likes 0 and 2
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    user_items = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    vectors = user_items @ items  # (2, 0)
    # own items: 2 − 1 (itself) = 1; the others: 0
    torch.testing.assert_close(elsa_scores(vectors, items, user_items), torch.tensor([[1.0, 0.0, 1.0, 0.0]]))


def test_a_users_error_is_zero_when_scores_are_its_items_times_any_positive_number() -> None:
    user_items = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(nmse_per_user(7.5 * user_items, user_items), torch.tensor([0.0]))


def test_error_of_a_user_equals_two_minus_two_cosines() -> None:
    scores = torch.tensor([[3.0, 4.0, 0.0], [0.0, 5.0, 0.0]])
    user_items = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    # cosines: 3/5 and 0
    torch.testing.assert_close(nmse_per_user(scores, user_items), torch.tensor([2 - 2 * 0.6, 2.0]))


def test_negative_scores_count_only_without_relu() -> None:
    scores, user_items = torch.tensor([[3.0, -4.0]]), torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(nmse_per_user(scores, user_items, relu=True), torch.tensor([0.0]))
    torch.testing.assert_close(nmse_per_user(scores, user_items, relu=False), torch.tensor([2 - 2 * 3 / 5]))


def test_a_user_without_a_positive_score_has_error_one_and_no_nan_in_its_gradient() -> None:
    scores = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    error = nmse_per_user(scores, torch.tensor([[1.0, 1.0]]))
    error.sum().backward()
    torch.testing.assert_close(error.detach(), torch.tensor([1.0]))
    assert scores.grad is not None
    assert torch.equal(scores.grad, torch.zeros(1, 2))


def test_top_k_compares_only_the_highest_scores_of_each_user() -> None:
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0], [3.0, 0.0, 1.0, 4.0]])
    user_items = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    # user 0: columns 1, 2 → scores (4, 3), items (1, 0), cosine 4/5; the liked column 0 is not compared
    # user 1: columns 3, 0 → scores (4, 3), items (1, 1), cosine 7/(5·√2)
    expected = torch.tensor([2 - 2 * 4 / 5, 2 - 2 * 7 / (5 * math.sqrt(2))])
    torch.testing.assert_close(nmse_per_user(scores, user_items, top_k=2), expected)
    assert not torch.allclose(nmse_per_user(scores, user_items), expected)


@pytest.mark.parametrize("top_k", [4, 5])
def test_top_k_of_all_items_or_more_compares_all(top_k: int) -> None:
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    user_items = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert torch.equal(nmse_per_user(scores, user_items, top_k=top_k), nmse_per_user(scores, user_items))


def test_rows_scaled_in_place_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsa, "ROWS_AT_ONCE", 7)
    rows = torch.randn(50, 384, generator=torch.Generator().manual_seed(0))
    rows[3] = 0.0
    expected = elsa.normalize_rows(rows)
    assert not torch.equal(rows, expected)
    assert elsa.normalize_rows_in_place(rows) is rows
    assert torch.equal(rows, expected)


def test_rows_without_a_finite_length_are_found_and_a_row_of_zeros_is_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elsa, "ROWS_AT_ONCE", 3)
    rows = torch.ones(8, 4)
    rows[1] = 0.0
    rows[2, 3], rows[4, 0], rows[5, 1], rows[7] = float("nan"), float("inf"), -float("inf"), 1e20
    assert elsa.not_finite_rows(rows).tolist() == [2, 4, 5, 7], "1e20 squared is no float32"
    assert elsa.not_finite_rows(rows[:2]).tolist() == []
    assert torch.equal(elsa.normalize_rows(rows[:2]), torch.tensor([[0.5] * 4, [0.0] * 4]))
