"""Optimizers by their names in the field; no decay on biases and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FUSED_DEVICES = {"cpu", "cuda"}
"""Where torch updates all of a parameter in one pass over it."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with decay, vectors (biases, norms) without."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module, name: str, *, lr: float, betas: tuple[float, float], epsilon: float, weight_decay: float
) -> torch.optim.Optimizer:
    """NAdam or AdamW over a model's trainable parameters (fused where the device offers it).

    Raises:
        ValueError: unknown name.
    """
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        devices = {p.device.type for group in groups for p in group["params"]}
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=epsilon, fused=devices <= FUSED_DEVICES or None)
    if name == "nadam":
        return torch.optim.NAdam(groups, lr=lr, betas=betas, eps=epsilon, decoupled_weight_decay=True)
    raise ValueError(f"optimizer {name!r}: must be nadam or adamw")
