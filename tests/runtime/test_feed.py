"""A rank's users, step by step: every user once, in an order that seed, epoch and shard alone decide."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beeray.config import validate_config
from beeray.core.user_items import UserItems
from beeray.runtime import feed as feed_module
from beeray.runtime.feed import UserFeed, UserStream
from beeray.runtime.steps import UserShare, parts_of_rank, plan_steps, steps_per_epoch


class Rows:
    """User `u` of `num_users` has the items [100 u, 100 u + 1, …], u % 4 + 1 of them, so content tells the user."""

    def __init__(self, num_users: int, *, rows_per_chunk: int = 1000) -> None:
        items = [user_items(user) for user in range(num_users)]
        kind = pa.list_(pa.int32())
        starts = range(0, num_users, rows_per_chunk)
        column = pa.chunked_array([pa.array(items[at : at + rows_per_chunk], kind) for at in starts], type=kind)
        self.table = pa.table({"user_index": pa.array(range(num_users), pa.int32()), "item_indices": column})

    def iter_batches(self, *, batch_size: int, batch_format: str, **kwargs: Any) -> Iterator[pa.Table]:
        assert batch_format == "pyarrow"
        for start in range(0, self.table.num_rows, batch_size):
            yield self.table.slice(start, batch_size)  # slices keep a non-zero offset, as Ray's batches may


def user_items(user: int) -> list[int]:
    return list(range(100 * user, 100 * user + user % 4 + 1))


def make_feed(
    num_users: int, batch_size: int, *, seed: int = 7, shard: int = 0, rows_per_chunk: int = 1000
) -> UserFeed:
    rows = Rows(num_users, rows_per_chunk=rows_per_chunk)
    return UserFeed(
        [UserStream(rows, num_users, num_users, shard=shard)],
        num_steps=steps_per_epoch(num_users, batch_size),
        seed=seed,
    )


def profiles(users: UserItems) -> list[list[int]]:
    return [users.indices[users.indptr[row] : users.indptr[row + 1]].tolist() for row in range(users.num_users)]


def order(feed: UserFeed, epoch: int = 0, first_step: int = 0) -> list[list[int]]:
    """Users of each batch, recognised by their first item."""
    return [[items[0] // 100 for items in profiles(batch)] for batch in feed.epoch(epoch, first_step)]


@pytest.fixture(params=[5, 7, 64, 65536], ids="window-{}".format)
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Windows smaller than a batch, that batches straddle, of the last users alone, and larger than the epoch."""
    monkeypatch.setattr(feed_module, "WINDOW_USERS", request.param)
    return int(request.param)


@pytest.mark.parametrize(("num_users", "batch_size"), [(65, 6), (65, 65), (64, 9), (1, 1), (3, 10), (65, 1)])
def test_every_user_comes_exactly_once_an_epoch_whatever_window_and_batch(
    window: int, num_users: int, batch_size: int
) -> None:
    batches = order(make_feed(num_users, batch_size))
    assert sorted(user for batch in batches for user in batch) == list(range(num_users))


def test_batches_differ_by_at_most_one_user_and_are_as_many_as_promised(window: int) -> None:
    feed = make_feed(65, 6)
    sizes = [len(batch) for batch in order(feed)]
    # 65 / 6 = 10.83 → 11 batches: ten of 6 and one of 5
    assert feed.num_steps == len(sizes) == 11
    assert sorted(sizes) == [5] + [6] * 10


def test_users_of_another_shard_are_cut_into_batches_of_the_same_sizes(window: int) -> None:
    sizes = [[len(batch) for batch in order(make_feed(65, 6, shard=shard, seed=shard))] for shard in (0, 1)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("num_users", "batch_size", "num_steps"), [(100, 10, 10), (14, 10, 1), (16, 10, 2), (3, 10, 1), (25, 1, 25)]
)
def test_an_epoch_has_the_steps_that_come_nearest_to_the_batch_size(
    num_users: int, batch_size: int, num_steps: int
) -> None:
    assert steps_per_epoch(num_users, batch_size) == num_steps


