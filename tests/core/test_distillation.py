"""What counts as forgotten: similarities between items, whatever the space does otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from beeray.core import blockwise
from beeray.core.distillation import forgetting_per_item
from beeray.core.elsa import normalize_rows


def rows_of(num_items: int, dim: int, seed: int) -> Tensor:
    return normalize_rows(torch.randn(num_items, dim, generator=torch.Generator().manual_seed(seed)).double())


NOW, THEN = rows_of(9, 4, 0), rows_of(9, 6, 1)
EVERY = torch.arange(9)


def test_it_is_one_less_pearsons_correlation_of_the_similarities_to_the_other_items() -> None:
    found = forgetting_per_item(NOW, THEN, torch.tensor([5, 2]))
    now, then = (NOW @ NOW.T).numpy(), (THEN @ THEN.T).numpy()
    for place, item in enumerate((5, 2)):
        others = np.arange(9) != item
        correlation = np.corrcoef(now[item, others], then[item, others])[0, 1]
        assert float(found[place]) == pytest.approx(1 - correlation, abs=1e-9)
        assert abs(np.corrcoef(now[item], then[item])[0, 1] - correlation) > 1e-2, "with itself it would be another"


def test_nothing_is_forgotten_by_turning_the_space_or_giving_it_dimensions() -> None:
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).double()).Q
    wider = torch.cat([THEN @ turn, torch.zeros(9, 5)], dim=1)
    assert float(forgetting_per_item(wider, THEN, EVERY).abs().max()) < 1e-9
    assert float(forgetting_per_item(NOW, THEN, EVERY).min()) > 0.1


def test_what_all_texts_have_in_common_hardly_counts() -> None:
    """Sentence encoders hold all texts alike to some degree: a common direction is no knowledge of any item."""
    common = normalize_rows(torch.cat([THEN, torch.full((9, 1), 3.0)], dim=1))
    assert float((common @ common.T).min()) > 0.8
    assert float(forgetting_per_item(common, THEN, EVERY).abs().max()) < 1e-9


def test_two_items_that_swap_places_are_noticed() -> None:
    swapped = THEN[[1, 0, *range(2, 9)]]
    assert float(forgetting_per_item(swapped, THEN, EVERY).mean()) > 0.1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_and_gradient() -> tuple[float, Tensor]:
        now = NOW.clone().requires_grad_()
        loss = forgetting_per_item(now, THEN, EVERY).mean()
        loss.backward()
        assert now.grad is not None
        return loss.item(), now.grad

    whole, slope = loss_and_gradient()
    monkeypatch.setattr(blockwise, "NUMBERS_AT_ONCE", 18)
    cut, cut_slope = loss_and_gradient()
    assert cut == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(cut_slope, slope)
    assert float(slope.abs().max()) > 1e-2
