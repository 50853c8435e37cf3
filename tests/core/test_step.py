"""The step's loss against the formula in dense float64 NumPy, and its gradient against finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_encoder import ListTokens
from torch import Tensor, nn

from beeray.core.step import StepLoss, StepSettings, TrainingStep
from beeray.core.user_items import UserItems

MAX_SEQ_LENGTH = 9
HELD_OUT = [3, 11, 29, 42, 47]
TRAINABLE = np.setdiff1d(np.arange(50, dtype=np.int32), HELD_OUT)
# 21 distinct items; the last two users have too few items to reconstruct one from another
USERS = [[0, 1, 2, 4, 5, 6, 7, 8], [1, 5, 9, 10, 12], [20, 21, 22, 23, 24, 25, 5], [30, 31, 0], [44], []]
POSITIVES = sorted({item for user in USERS for item in user})

CASES = [
    # items, max_output, items that the step is to encode
    ("bounded", 14, 14),
    ("bounded", 40, 40),
    ("bounded", None, 45),
    ("all_positives", 14, len(POSITIVES)),
    ("all_positives", 40, 40),
    ("all_positives", None, 45),
    ("catalog", 14, 14),
    ("catalog", 40, 40),
    ("catalog", None, 45),
]


class TokenMean(nn.Module):
    """An encoder whose embeddings point everywhere, so that scores of either sign occur."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(200, dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            nn.init.normal_(self.table.weight)
        with torch.no_grad():
            self.table.weight[:5] = 0.0  # [CLS] and [SEP] are in every text and would make all alike

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, :, None].float()
        return (self.table(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)


def token_means(table: NDArray[np.float64], tokens: ListTokens) -> NDArray[np.float64]:
    """What `TokenMean` computes, in float64; (items of the catalog, d)."""
    return np.stack([table[tokens.text(item, MAX_SEQ_LENGTH)].mean(axis=0) for item in range(len(tokens.texts))])


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def dense_loss(
    embeddings: NDArray[np.float64],
    drawn: Sequence[int],
    *,
    relu: bool,
    top_k: int | None,
    table: NDArray[np.float64] | None = None,
    subtract: bool = True,
) -> float:
    """mean over users of ‖ normalize(relu(X_in E_in E_outᵀ − X)) − normalize(X) ‖², no batching at all.

    Args:
        embeddings: (items of the catalog, d), not normalised.
        drawn: items of the step.
        table: what stands in for items that were not drawn in user vectors; None leaves them out.
        subtract: False forgets the `− X`.
    """
    complete = np.zeros((len(USERS), len(embeddings)))
    for user, items in enumerate(USERS):
        complete[user, items] = 1.0
    observed = complete[:, drawn]
    fresh = unit(embeddings[drawn])
    vectors = observed @ fresh
    if table is not None:
        others = np.setdiff1d(np.arange(len(embeddings)), drawn)
        vectors = vectors + complete[:, others] @ unit(table[others])
    scores = vectors @ fresh.T - (observed if subtract else 0.0)
    enough = observed.sum(axis=1) >= (2 if table is None else 1)
    scores, observed = scores[enough], observed[enough]
    if top_k is not None:
        columns = np.argsort(-scores, axis=1)[:, :top_k]
        scores, observed = np.take_along_axis(scores, columns, 1), np.take_along_axis(observed, columns, 1)
    if relu:
        scores = np.maximum(scores, 0.0)
    return float(np.square(unit(scores) - unit(observed)).sum(axis=1).mean())


def user_items(users: Sequence[Sequence[int]] = USERS) -> UserItems:
    indptr = np.cumsum([0, *map(len, users)]).astype(np.int64)
    return UserItems(indptr, np.array([item for user in users for item in user], dtype=np.int32))


def build_step(encode: nn.Module, tokens: ListTokens, **settings: Any) -> TrainingStep:
    chosen = {"max_seq_length": MAX_SEQ_LENGTH, "token_budget": 40, **settings}
    return TrainingStep(encode, tokens, TRAINABLE, StepSettings(**chosen))


def run(step: TrainingStep, tokens: ListTokens, number: int = 0) -> tuple[StepLoss, list[int]]:
    """The step's result and the items that it encoded."""
    plan = step.planner.plan(user_items(), epoch=0, step=number)
    drawn = sorted(tokens.gathered[-1].tolist())
    assert drawn == sorted(plan.items.tolist())
    return step.run(plan), drawn


@pytest.mark.parametrize("top_k", [None, 12])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("items", "max_output", "num_items"), CASES)
def test_loss_equals_the_dense_formula(
    tokens: ListTokens, items: str, max_output: int | None, num_items: int, relu: bool, top_k: int | None
) -> None:
    encode = TokenMean()
    step = build_step(encode, tokens, items=items, max_output=max_output, relu=relu, top_k=top_k)
    result, drawn = run(step, tokens)
    embeddings = token_means(encode.table.weight.detach().double().numpy(), tokens)
    table = embeddings if items == "catalog" and max_output is not None else None
    expected = dense_loss(embeddings, drawn, relu=relu, top_k=top_k, table=table)
    assert result.loss.item() == pytest.approx(expected, abs=2e-6)
    assert len(drawn) == len(set(drawn)) == result.num_items == num_items
    assert not set(drawn) & set(HELD_OUT)
    # the comparison must notice a wrong formula
    wrong = [
        dense_loss(embeddings, drawn, relu=relu, top_k=top_k, table=table, subtract=False),
        dense_loss(embeddings, drawn, relu=relu, top_k=12 if top_k is None else None, table=table),
    ]
    if top_k is None or num_items == 14:  # of more items the 12 highest scores are positive, with relu or without
        wrong.append(dense_loss(embeddings, drawn, relu=not relu, top_k=top_k, table=table))
    assert min(abs(loss - expected) for loss in wrong) > 1e-3


