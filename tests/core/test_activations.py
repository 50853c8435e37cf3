"""Kept or recomputed, the gradient is the same, dropout masks included; the budget decides only the work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_encoder import ListTokens
from torch import Tensor
from torch.nn import functional

from beeray.core.activations import ActivationBudget
from beeray.core.batching import deal_by_tokens, micro_batches
from beeray.core.encoder import Encoder
from beeray.core.step import StepLoss, StepSettings, TrainingStep, seed_dropout
from beeray.core.user_items import UserItems

OpenEncoder = Callable[..., Encoder]

NUM_ITEMS, TEXT_TOKENS, TOKEN_BUDGET = 16, 8, 32
HUGE = 2**40
USERS = UserItems(np.array([0, 5, 9, 12]), np.array([0, 3, 5, 7, 9, 1, 3, 11, 15, 2, 8, 14], dtype=np.int32))


@pytest.fixture
def even_tokens() -> ListTokens:
    """16 texts of 8 tokens: 4 micro-batches of 32 tokens."""
    generator = np.random.default_rng(3)
    return ListTokens([[2, *generator.integers(5, 125, TEXT_TOKENS - 2).tolist(), 3] for _ in range(NUM_ITEMS)])


def settings(budget_bytes: int, seed: int = 42) -> StepSettings:
    return StepSettings(
        max_output=None,
        max_seq_length=32,
        token_budget=TOKEN_BUDGET,
        activation_budget_bytes=budget_bytes,
        seed=seed,
    )


def step_gradients(
    encoder: Encoder, tokens: ListTokens, budget_bytes: int, seed: int = 42
) -> tuple[dict[str, Tensor], StepLoss]:
    encoder.train()
    encoder.zero_grad()
    trainable = np.arange(NUM_ITEMS, dtype=np.int32)
    result = TrainingStep(encoder, tokens, trainable, settings(budget_bytes, seed)).loss(USERS, epoch=0, step=0)
    result.loss.backward()
    return gradients(encoder), result


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def direct_gradients(encoder: Encoder, tokens: ListTokens) -> dict[str, Tensor]:
    """The same loss as one autograd graph: no checkpoint, no budget, the formula written out."""
    encoder.train()
    encoder.zero_grad()
    items = np.arange(NUM_ITEMS, dtype=np.int32)
    shares = deal_by_tokens(tokens.lengths(32), 1, TOKEN_BUDGET)
    seed_dropout(42, 0)
    rows = [
        encoder(batch.input_ids, batch.attention_mask)
        for batch in micro_batches(tokens, items[shares.order], shares.cuts, max_seq_length=32)
    ]
    embeddings = functional.normalize(torch.cat(rows), dim=1)
    observed = torch.zeros(USERS.num_users, NUM_ITEMS)
    for user in range(USERS.num_users):
        liked = USERS.indices[USERS.indptr[user] : USERS.indptr[user + 1]]
        observed[user, torch.from_numpy(np.isin(shares.order, liked))] = 1.0
    scores = (observed @ embeddings @ embeddings.T - observed).relu()
    cosines = functional.cosine_similarity(scores, observed, dim=1)
    (2 - 2 * cosines).mean().backward()
    return gradients(encoder)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def two_and_a_half_micro_batches(encoder: Encoder, tokens: ListTokens) -> int:
    """Budget in bytes, from the cost that a step measures on this machine."""
    encoder.train()
    step = TrainingStep(encoder, tokens, np.arange(NUM_ITEMS, dtype=np.int32), settings(HUGE))
    step.loss(USERS, epoch=0, step=0)
    assert step.activations.bytes_per_token is not None
    return int(2.5 * TOKEN_BUDGET * step.activations.bytes_per_token)


def test_recomputed_kept_and_mixed_steps_have_the_gradient_of_one_plain_graph_with_dropout_on(
    open_encoder: OpenEncoder, even_tokens: ListTokens
) -> None:
    encoder = open_encoder()
    direct = direct_gradients(encoder, even_tokens)
    assert max(float(gradient.abs().max()) for gradient in direct.values()) > 1e-2
    partial = two_and_a_half_micro_batches(encoder, even_tokens)
    for budget_bytes, num_recomputed in [(0, 4), (HUGE, 0), (partial, 2)]:
        found, result = step_gradients(encoder, even_tokens, budget_bytes)
        assert largest_difference(found, direct) <= 1e-6, budget_bytes
        assert result.num_padded_tokens == result.num_tokens == NUM_ITEMS * TEXT_TOKENS
        assert result.num_recomputed_tokens == num_recomputed * TOKEN_BUDGET
    another_seed, _ = step_gradients(encoder, even_tokens, 0, seed=43)
    assert largest_difference(another_seed, direct) > 1e-3


def test_recomputed_and_kept_steps_agree_in_bf16_with_dropout_on(open_encoder: OpenEncoder, tokens: ListTokens) -> None:
    encoder = Encoder(open_encoder().model, precision="bf16")
    recomputed, _ = step_gradients(encoder, tokens, 0)
    kept, _ = step_gradients(encoder, tokens, HUGE)
    assert largest_difference(recomputed, kept) <= 1e-6
    full, _ = step_gradients(open_encoder(), tokens, HUGE)
    assert largest_difference(kept, full) > 1e-4


def test_gradients_agree_on_texts_of_many_lengths_too(open_encoder: OpenEncoder, tokens: ListTokens) -> None:
    encoder = open_encoder()
    recomputed, result = step_gradients(encoder, tokens, 0)
    kept, _ = step_gradients(encoder, tokens, HUGE)
    assert largest_difference(recomputed, kept) <= 1e-6
    assert result.num_recomputed_tokens == result.num_padded_tokens > result.num_tokens


def test_the_second_forward_of_a_recomputed_step_sees_the_dropout_masks_of_the_first(
    open_encoder: OpenEncoder, even_tokens: ListTokens
) -> None:
    encoder = open_encoder()
    passes: list[Tensor] = []
    encoder.model[0].register_forward_hook(
        lambda module, inputs, output: passes.append(output["token_embeddings"].detach().clone())
    )
    step_gradients(encoder, even_tokens, 0)
    assert len(passes) == 8
    first, second = passes[:4], passes[4:]
    for embeddings in first:
        assert sum(torch.equal(embeddings, again) for again in second) == 1


def test_a_table_refresh_switches_dropout_off_and_on_again(open_encoder: OpenEncoder, even_tokens: ListTokens) -> None:
    encoder = open_encoder().train()
    modes: list[bool] = []
    encoder.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    chosen = StepSettings(items="catalog", max_output=4, max_seq_length=32, token_budget=TOKEN_BUDGET)
    trainable = np.arange(NUM_ITEMS, dtype=np.int32)
    TrainingStep(encoder, even_tokens, trainable, chosen).loss(USERS, epoch=0, step=0)
    assert modes == [False] * 4 + [True]  # the catalog's 16 texts without dropout, then 4 drawn ones with it
    assert encoder.training


def test_a_budget_of_zero_admits_nothing_and_an_unmeasured_one_admits_the_first() -> None:
    assert not ActivationBudget(0).admits(1)
    assert ActivationBudget(1).admits(10**9)


def test_a_budget_admits_until_it_is_used_up_and_anew_each_step() -> None:
    budget = ActivationBudget(1000)
    budget.bytes_per_token = 10.0
    for _ in range(2):
        budget.start_step()
        assert [budget.admits(num_tokens) for num_tokens in (60, 50, 40, 1)] == [True, False, True, False]


def test_the_measured_cost_is_the_bytes_that_autograd_keeps_per_token() -> None:
    activations = torch.ones(4, 25, requires_grad=True) * 1.0  # float32: 400 bytes
    budget = ActivationBudget(1000)
    budget.start_step()
    budget.measure(lambda: activations.square().square(), 10)  # keeps its input and its square, 400 bytes each
    assert budget.bytes_per_token == 80.0
    assert budget.admits(2)  # 1000 − 800 are left, 160 of them used
    assert not budget.admits(1)


def test_the_measured_cost_does_not_count_the_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(100, 100))  # 40,000 bytes that are there anyhow
    inputs = torch.ones(2, 100, requires_grad=True) * 1.0  # 800 bytes
    budget = ActivationBudget(10**6)
    budget.start_step()
    budget.measure(lambda: inputs @ weight, 2)
    assert budget.bytes_per_token == 400.0
