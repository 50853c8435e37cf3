"""An encoder's arithmetic against the count that one can do by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_encoder import HIDDEN

from beeray.core.encoder import Encoder
from beeray.core.flops import EncoderFlops, count_flops, measure_peak_tflops

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


def test_the_peak_is_a_rate_that_a_product_of_the_same_size_reaches() -> None:
    peak = measure_peak_tflops("cpu", torch.float32)
    assert 1e-3 < peak < 100  # between a very slow core and a large GPU