@pytest.mark.parametrize("rows_per_chunk", [1000, 4])
def test_each_user_keeps_its_own_items_in_order_as_int32(window: int, rows_per_chunk: int) -> None:
    for batch in make_feed(65, 6, rows_per_chunk=rows_per_chunk).epoch(0):
        assert batch.indices.dtype == np.int32 and batch.indptr.dtype == np.int64
        assert batch.indptr[0] == 0 and batch.indptr[-1] == len(batch.indices)
        for items in profiles(batch):
            assert items == user_items(items[0] // 100)


def test_order_is_the_same_for_the_same_seed_epoch_and_rank(window: int) -> None:
    assert order(make_feed(65, 6), epoch=3) == order(make_feed(65, 6), epoch=3)


@pytest.mark.parametrize(
    "other", [{"epoch": 1}, {"seed": 8}, {"shard": 1}], ids=["another-epoch", "another-seed", "another-shard"]
)
def test_order_differs_in(window: int, other: dict[str, int]) -> None:
    epoch = other.get("epoch", 0)
    feed = make_feed(65, 6, **{name: value for name, value in other.items() if name != "epoch"})
    assert order(feed, epoch=epoch) != order(make_feed(65, 6), epoch=0)


def test_users_are_not_left_in_the_order_of_the_stream() -> None:
    assert order(make_feed(65, 65)) != [list(range(65))]


def test_two_windows_are_not_shuffled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "WINDOW_USERS", 32)
    first, second = order(make_feed(64, 32))
    assert [user + 32 for user in first] != second


