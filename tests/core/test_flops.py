"""An encoder's arithmetic against the count that one can do by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_encoder import HIDDEN

from beeray.core.encoder import Encoder
from beeray.core.flops import EncoderFlops, count_flops, measure_peak_tflops
from beeray.core.frozen_layers import freeze_lower_layers

LAYERS, INNER = 2, 64


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bert_of_two_layers_is_counted_as_by_hand(open_encoder: Callable[..., Encoder], attention: str) -> None:
    encoder = open_encoder(attention=attention)
    flops = count_flops(encoder.train())
    # a layer: query, key, value, output (d × d each) and two products with d × inner; 2 operations a weight
    assert flops.per_token == LAYERS * 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    # queries with keys, and weights with values: 2 d operations each for a pair of tokens
    assert flops.per_token_pair == LAYERS * 2 * 2 * HIDDEN
    assert encoder.training


def test_a_step_is_forward_and_twice_as_much_backward() -> None:
    # 3 × (10 × 7 tokens + 2 × (3² + 4²) pairs) = 360
    assert EncoderFlops(per_token=10, per_token_pair=2).of_step(3 + 4, 3**2 + 4**2) == 360


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_layers_held_fixed_have_no_backward_pass(open_encoder: Callable[..., Encoder], attention: str) -> None:
    encoder = open_encoder(attention=attention)
    assert count_flops(encoder).passes == 3.0
    freeze_lower_layers(encoder.model, 1)
    frozen = count_flops(encoder)
    # of two equal layers forward and, of one, backward: 1 + 2/2, less the gradient of what goes into its products
    into_products = 3 * HIDDEN * HIDDEN / (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) / 2
    assert frozen.passes == pytest.approx(2.0 - into_products, abs=0.1)
    assert frozen.per_token == count_flops(open_encoder()).per_token
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_peak_is_a_rate_that_a_product_of_the_same_size_reaches() -> None:
    peak = measure_peak_tflops("cpu", torch.float32)
    assert 1e-3 < peak < 100  # between a very slow core and a large GPU