@pytest.mark.parametrize(("items", "max_output"), [("bounded", 40), ("catalog", 14)])
def test_gradient_equals_finite_differences_of_the_dense_formula(
    tokens: ListTokens, items: str, max_output: int
) -> None:
    encode = TokenMean()
    step = build_step(encode, tokens, items=items, max_output=max_output, activation_budget_bytes=0)
    result, drawn = run(step, tokens)
    result.loss.backward()
    assert encode.table.weight.grad is not None
    gradient = encode.table.weight.grad.double().numpy()
    weights = encode.table.weight.detach().double().numpy()
    table = token_means(weights, tokens) if items == "catalog" else None  # constant: it carries no gradient

    def loss_at(point: NDArray[np.float64]) -> float:
        return dense_loss(token_means(point, tokens), drawn, relu=True, top_k=None, table=table)

    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal(weights.shape)
        slope = (loss_at(weights + 1e-6 * direction) - loss_at(weights - 1e-6 * direction)) / 2e-6
        assert abs(slope) > 1e-3
        assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_users_with_fewer_than_two_drawn_items_are_skipped(tokens: ListTokens) -> None:
    step = build_step(TokenMean(), tokens, items="bounded", max_output=14)
    result, drawn = run(step, tokens)
    in_step = [len(set(user) & set(drawn)) for user in USERS]
    assert min(in_step) == 0
    assert result.num_users == sum(count >= 2 for count in in_step) < len(USERS)


def test_a_catalog_step_counts_users_with_one_drawn_item(tokens: ListTokens) -> None:
    step = build_step(TokenMean(), tokens, items="catalog", max_output=40)
    result, drawn = run(step, tokens)
    assert 44 in drawn  # the only item of the fifth user
    assert result.num_users == 5
    bounded, _ = run(build_step(TokenMean(), tokens, items="bounded", max_output=40), tokens)
    assert bounded.num_users == 4