def test_a_user_stays_within_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "WINDOW_USERS", 10)
    flat = [user for batch in order(make_feed(65, 6)) for user in batch]
    assert [user // 10 for user in flat] == [place // 10 for place in range(65)]


@pytest.mark.parametrize("first_step", [0, 1, 4, 10, 11])
def test_resuming_at_a_step_yields_exactly_the_tail_of_the_epoch(window: int, first_step: int) -> None:
    whole = order(make_feed(65, 6), epoch=2)
    tail = order(make_feed(65, 6), epoch=2, first_step=first_step)
    assert tail == whole[first_step:]
    assert len(tail) == 11 - first_step


def test_one_feed_can_be_read_epoch_after_epoch_and_left_midway(window: int) -> None:
    feed = make_feed(65, 6)
    iterator = feed.epoch(0)
    next(iterator)
    next(iterator)
    assert order(feed, epoch=1) == order(make_feed(65, 6), epoch=1)
    assert order(feed, epoch=0) == order(make_feed(65, 6), epoch=0)


def test_a_stream_of_too_few_users_is_an_error_that_says_how_many_were_promised(window: int) -> None:
    feed = UserFeed([UserStream(Rows(64), 65, 65, shard=3)], num_steps=11, seed=7)
    with pytest.raises(RuntimeError, match=r"shard 3 .* 65 users"):
        list(feed.epoch(0))


def test_an_empty_stream_is_an_error_too() -> None:
    with pytest.raises(RuntimeError, match="65 users"):
        list(UserFeed([UserStream(Rows(0), 65, 65)], num_steps=11, seed=7).epoch(0))


def test_users_beyond_the_promised_number_are_left_out_so_that_shards_step_equally_often(window: int) -> None:
    feed = UserFeed([UserStream(Rows(70), 65, 65)], num_steps=11, seed=7)
    flat = [user for batch in order(feed) for user in batch]
    assert len(flat) == 65 and len(set(flat)) == 65


# --- several domains: films are users 0 … 39, books users 100 … 119 (told by their first item, as above)


class Books(Rows):
    """Users 100, 101, … of another domain."""

    def __init__(self, num_users: int) -> None:
        super().__init__(num_users)
        items = [user_items(100 + user) for user in range(num_users)]
        self.table = pa.table(
            {
                "user_index": pa.array(range(100, 100 + num_users), pa.int32()),
                "item_indices": pa.array(items, pa.list_(pa.int32())),
            }
        )


def mixed(films: float = 1.0, books: float = 1.0, *, batch_size: int = 6, shard: int = 0) -> UserFeed:
    streams = [
        UserStream(Rows(40), 40, round(40 * films), (0,), shard),
        UserStream(Books(20), 20, round(20 * books), (1,), shard),
    ]
    num_steps = steps_per_epoch(sum(stream.num_drawn for stream in streams), batch_size)
    return UserFeed(streams, num_steps=num_steps, seed=7)


def test_with_weights_of_one_every_user_of_every_domain_comes_once_an_epoch(window: int) -> None:
    flat = [user for batch in order(mixed()) for user in batch]
    assert sorted(flat) == [*range(40), *range(100, 120)]


def test_every_step_has_its_share_of_each_domain(window: int) -> None:
    batches = order(mixed())
    assert len(batches) == 10  # 60 users in batches of 6
    assert [(sum(user < 100 for user in batch), sum(user >= 100 for user in batch)) for batch in batches] == [
        (4, 2)
    ] * 10
    of_other_shard = order(mixed(0.55, 1.7, shard=1))
    assert [len(batch) for batch in of_other_shard] == [len(batch) for batch in order(mixed(0.55, 1.7))]


@pytest.mark.parametrize("drawn", [(20, 20), (40, 20), (20, 20, 20), (1, 1), (7, 1)])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_with_small_batches_every_step_has_a_user_though_domains_give_theirs_evenly(
    window: int, drawn: tuple[int, ...], batch_size: int
) -> None:
    tree = {"name": "a", "data": {"source": "shop"}, "train": {"batch_size": batch_size, "epochs": 3}}
    shares = [UserShare("users", number, number, place) for place, number in enumerate(drawn)]
    num_steps, in_all = plan_steps(validate_config(tree), shares, 1)
    assert in_all == 3 * num_steps and num_steps >= max(drawn) / batch_size
    streams = [UserStream(Rows(share.num_users), share.num_users, share.num_drawn, (share.domain,)) for share in shares]
    sizes = [len(batch) for batch in order(UserFeed(streams, num_steps=num_steps, seed=7))]
    assert len(sizes) == num_steps and min(sizes) >= 1 and sum(sizes) == sum(drawn)


def test_a_weight_above_one_repeats_users_and_one_below_leaves_some_out(window: int) -> None:
    flat = [user for batch in order(mixed(0.25, 2.5)) for user in batch]
    films, books = [user for user in flat if user < 100], [user for user in flat if user >= 100]
    assert len(films) == len(set(films)) == 10  # 0.25 · 40
    times = [books.count(user) for user in range(100, 120)]
    assert (len(books), sorted(times)) == (50, [2] * 10 + [3] * 10)  # 2.5 · 20: two whole passes, half of a third


def test_which_users_a_weight_below_one_leaves_out_is_drawn_anew_each_epoch(window: int) -> None:
    films = [{user for batch in order(mixed(0.25), epoch) for user in batch if user < 100} for epoch in range(8)]
    assert len(set(map(frozenset, films))) == 8
    assert len(set.union(*films)) > 30  # of 40; always the same ten would be 10


def test_two_passes_of_an_epoch_are_not_shuffled_alike() -> None:
    flat = [user for batch in order(mixed(books=2.0)) for user in batch if user >= 100]
    assert flat[:20] != flat[20:] and sorted(flat[:20]) == sorted(flat[20:])


@pytest.mark.parametrize("first_step", [0, 3, 9])
def test_a_resumed_epoch_of_several_domains_is_the_tail_of_the_whole_one(window: int, first_step: int) -> None:
    whole = order(mixed(0.5, 2.5), epoch=2)
    assert order(mixed(0.5, 2.5), epoch=2, first_step=first_step) == whole[first_step:]
    assert order(mixed(0.5, 2.5), epoch=3) != whole


def test_a_mixed_batch_keeps_each_user_s_own_items(window: int) -> None:
    for batch in mixed(0.5, 2.5).epoch(0):
        assert batch.indptr.dtype == np.int64 and batch.indices.dtype == np.int32
        assert all(items == user_items(items[0] // 100) for items in profiles(batch))


@pytest.mark.parametrize(("most", "num_passes"), [(20, [2, 1]), (10, [2, 6])])
def test_a_short_stream_is_read_once_and_its_order_is_the_same(
    most: int, num_passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "KEPT_USERS", most)
    feed, begun = mixed(books=2.5), [0, 0]
    for place, stream in enumerate(feed.streams):

        def counted(read: Any = stream.rows.iter_batches, place: int = place, **how: Any) -> Any:
            begun[place] += 1
            return read(**how)

        monkeypatch.setattr(stream.rows, "iter_batches", counted)
    epochs = [  # read as training does, which does not ask for more than there is
        [[items[0] // 100 for items in profiles(batch)] for batch in islice(feed.epoch(epoch), feed.num_steps)]
        for epoch in range(2)
    ]
    assert begun == num_passes  # films are forty: longer than either limit
    monkeypatch.setattr(feed_module, "KEPT_USERS", 0)
    assert epochs == [order(mixed(books=2.5), epoch) for epoch in range(2)]


# --- other numbers of workers than a run began with


def with_ranks(num_ranks: int, num_shards: int, epoch: int = 1) -> list[list[list[int]]]:
    """Users of each step, rank by rank; every shard has 65 users of its own."""
    steps: list[list[list[int]]] = [[] for _ in range(11)]
    for rank in range(num_ranks):
        streams = [
            UserStream(Numbered(shard), 65, 65, shard=shard, part=part)
            for shard, part in parts_of_rank(rank, num_ranks, num_shards).items()
        ]
        for step, batch in enumerate(order(UserFeed(streams, num_steps=11, seed=7), epoch)):
            steps[step].append(batch)
    return steps


class Numbered(Rows):
    """65 users of a shard, told by their first items, 1000 · shard and on."""

    def __init__(self, shard: int) -> None:
        super().__init__(65)
        items = [user_items(1000 * shard + user) for user in range(65)]
        self.table = self.table.set_column(1, "item_indices", pa.array(items, pa.list_(pa.int32())))


@pytest.mark.parametrize(
    ("rank", "num_ranks", "num_shards", "parts"),
    [
        (1, 2, 2, {1: (0, 2, 2)}),
        (0, 1, 2, {0: (0, 1, 1), 1: (0, 1, 1)}),
        (1, 2, 1, {0: (1, 2, 2)}),
        (3, 4, 2, {1: (2, 4, 4)}),
        (1, 3, 2, {0: (2, 3, 3), 1: (0, 1, 3)}),  # a third of each
        (1, 2, 3, {1: (1, 2, 2), 2: (0, 2, 2)}),  # half of the middle one and all of the last
    ],
)
def test_which_parts_of_which_shards_a_rank_has(
    rank: int, num_ranks: int, num_shards: int, parts: dict[int, tuple[int, int, int]]
) -> None:
    assert parts_of_rank(rank, num_ranks, num_shards) == parts


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 4])
def test_any_number_of_ranks_has_the_same_users_at_every_step(num_ranks: int, num_shards: int) -> None:
    as_begun = with_ranks(num_shards, num_shards)
    otherwise = with_ranks(num_ranks, num_shards)
    assert [list(chain(*ranks)) for ranks in otherwise] == [list(chain(*ranks)) for ranks in as_begun]
    assert len({user for ranks in as_begun for batch in ranks for user in batch}) == 65 * num_shards
    sizes = [[len(batch) for batch in ranks] for ranks in otherwise]
    assert all(len(one) == num_ranks and max(one) - min(one) <= num_shards for one in sizes)
