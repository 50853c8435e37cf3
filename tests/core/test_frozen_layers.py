"""Layers held fixed: which parameters those are, and that nothing of them is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoder import ListTokens
from torch import Tensor
from transformers import MPNetConfig, MPNetModel

from beeray.core.encoder import Encoder
from beeray.core.frozen_layers import FrozenLayers, _needed_by, freeze_lower_layers, transformer_layers
from beeray.core.step import StepLoss, StepSettings, TrainingStep
from beeray.core.user_items import UserItems
from beeray.errors import EncoderError

OpenEncoder = Callable[..., Encoder]
EVERY = np.arange(16, dtype=np.int32)
USERS = UserItems(np.array([0, 5, 9, 12]), np.array([0, 3, 5, 7, 9, 1, 3, 11, 15, 2, 8, 14], dtype=np.int32))
HUGE = 2**40


def step_of(encoder: Encoder, tokens: ListTokens, budget: int, frozen: FrozenLayers | None, **choices: Any) -> StepLoss:
    """A step with its gradient; half of `budget` suffices for what frozen layers gave unless it is 0."""
    settings = StepSettings(
        max_output=16, max_seq_length=32, token_budget=48, activation_budget_bytes=budget, **choices
    )
    encoder.train()
    encoder.zero_grad()
    step = TrainingStep(encoder, tokens, EVERY, settings, frozen=frozen)
    step.activations.bytes_per_token = 10.0**9  # no micro-batch may be kept, unless the budget is huge
    result = step.loss(USERS, epoch=0, step=0)
    result.loss.backward()
    return result


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def counted(module: torch.nn.Module) -> list[int]:
    """Grows by an entry whenever the module runs."""
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_the_embeddings_and_the_lowest_layers_are_frozen_and_the_rest_is_not(open_encoder: OpenEncoder) -> None:
    encoder = open_encoder()
    freeze_lower_layers(encoder.model, 1)
    left = {name.removeprefix("model.0.model.") for name, p in encoder.named_parameters() if p.requires_grad}
    assert left and all(name.startswith(("encoder.layer.1.", "pooler.")) for name in left)
    assert {name.split(".")[3] for name in left if name.startswith("encoder.layer.1.")} >= {"attention", "output"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_steps_have_the_gradient_of_kept_ones_with_dropout_on(
    open_encoder: OpenEncoder, tokens: ListTokens, precision: str
) -> None:
    encoder = Encoder(open_encoder().model, precision)
    frozen = freeze_lower_layers(encoder.model, 1)
    attention = transformer_layers(encoder.model)[0].attention
    kept = step_of(encoder, tokens, HUGE**2, frozen)
    expected = gradients(encoder)
    assert kept.num_recomputed_tokens == 0
    calls = counted(attention)
    remembered = step_of(encoder, tokens, 10**8, frozen)
    once = len(calls)
    assert remembered.num_recomputed_tokens == remembered.num_padded_tokens
    found = gradients(encoder)
    assert found.keys() == expected.keys() and not any("layer.0." in name or "embeddings" in name for name in found)
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) <= 1e-6
    assert max(float(gradient.abs().max()) for gradient in found.values()) > 1e-3
    step_of(encoder, tokens, 0, frozen)  # no room to remember anything
    assert len(calls) - once == 2 * once, "the frozen layer ran once a micro-batch where its output was remembered"
    assert max(float((value - expected[name]).abs().max()) for name, value in gradients(encoder).items()) <= 1e-6
    step_of(encoder, tokens, HUGE**2, frozen, seed=7)
    assert max(float((value - expected[name]).abs().max()) for name, value in gradients(encoder).items()) > 1e-3


def test_a_frozen_layer_has_no_dropout_and_the_others_keep_theirs(open_encoder: OpenEncoder) -> None:
    encoder = open_encoder().train()
    freeze_lower_layers(encoder.model, 1)
    outputs: dict[int, list[Tensor]] = {0: [], 1: []}
    for number, layer in enumerate(transformer_layers(encoder.model)):
        layer.register_forward_hook(
            lambda m, i, o, number=number: outputs[number].append(o if isinstance(o, Tensor) else o[0])
        )
    ones = torch.full((1, 6), 9)
    for _ in range(2):
        encoder(ones, torch.ones_like(ones))
    assert torch.equal(*outputs[0])
    assert not torch.equal(*outputs[1])


def test_a_position_bias_that_all_layers_share_is_frozen_with_the_lowest() -> None:
    """MPNet's: it stands after the layers, and a gradient to it would go through every one of them."""
    config = MPNetConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    model = torch.nn.ModuleList([_Features(MPNetModel(config))])
    model.device = torch.device("cpu")  # type: ignore[assignment]
    layers = transformer_layers(model)  # type: ignore[arg-type]
    needed = _needed_by(model, layers[0])  # type: ignore[arg-type]
    names = {name for name, p in model.named_parameters() if any(p is one for one in needed)}
    assert "0.model.encoder.relative_attention_bias.weight" in names
    assert "0.model.embeddings.word_embeddings.weight" in names
    assert not any(".layer.1." in name or "pooler" in name for name in names)


class _Features(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.model = network

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"token_embeddings": self.model(**features)[0]}


def test_more_layers_than_there_are_and_layers_that_are_not_to_be_found_are_refused(open_encoder: OpenEncoder) -> None:
    model = open_encoder().model
    with pytest.raises(EncoderError, match=r"train\.freeze_layers is 3: the encoder has 2 layers; lower it"):
        freeze_lower_layers(model, 3)
    model[0].model.config.num_hidden_layers = 5
    with pytest.raises(EncoderError, match=r"the layers of BertModel are not to be found"):
        freeze_lower_layers(model, 1)
