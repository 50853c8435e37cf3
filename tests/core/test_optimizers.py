"""Optimizers by name, what decays, and what an update is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from beeray.core.optimizers import build_optimizer, parameter_groups


def build(model: nn.Module, name: str, **changes: Any) -> torch.optim.Optimizer:
    chosen: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.98), "epsilon": 1e-6, "weight_decay": 0.5, **changes}
    return build_optimizer(model, name, **chosen)


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("nadam", torch.optim.NAdam)])
def test_a_name_gives_its_optimizer_with_the_settings_given(
    model: nn.Module, name: str, kind: type[torch.optim.Optimizer]
) -> None:
    optimizer = build(model, name)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.9, 0.98), 1e-6)


def test_matrices_decay_while_biases_and_norms_do_not(model: nn.Sequential) -> None:
    decayed, plain = parameter_groups(model, 0.5)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    embedding, linear, norm = model
    assert [id(p) for p in decayed["params"]] == [id(embedding.weight), id(linear.weight)]
    assert [id(p) for p in plain["params"]] == [id(linear.bias), id(norm.weight), id(norm.bias)]


def test_frozen_parameters_are_left_out_and_an_empty_group_too(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = parameter.ndim < 2
    (group,) = parameter_groups(model, 0.5)
    assert group["weight_decay"] == 0.0
    assert len(group["params"]) == 3


@pytest.mark.parametrize("name", ["adamw", "nadam"])
def test_decay_is_decoupled_from_the_gradient(name: str) -> None:
    model = nn.Linear(2, 2)
    before = [p.detach().clone() for p in (model.weight, model.bias)]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build(model, name).step()
    # a zero gradient moves nothing, decay takes lr · weight_decay = 5 % of a matrix
    torch.testing.assert_close(model.weight.detach(), before[0] * 0.95)
    assert torch.equal(model.bias.detach(), before[1])


def test_a_parameter_used_twice_is_updated_once() -> None:
    # the method's reference registers each parameter three times and so moves it three times a step
    shared = nn.Linear(2, 2)
    model = nn.ModuleList([shared, shared, nn.Sequential(shared)])
    groups = parameter_groups(model, 0.0)
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_an_unknown_name_is_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match="optimizer 'sgd': must be nadam or adamw"):
        build(nn.Linear(2, 2), "sgd")
