"""Shares of equal tokens, common cuts, and micro-batches that hold exactly their texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import ListTokens

from beeray.core import batching
from beeray.core.batching import Shares, deal_by_tokens, micro_batches

TEXT_LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)


def rows_of(shares: Shares, rank: int, cut: slice) -> np.ndarray:
    return shares.of_rank(rank)[cut]


def test_four_texts_are_dealt_in_snake_order() -> None:
    shares = deal_by_tokens(np.array([5, 9, 7, 3], dtype=np.int32), 2, 9)
    # longest first: 9, 7, 5, 3 → ranks 0, 1, 1, 0, so that both hold 12 tokens
    assert shares.of_rank(0).tolist() == [1, 3]
    assert shares.of_rank(1).tolist() == [2, 0]
    assert shares.counts == [2, 2]
    assert shares.cuts == [slice(0, 1), slice(1, 2)]
    assert shares.cut_tokens == [9, 5]


@given(lengths=TEXT_LENGTHS, world_size=st.integers(1, 5), token_budget=st.integers(1, 200))
def test_every_item_is_dealt_and_cut_exactly_once(lengths: list[int], world_size: int, token_budget: int) -> None:
    shares = deal_by_tokens(np.array(lengths, dtype=np.int32), world_size, token_budget)
    dealt = [rows_of(shares, rank, cut) for rank in range(world_size) for cut in shares.cuts]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(lengths)))
    assert shares.order.tolist() == np.concatenate([shares.of_rank(rank) for rank in range(world_size)]).tolist()
    assert sum(shares.counts) == len(lengths)
    assert max(shares.counts) - min(shares.counts) <= 1


@given(lengths=TEXT_LENGTHS, world_size=st.integers(1, 5))
def test_ranks_differ_by_at_most_the_longest_text(lengths: list[int], world_size: int) -> None:
    array = np.array(lengths, dtype=np.int32)
    shares = deal_by_tokens(array, world_size, 64)
    held = [int(array[shares.of_rank(rank)].sum()) for rank in range(world_size)]
    assert max(held) - min(held) <= max(lengths)


def test_dealing_in_rows_instead_would_not_balance_tokens() -> None:
    lengths = np.array([40, 2] * 20, dtype=np.int32)
    shares = deal_by_tokens(lengths, 2, 64)
    assert abs(lengths[shares.of_rank(0)].sum() - lengths[shares.of_rank(1)].sum()) <= 40
    assert abs(lengths[0::2].sum() - lengths[1::2].sum()) == 760


@given(lengths=TEXT_LENGTHS, world_size=st.integers(1, 5), token_budget=st.integers(1, 200))
def test_a_micro_batch_keeps_the_budget_of_padded_tokens_on_every_rank(
    lengths: list[int], world_size: int, token_budget: int
) -> None:
    array = np.array(lengths, dtype=np.int32)
    shares = deal_by_tokens(array, world_size, token_budget)
    for cut, cut_tokens in zip(shares.cuts, shares.cut_tokens, strict=True):
        widths = [array[rows_of(shares, rank, cut)] for rank in range(world_size)]
        padded = max(len(texts) * int(texts.max()) for texts in widths if len(texts))
        assert padded <= cut_tokens
        assert cut_tokens <= token_budget or cut.stop - cut.start == 1


@given(lengths=TEXT_LENGTHS, world_size=st.integers(1, 5), token_budget=st.integers(1, 200))
def test_all_ranks_cut_alike_and_their_cuts_cover_the_largest_share(
    lengths: list[int], world_size: int, token_budget: int
) -> None:
    shares = deal_by_tokens(np.array(lengths, dtype=np.int32), world_size, token_budget)
    assert shares.cuts[0].start == 0
    assert [cut.start for cut in shares.cuts[1:]] == [cut.stop for cut in shares.cuts[:-1]]
    assert shares.cuts[-1].stop == max(shares.counts)


@given(lengths=TEXT_LENGTHS, token_budget=st.integers(1, 200), max_seq_length=st.integers(2, 50))
def test_padded_micro_batches_give_back_the_texts(lengths: list[int], token_budget: int, max_seq_length: int) -> None:
    tokens = ListTokens([[2, *range(10, 8 + length), 3] for length in lengths])
    items = np.arange(len(lengths), dtype=np.int32)
    shares = deal_by_tokens(tokens.lengths(max_seq_length), 1, token_budget)
    seen: list[list[int]] = []
    for batch in micro_batches(tokens, items[shares.order], shares.cuts, max_seq_length=max_seq_length):
        assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
        assert batch.num_tokens == int(batch.attention_mask.sum())
        assert batch.num_padded_tokens == batch.input_ids.numel()
        assert bool((batch.input_ids[batch.attention_mask == 0] == tokens.pad_token_id).all())
        rows = zip(batch.input_ids, batch.attention_mask, strict=True)
        seen += [ids[mask.bool()].tolist() for ids, mask in rows]
    assert seen == [tokens.text(item, max_seq_length) for item in shares.order.tolist()]


def test_padding_is_on_the_right_and_no_wider_than_the_longest_text() -> None:
    tokens = ListTokens([[2, 7, 8, 3], [2, 3]])
    (batch,) = micro_batches(tokens, np.array([0, 1], dtype=np.int32), [slice(0, 2)], max_seq_length=9)
    assert batch.input_ids.tolist() == [[2, 7, 8, 3], [2, 3, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert (batch.num_items, batch.num_tokens, batch.num_padded_tokens) == (2, 6, 8)


def test_a_rank_without_an_item_in_a_cut_gets_a_row_of_padding_and_no_item() -> None:
    tokens = ListTokens([[2, 7, 3], [2, 3], [2, 9, 3]])
    shares = deal_by_tokens(tokens.lengths(9), 2, 3)
    assert shares.counts == [2, 1]
    items = np.arange(3, dtype=np.int32)[shares.of_rank(1)]
    first, second = micro_batches(tokens, items, shares.cuts, max_seq_length=9)
    assert first.num_items == 1
    assert (second.num_items, second.num_tokens) == (0, 0)
    assert second.input_ids.shape[0] == 1
    assert bool((second.input_ids == tokens.pad_token_id).all())
    assert int(second.attention_mask.sum()) > 0  # an all-masked row makes attention NaN in some encoders


@pytest.mark.parametrize("items_at_once", [1, 4, 7, 100])
def test_ids_are_gathered_for_some_items_at_a_time_and_the_micro_batches_are_the_same(
    monkeypatch: pytest.MonkeyPatch, items_at_once: int
) -> None:
    tokens = ListTokens([[2, *range(10, 11 + item % 6), 3] for item in range(25)])
    shares = deal_by_tokens(tokens.lengths(9), 2, 16)
    items = np.arange(25, dtype=np.int32)[shares.of_rank(1)]  # rank 1 has one item less than the cuts have rows
    assert len(items) == shares.cuts[-1].stop - 1
    whole = list(micro_batches(tokens, items, shares.cuts, max_seq_length=9))
    tokens.gathered.clear()
    monkeypatch.setattr(batching, "ITEMS_AT_ONCE", items_at_once)
    pieces = list(micro_batches(tokens, items, shares.cuts, max_seq_length=9))
    longest_cut = max(cut.stop - cut.start for cut in shares.cuts)
    assert max(map(len, tokens.gathered)) < items_at_once + longest_cut
    assert len(pieces) == len(whole) == len(shares.cuts)
    for piece, expected in zip(pieces, whole, strict=True):
        assert torch.equal(piece.input_ids, expected.input_ids)
        assert torch.equal(piece.attention_mask, expected.attention_mask)
        assert (piece.num_items, piece.num_tokens) == (expected.num_items, expected.num_tokens)


# lengths as GoodBooks' 9,891 descriptions have them with MiniLM's tokenizer: mean 134, 1st and 99th percentile 94
# and 181, longest 332 (rounded quantiles at 0, 1, 5, 25, 50, 75, 95, 99, 100 %)
QUANTILES = ([0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0], [61, 94, 105, 121, 133, 146, 165, 181, 332])


def description_lengths(number: int, seed: int) -> np.ndarray:
    return np.interp(np.random.default_rng(seed).random(number), *QUANTILES).astype(np.int32)


@pytest.mark.parametrize(
    ("number", "world_size"), [(500, 2), (500, 4), (1000, 2), (1000, 8), (10_000, 8), (10_000, 64)]
)
def test_ranks_tokens_are_within_one_percent(number: int, world_size: int) -> None:
    for seed in range(5):
        lengths = description_lengths(number, seed)
        assert spread(lengths, deal_by_tokens(lengths, world_size, 8192), world_size) < 0.01


def test_a_text_more_or_less_is_what_the_ranks_differ_by_where_texts_do_not_divide() -> None:
    draws = [description_lengths(500, seed) for seed in range(5)]  # 62.5 texts a rank, a text is 1.6 %
    assert 0.01 < max(spread(lengths, deal_by_tokens(lengths, 8, 8192), 8) for lengths in draws) < 0.02


def spread(lengths: np.ndarray, shares: Shares, world_size: int) -> float:
    """Tokens of the fullest rank less those of the emptiest, as a share of the mean."""
    held = np.array([lengths[shares.of_rank(rank)].sum() for rank in range(world_size)])
    return float((held.max() - held.min()) / held.mean())
