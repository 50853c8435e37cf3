"""Dropout from sixteen bits: its rate, scale, gradient, seed; and that the encoder's dropout layers use it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from beeray.core.cpu_kernels import CpuKernels
from beeray.core.dropout import LEVELS, drop


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_the_others_scaled(probability: float) -> None:
    torch.manual_seed(0)
    values = torch.full((1001, 1003), 2.0)
    dropped = drop(values, probability)
    share = float((dropped == 0).float().mean())
    assert share == pytest.approx(probability, abs=0.002)  # four standard deviations
    rounded = round(probability * LEVELS) / LEVELS
    assert dropped.unique().tolist() == pytest.approx([0.0, 2.0 / (1.0 - rounded)], rel=1e-6)
    neighbours = (dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)
    assert float(neighbours.float().mean()) == pytest.approx(probability**2, abs=0.003)


def test_the_gradient_passes_where_values_did() -> None:
    values = torch.ones(1000, requires_grad=True)
    dropped = drop(values, 0.25)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())
    assert 0 < int((dropped == 0).sum()) < 1000


def test_a_seed_fixes_the_mask_and_two_draws_differ() -> None:
    values = torch.ones(257, dtype=torch.bfloat16)
    torch.manual_seed(3)
    first, second = drop(values, 0.5), drop(values, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, drop(values, 0.5))
    assert not torch.equal(first, second)
    assert first.dtype == torch.bfloat16


def test_dropout_layers_draw_so_within_the_context_and_stay_off_in_eval_mode() -> None:
    layer, values = nn.Dropout(0.3), torch.ones(64, 64)
    torch.manual_seed(1)
    expected = drop(values, 0.3)
    torch.manual_seed(1)
    plain = layer(values)
    torch.manual_seed(1)
    with CpuKernels():
        inside = layer(values)
        assert torch.equal(layer.eval()(values), values)
        assert torch.equal(functional.dropout(values, 0.0), values)
        assert not functional.dropout(values, 1.0).any()
    assert torch.equal(inside, expected)
    assert not torch.equal(inside, plain)
