"""The published two-pass algorithm, padded to the catalog's longest text, has the gradient of beeray's step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import ListTokens
from torch import Tensor

from beeray.core.encoder import Encoder
from beeray.core.step import StepSettings, TrainingStep
from beeray.core.user_items import UserItems

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from baselines.two_pass_padded import TwoPassPadded, pad_catalog

LENGTH, ROWS = 32, 7
ITEMS = np.arange(0, 50, 2, dtype=np.int32)
USERS = [[0, 2, 4, 10, 48], [2, 6, 30, 32], [8, 12, 14, 40, 44, 46], [4, 44], [16, 18, 20, 22, 24, 26, 28, 34]]


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def of_beeray(encoder: Encoder, tokens: ListTokens, budget_bytes: int) -> tuple[float, dict[str, Tensor]]:
    indptr = np.cumsum([0, *map(len, USERS)]).astype(np.int64)
    users = UserItems(indptr, np.array([item for user in USERS for item in user], dtype=np.int32))
    settings = StepSettings(
        max_output=None, max_seq_length=LENGTH, token_budget=64, activation_budget_bytes=budget_bytes
    )
    encoder.zero_grad()
    loss = TrainingStep(encoder, tokens, ITEMS, settings).loss(users, epoch=0, step=0).loss
    loss.backward()
    return loss.item(), gradients(encoder)


def of_two_passes(encoder: Encoder, tokens: ListTokens, items: np.ndarray) -> tuple[float, dict[str, Tensor]]:
    texts = [np.array(tokens.text(item, LENGTH)) for item in range(len(tokens.texts))]
    user_items = torch.tensor([[float(item in user) for item in items.tolist()] for user in USERS])
    encoder.zero_grad()
    loss = TwoPassPadded(encoder, *pad_catalog(texts, tokens.pad_token_id), rows=ROWS).backward(items, user_items)
    return loss.item(), gradients(encoder)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("budget_bytes", [0, 2**40])
def test_two_padded_passes_have_the_gradient_of_one_recomputed_or_kept_step(
    open_encoder: Callable[..., Encoder], tokens: ListTokens, budget_bytes: int
) -> None:
    encoder = open_encoder(dropout=0.0).train()
    loss, ours = of_beeray(encoder, tokens, budget_bytes)
    published, theirs = of_two_passes(encoder, tokens, ITEMS)
    assert max(float(gradient.abs().max()) for gradient in ours.values()) > 1e-2
    assert loss == pytest.approx(published, abs=1e-5)
    assert largest_difference(ours, theirs) <= 1e-5


def test_the_comparison_notices_one_exchanged_item_and_two_dropout_masks(
    open_encoder: Callable[..., Encoder], tokens: ListTokens
) -> None:
    encoder = open_encoder(dropout=0.0).train()
    _, ours = of_beeray(encoder, tokens, 0)
    exchanged = np.where(ITEMS == 36, 37, ITEMS).astype(np.int32)  # of no user, but a column of every row
    assert largest_difference(ours, of_two_passes(encoder, tokens, exchanged)[1]) > 1e-3
    noisy = open_encoder(dropout=0.1).train()
    assert largest_difference(of_beeray(noisy, tokens, 0)[1], of_two_passes(noisy, tokens, ITEMS)[1]) > 1e-3
