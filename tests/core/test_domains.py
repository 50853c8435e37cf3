"""Several domains in one step: who is scored against what, worked out by hand and against each domain alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from beeray.core.elsa import elsa_scores, nmse_per_user, normalize_rows
from beeray.core.negatives import apportion, select_items, select_items_within
from beeray.core.step import StepSettings, TrainingStep
from beeray.core.user_items import UserItems

FILMS, BOOKS = 40, 25
DOMAINS = np.repeat(np.array([0, 1], dtype=np.int16), [FILMS, BOOKS])
TRAINABLE = np.array([item for item in range(FILMS + BOOKS) if item % 5], dtype=np.int32)  # a fifth is held out
FILM_USERS = [[1, 2, 3, 4, 6], [2, 3, 7, 8], [11, 12, 13], [1, 13, 26]]
BOOK_USERS = [[41, 42, 43], [42, 44, 46, 47], [48, 49]]
DIM = 6


class Rows:
    """Items that are one token each, their own number; a `Tokens`."""

    pad_token_id = 0

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def lengths(self, max_seq_length: int) -> NDArray[np.int32]:
        return np.ones(self.num_items, dtype=np.int32)

    def gather(
        self, item_indices: NDArray[np.int32], max_seq_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        return item_indices.astype(np.int64), np.ones(len(item_indices), dtype=np.int32)


def a_table(num_items: int = FILMS + BOOKS, seed: int = 1) -> Tensor:
    """An embedding of every item, pointing everywhere, as a parameter."""
    values = np.random.default_rng(seed).normal(size=(num_items, DIM))
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def user_items(users: list[list[int]]) -> UserItems:
    indptr = np.cumsum([0, *(len(items) for items in users)])
    return UserItems(indptr, np.array([item for items in users for item in items], dtype=np.int32))


def a_step(
    table: Tensor,
    trainable: NDArray[np.int32] = TRAINABLE,
    domains: NDArray[np.int16] | None = DOMAINS,
    **settings: Any,
) -> TrainingStep:
    chosen = StepSettings(**{"max_output": 20, "max_seq_length": 1, "seed": 3, **settings})
    return TrainingStep(lambda ids, mask: table[ids[:, 0]], Rows(len(table)), trainable, chosen, item_domains=domains)


def test_parts_are_in_proportion_and_the_rest_goes_to_the_largest() -> None:
    def parts(total: int, weights: list[int], limits: list[int]) -> list[int]:
        return apportion(total, np.array(weights), np.array(limits)).tolist()

    assert parts(10, [3, 1], [99, 99]) == [8, 2]  # 7.5 and 2.5: a tie, the first
    assert parts(10, [2, 5], [99, 99]) == [3, 7]  # 2.86 and 7.14
    assert parts(10, [1, 1, 0], [99, 99, 99]) == [5, 5, 0]
    assert parts(10, [3, 1], [4, 99]) == [4, 6]  # films are only four: books take what is left
    assert parts(10, [3, 1], [4, 5]) == [4, 5]
    assert parts(10, [0, 0], [4, 5]) == [0, 0]


@pytest.mark.parametrize("mode", ["bounded", "all_positives"])
@pytest.mark.parametrize("max_output", [6, 12, 30])
def test_negatives_go_where_users_are(mode: str, max_output: int) -> None:
    positives = [np.arange(1, 9, dtype=np.int32), np.array([41, 42, 43, 44], dtype=np.int32)]
    trainable = [np.arange(FILMS, dtype=np.int32), np.arange(FILMS, FILMS + BOOKS, dtype=np.int32)]
    drawn = select_items_within(mode, positives, trainable, max_output, np.random.default_rng(0))
    assert (np.diff(drawn) > 0).all()
    films = int((drawn < FILMS).sum())
    expected = {6: (4, 2), 12: (8, 4), 30: (20, 10)}[max_output]
    assert (films, len(drawn) - films) == ((8, 4) if mode == "all_positives" and max_output == 6 else expected)
    if max_output >= 12:
        assert set(np.concatenate(positives)) <= set(drawn)


def test_items_of_a_domain_nobody_has_are_not_encoded_and_the_others_are_drawn_as_without_it() -> None:
    positives, books = np.array([41, 44, 47], dtype=np.int32), np.arange(FILMS, FILMS + BOOKS, dtype=np.int32)
    nothing, films = np.empty(0, dtype=np.int32), np.arange(FILMS, dtype=np.int32)
    mixed = select_items_within("bounded", [nothing, positives], [films, books], 9, np.random.default_rng(4))
    alone = select_items("bounded", positives - FILMS, books - FILMS, 9, np.random.default_rng(4))
    assert mixed.tolist() == (alone + FILMS).tolist() and len(mixed) == 9
    everywhere = select_items(
        "bounded", positives, np.arange(FILMS + BOOKS, dtype=np.int32), 9, np.random.default_rng(4)
    )
    assert everywhere.min() < FILMS


@pytest.mark.parametrize(
    "settings", [{}, {"items": "catalog"}, {"relu": False, "top_k": 5}, {"items": "all_positives"}]
)
def test_a_step_of_books_alone_has_the_gradient_of_a_run_on_books_alone(settings: dict[str, Any]) -> None:
    mixed, alone = a_table(), a_table()[FILMS:].detach().clone().requires_grad_()
    books = TRAINABLE[TRAINABLE >= FILMS] - FILMS
    shifted = user_items([[item - FILMS for item in items] for items in BOOK_USERS])
    loss = a_step(mixed, **settings, max_output=12).loss(user_items(BOOK_USERS), epoch=1, step=2).loss
    single = a_step(alone, books, None, **settings, max_output=12).loss(shifted, epoch=1, step=2).loss
    loss.backward()
    single.backward()
    assert mixed.grad is not None and alone.grad is not None
    assert loss.item() == single.item()
    assert torch.equal(mixed.grad[FILMS:], alone.grad) and alone.grad.abs().max() > 0.01
    assert not mixed.grad[:FILMS].any()
    across = a_step(a_table(), domains=None, **settings, max_output=12)
    assert across.loss(user_items(BOOK_USERS), epoch=1, step=2).loss.item() != single.item()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("top_k", [None, 4])
def test_a_mixed_step_is_the_mean_of_users_losses_over_their_own_domain(relu: bool, top_k: int | None) -> None:
    table = a_table()
    step = a_step(table, relu=relu, top_k=top_k)
    users = user_items([FILM_USERS[0], BOOK_USERS[0], FILM_USERS[1], BOOK_USERS[1], *FILM_USERS[2:], BOOK_USERS[2]])
    plan = step.planner.plan(users, epoch=0, step=0)
    assert len(plan.items) == 20 and plan.num_users == 7
    by_hand = []
    for domain, theirs in enumerate((FILM_USERS, BOOK_USERS)):
        items = plan.items[DOMAINS[plan.items] == domain]
        matrix = torch.tensor([[float(item in user) for item in items] for user in theirs])
        embeddings = normalize_rows(table[torch.from_numpy(items.astype(np.int64))])
        scores = elsa_scores(matrix @ embeddings, embeddings, matrix)
        by_hand.append(nmse_per_user(scores, matrix, relu=relu, top_k=top_k))
    assert step.run(plan).loss.item() == pytest.approx(torch.cat(by_hand).mean().item(), abs=1e-6)


@pytest.mark.parametrize(("domains", "alike"), [(DOMAINS, True), (None, False)], ids=["within", "across"])
def test_the_other_domains_embeddings_do_not_matter_within_and_do_across(
    domains: NDArray[np.int16] | None, alike: bool
) -> None:
    losses = []
    for seed in (5, 6):  # films' embeddings differ, books' do not
        table = torch.cat([a_table(FILMS, seed), a_table(BOOKS, 9)])
        step = a_step(table, domains=domains, items="all_positives")
        plan = step.planner.plan(user_items([*FILM_USERS, *BOOK_USERS]), epoch=0, step=0)
        embeddings = normalize_rows(table[torch.from_numpy(plan.items.astype(np.int64))])
        per_user = [step._losses(plan, block, embeddings) for block in plan.blocks()]
        losses.append(torch.cat(per_user)[len(FILM_USERS) :])
    assert torch.equal(*losses) == alike


def test_a_rank_without_users_of_a_domain_has_its_block_all_the_same() -> None:
    step = a_step(a_table())
    plan = step.planner.plan(user_items([*FILM_USERS, *BOOK_USERS]), epoch=0, step=0)
    films, books = plan.blocks()
    assert (films.users.tolist(), books.users.tolist()) == ([True] * 4 + [False] * 3, [False] * 4 + [True] * 3)
    assert films.items is not None and books.items is not None
    assert sorted([*films.items, *books.items]) == list(range(20))
    nobody = step.planner.plan(user_items([]), epoch=0, step=0)
    assert all(not block.users.any() for block in nobody.blocks())