def test_a_catalog_whose_items_are_all_drawn_is_not_embedded_a_second_time(tokens: ListTokens) -> None:
    steps = [build_step(TokenMean(), tokens, items="catalog", max_output=size) for size in (14, 1000)]
    assert [step.table is None for step in steps] == [False, True]


def test_a_catalog_step_differs_from_a_bounded_one_through_items_that_were_not_drawn(tokens: ListTokens) -> None:
    losses, lists = zip(
        *(run(build_step(TokenMean(), tokens, items=items, max_output=14), tokens) for items in ("bounded", "catalog")),
        strict=True,
    )
    assert lists[0] == lists[1]
    assert abs(losses[0].loss.item() - losses[1].loss.item()) > 1e-2


def test_a_run_that_goes_on_between_two_refreshes_has_a_table_all_the_same(tokens: ListTokens) -> None:
    encode = TokenMean()
    step = build_step(encode, tokens, items="catalog", max_output=14, catalog_refresh=4)
    result, drawn = run(step, tokens, number=2)
    now = token_means(encode.table.weight.detach().double().numpy(), tokens)
    assert result.loss.item() == pytest.approx(dense_loss(now, drawn, table=now, relu=True, top_k=None), abs=2e-6)


def test_a_table_refreshed_every_second_step_is_stale_in_between_while_drawn_items_are_fresh(
    tokens: ListTokens,
) -> None:
    encode = TokenMean()
    step = build_step(encode, tokens, items="catalog", max_output=14, catalog_refresh=2)
    run(step, tokens, number=0)
    stale = token_means(encode.table.weight.detach().double().numpy(), tokens)
    with torch.no_grad():
        encode.table.weight.copy_(encode.table.weight.flip(1) + 0.5)
    fresh = token_means(encode.table.weight.detach().double().numpy(), tokens)
    result, drawn = run(step, tokens, number=1)
    settings: dict[str, Any] = {"relu": True, "top_k": None}
    assert result.loss.item() == pytest.approx(dense_loss(fresh, drawn, table=stale, **settings), abs=2e-6)
    assert abs(result.loss.item() - dense_loss(fresh, drawn, table=fresh, **settings)) > 1e-3
    result, drawn = run(step, tokens, number=2)
    assert result.loss.item() == pytest.approx(dense_loss(fresh, drawn, table=fresh, **settings), abs=2e-6)


def test_the_seed_the_epoch_and_the_step_fix_which_items_are_drawn(tokens: ListTokens) -> None:
    def drawn(seed: int, epoch: int, step: int) -> list[int]:
        build_step(TokenMean(), tokens, items="bounded", max_output=14, seed=seed).loss(
            user_items(), epoch=epoch, step=step
        )
        return sorted(tokens.gathered[-1].tolist())

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({tuple(drawn(*which)) for which in [(1, 2, 3), (9, 2, 3), (1, 9, 3), (1, 2, 9)]}) == 4


def test_a_step_in_which_no_user_counts_has_loss_zero_and_gradient_zero(tokens: ListTokens) -> None:
    encode = TokenMean()
    result = build_step(encode, tokens, max_output=14).loss(user_items([[5], [], [6]]), epoch=0, step=0)
    result.loss.backward()
    assert (result.loss.item(), result.num_users) == (0.0, 0)
    assert encode.table.weight.grad is not None
    assert torch.equal(encode.table.weight.grad, torch.zeros_like(encode.table.weight))


def test_the_cut_into_micro_batches_changes_nothing_but_the_padding(tokens: ListTokens) -> None:
    results = [
        run(build_step(TokenMean(), tokens, max_output=40, token_budget=token_budget), tokens)[0]
        for token_budget in (1, 40, 10**6)
    ]
    assert results[0].loss.item() == pytest.approx(results[1].loss.item(), abs=1e-6)
    assert results[0].loss.item() == pytest.approx(results[2].loss.item(), abs=1e-6)
    singly, cut, whole = (result.num_padded_tokens for result in results)
    assert results[0].num_tokens == singly < cut < whole
    assert len({result.num_tokens for result in results}) == 1
