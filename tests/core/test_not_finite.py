"""Which items and users made a step's loss no number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_objectives import DOMAINS, SETTINGS, TRAINABLE, USERS, Rows, a_table
from torch import Tensor

from beeray.core.losses import StepUsers
from beeray.core.step import TrainingStep
from beeray.core.user_items import UserItems, concatenate_users

PEOPLE = UserItems(
    np.cumsum([0, *(len(items) for items in USERS)]),
    np.array([item for items in USERS for item in items], dtype=np.int32),
    np.arange(100, 100 + len(USERS), dtype=np.int32),
)


def a_step(table: Tensor, *, within: bool = False) -> TrainingStep:
    domains = DOMAINS if within else None
    return TrainingStep(lambda ids, mask: table[ids[:, 0]], Rows(), TRAINABLE, SETTINGS, item_domains=domains)


def test_a_loss_that_is_a_number_has_nobody_to_blame() -> None:
    step = a_step(a_table())
    assert torch.isfinite(step.loss(PEOPLE, epoch=0, step=0).loss)
    items, users = step.not_finite()
    assert (len(items), len(users)) == (0, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_items_whose_embeddings_are_no_numbers_are_named_and_users_only_of_their_block(bad: float) -> None:
    table = a_table()
    step = a_step(table, within=True)
    plan = step.planner.plan(PEOPLE, epoch=0, step=0)
    book = int(next(item for item in plan.items if DOMAINS[item] == 1))
    with torch.no_grad():
        table[book] = bad
    assert not torch.isfinite(step.run(plan).loss)
    items, rows = step.not_finite()
    assert items.tolist() == [book]
    readers = {row for row, items in enumerate(USERS) if items[0] >= 30}
    counted = {row for row in readers if plan.enough[row]}
    assert set(rows.tolist()) == counted != set()
    assert plan.users.user_index is not None
    assert plan.users.user_index[rows].tolist() == [100 + row for row in sorted(counted)]


def test_users_whose_own_loss_is_no_number_are_named_where_all_items_are_well() -> None:
    step = a_step(a_table())
    plan = step.planner.plan(PEOPLE, epoch=0, step=0)
    place = int(plan.columns[0])  # an item of the first user

    def loss(embeddings: Tensor, users: StepUsers) -> Tensor:
        return torch.where(users.items[:, place] > 0, float("nan"), 1.0) * embeddings.sum()

    step.user_loss = loss
    assert not torch.isfinite(step.run(plan).loss)
    items, rows = step.not_finite()
    having = [row for row in range(len(USERS)) if place in plan.columns[plan.indptr[row] : plan.indptr[row + 1]]]
    assert items.tolist() == []
    assert rows.tolist() == [row for row in having if plan.enough[row]]
    assert 0 < len(rows) < len(USERS)


def test_who_users_are_goes_with_them() -> None:
    taken = PEOPLE.take(np.array([5, 0]))
    joined = concatenate_users([taken, PEOPLE.slice(1, 3)])
    assert joined.user_index is not None and joined.user_index.tolist() == [105, 100, 101, 102]
    assert joined.indices[joined.indptr[2] : joined.indptr[3]].tolist() == USERS[1]
    nameless = UserItems(PEOPLE.indptr, PEOPLE.indices)
    assert concatenate_users([taken, nameless]).user_index is None
