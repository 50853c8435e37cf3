"""A whole step under each objective against the plain computation: one user after another, no blocks, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from beeray.core.losses import LOSSES, StepUsers, user_loss
from beeray.core.step import StepLoss, StepSettings, TrainingStep
from beeray.core.user_items import UserItems

FILMS, BOOKS, DIM = 30, 20, 6
DOMAINS = np.repeat(np.array([0, 1], dtype=np.int16), [FILMS, BOOKS])
TRAINABLE = np.array([item for item in range(FILMS + BOOKS) if item % 5], dtype=np.int32)
USERS = [[1, 2, 3, 4, 6], [2, 3, 7, 8], [11, 12, 13], [31, 32, 33], [32, 34, 36, 37], [38, 39], [9]]
ORIGINALS = np.random.default_rng(7).standard_normal((FILMS + BOOKS, 5))
ORIGINALS /= np.linalg.norm(ORIGINALS, axis=1, keepdims=True)
SETTINGS = StepSettings(
    max_output=16, max_seq_length=1, token_budget=4, activation_budget_bytes=0, seed=3, temperature=0.3
)


class Rows:
    """Items that are one token each, their own number; a `Tokens`."""

    pad_token_id = 0

    def lengths(self, max_seq_length: int) -> NDArray[np.int32]:
        return np.ones(FILMS + BOOKS, dtype=np.int32)

    def gather(
        self, item_indices: NDArray[np.int32], max_seq_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        return item_indices.astype(np.int64), np.ones(len(item_indices), dtype=np.int32)


def a_table() -> Tensor:
    """An embedding of every item, pointing everywhere, as a parameter."""
    values = np.random.default_rng(1).normal(size=(FILMS + BOOKS, DIM))
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def run(table: Tensor, settings: StepSettings, domains: NDArray[np.int16] | None) -> tuple[StepLoss, NDArray[np.int32]]:
    """The step's result and its items."""
    indptr = np.cumsum([0, *(len(items) for items in USERS)])
    users = UserItems(indptr, np.array([item for items in USERS for item in items], dtype=np.int32))
    step = TrainingStep(
        lambda ids, mask: table[ids[:, 0]], Rows(), TRAINABLE, settings, item_domains=domains, originals=ORIGINALS
    )
    plan = step.planner.plan(users, epoch=0, step=0)
    return step.run(plan), plan.items


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def plain(table: Tensor, drawn: NDArray[np.int32], settings: StepSettings, domains: NDArray[np.int16] | None) -> Tensor:
    """The same loss, user by user and prefix by prefix; differentiable in `table`, float64."""
    loss = user_loss(settings.loss, temperature=settings.temperature)
    losses: list[Tensor] = []
    for user in USERS:
        items = [item for item in drawn if domains is None or domains[item] == domains[user[0]]]
        has = torch.tensor([[float(item in user) for item in items]], dtype=torch.float64)
        if has.sum() < settings.fewest_items:
            continue
        absent = [item for item in user if item not in drawn] if settings.items == "catalog" else []
        widths = [*settings.matryoshka_dims, DIM]
        of_widths = []
        for width in widths:
            rows = unit(table[:, :width])
            rest = rows[absent].sum(dim=0, keepdim=True).detach()
            of_widths.append(loss(rows[items], StepUsers(has, lambda _, rest=rest: rest)))  # type: ignore[misc]
        losses.append(torch.stack(of_widths).mean())
    total = torch.stack(losses).mean()
    if settings.distill_weight:
        rows, before = unit(table[drawn]), torch.from_numpy(ORIGINALS[drawn])
        kept = []
        for place in range(len(drawn)):
            others = [other for other in range(len(drawn)) if other != place]
            similarities = torch.stack([rows[others] @ rows[place], before[others] @ before[place]])
            kept.append(torch.corrcoef(similarities)[0, 1])
        total = total + settings.distill_weight * (1 - torch.stack(kept)).mean()
    return total


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("domains", [None, DOMAINS], ids=["together", "within"])
@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, items="catalog", matryoshka_dims=(3,)),
        replace(SETTINGS, matryoshka_dims=(2, 4), distill_weight=0.7),
    ],
    ids=["bounded", "catalog-prefix", "prefixes-distilled"],
)
def test_loss_and_gradient_of_a_step_are_those_of_the_plain_computation(
    settings: StepSettings, domains: NDArray[np.int16] | None, name: str
) -> None:
    settings = replace(settings, loss=name)
    table = a_table()
    result, drawn = run(table, settings, domains)
    result.loss.backward()
    twin = table.detach().double().requires_grad_()
    expected = plain(twin, drawn, settings, domains)
    expected.backward()
    assert table.grad is not None and twin.grad is not None
    assert result.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(table.grad.double(), twin.grad, atol=2e-5, rtol=1e-4)
    assert float(twin.grad.abs().max()) > 1e-2
    other = plain(twin, drawn, settings, DOMAINS if domains is None else None)
    assert abs(other.item() - expected.item()) > 1e-3, "it matters what users are scored against"


def test_objectives_differ_and_each_setting_counts() -> None:
    softmax = replace(SETTINGS, loss="sampled_softmax")
    chosen = [SETTINGS, replace(SETTINGS, loss="multinomial"), softmax, replace(softmax, temperature=0.1)]
    chosen += [replace(softmax, matryoshka_dims=(2,)), replace(softmax, distill_weight=0.1)]
    losses = sorted(run(a_table(), one, None)[0].loss.item() for one in chosen)
    assert min(np.diff(losses)) > 1e-3, losses
