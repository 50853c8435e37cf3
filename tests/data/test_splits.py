"""Which interactions are held out, trained on, given and asked for; and the published held-out lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import ValidationError

from beeray.config import SplitConfig, validate_config
from beeray.data.catalog import content_hash
from beeray.data.preparation import ensure_store
from beeray.data.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    SplitPlan,
    draw_items,
    draw_users,
    evaluation_masks,
    held_out_twins,
    id_hashes,
    interaction_labels,
    time_boundaries,
    training_mask,
)
from beeray.data.store import Store
from beeray.data.time_windows import SortedTimes
from beeray.errors import ConfigError, DataError

NAMES = np.array(["a1", "a2", "a3", "b1", "b2", "b3"])
ALICE_AND_BOB = np.array([0, 0, 0, 1, 1, 1])
TIMES = np.array([1, 3, 5, 2, 4, 6])
ITEMS = np.arange(6, dtype=np.int32)


def plan_of(kind: str, seed: int = 0) -> SplitPlan:
    """The plan of the named-user table: a3 and b3, or Bob, are test."""
    items, users = np.zeros(6, dtype=np.int8), np.zeros(2, dtype=np.int8)
    if kind == "item":
        items[[2, 5]] = TEST
    if kind == "user":
        users[1] = TEST
    return SplitPlan(kind, items, users, (5, 5) if kind == "time" else None, seed, id_hashes(pa.array(NAMES)))


def all_held_out(num_users: int, item_ids: np.ndarray, seed: int) -> SplitPlan:
    """The plan of a `user` split of whose users all are test."""
    users = np.full(num_users, TEST, dtype=np.int8)
    return SplitPlan("user", np.zeros(len(item_ids), np.int8), users, None, seed, id_hashes(pa.array(item_ids)))


def hashes_of(user_of: np.ndarray) -> np.ndarray:
    """Of each interaction's user, whose id is its index."""
    return id_hashes(pa.array(user_of))


def who_gets_what(plan: SplitPlan, split: str = "test") -> tuple[list[str], list[str], list[str]]:
    """Names trained on, given and asked for."""
    labels = interaction_labels(plan, ITEMS, ALICE_AND_BOB, TIMES, hashes_of(ALICE_AND_BOB))
    user_labels = plan.users[ALICE_AND_BOB]
    given, asked = evaluation_masks(plan.kind, split, user_labels, labels)
    return tuple(NAMES[mask].tolist() for mask in (training_mask(user_labels, labels, False), given, asked))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["item", "time"])
def test_alice_and_bob_keep_their_first_interactions_and_are_asked_for_their_last(kind: str) -> None:
    trained, given, asked = who_gets_what(plan_of(kind))
    assert trained == ["a1", "a2", "b1", "b2"]
    assert given == ["a1", "a2", "b1", "b2"]
    assert asked == ["a3", "b3"]


def test_bob_is_folded_in_when_whole_users_are_held_out() -> None:
    drawn = [who_gets_what(plan_of("user", seed)) for seed in range(40)]
    assert all(trained == ["a1", "a2", "a3"] for trained, _, _ in drawn)
    assert all(sorted(given + asked) == ["b1", "b2", "b3"] and len(asked) == 1 for _, given, asked in drawn)
    assert (["a1", "a2", "a3"], ["b1", "b2"], ["b3"]) in drawn
    assert {asked[0] for _, _, asked in drawn} == {"b1", "b2", "b3"}


@pytest.mark.parametrize("kind", ["item", "time"])
def test_validations_interactions_are_input_at_test_and_trained_on_only_when_asked(kind: str) -> None:
    labels = np.array([TRAIN, VALIDATION, TEST], dtype=np.int8)
    users = np.zeros(3, dtype=np.int8)
    assert training_mask(users, labels, False).tolist() == [True, False, False]
    assert training_mask(users, labels, True).tolist() == [True, True, False]
    assert [mask.tolist() for mask in evaluation_masks(kind, "validation", users, labels)] == [
        [True, False, False],
        [False, True, False],
    ]
    assert [mask.tolist() for mask in evaluation_masks(kind, "test", users, labels)] == [
        [True, True, False],
        [False, False, True],
    ]


def test_under_the_published_protocol_validations_interactions_are_no_input_at_test() -> None:
    labels, users = np.array([TRAIN, VALIDATION, TEST], dtype=np.int8), np.zeros(3, dtype=np.int8)
    given, asked = evaluation_masks("item", "test", users, labels, published=True)
    assert (given.tolist(), asked.tolist()) == ([True, False, False], [False, False, True])
    given, asked = evaluation_masks("item", "validation", users, labels, published=True)
    assert (given.tolist(), asked.tolist()) == ([True, False, False], [False, True, False])


def test_a_held_out_users_input_is_never_trained_on_nor_given_in_another_split() -> None:
    users = np.array([TRAIN, VALIDATION, VALIDATION, TEST, TEST], dtype=np.int8)
    labels = np.array([TRAIN, TRAIN, VALIDATION, TRAIN, TEST], dtype=np.int8)
    assert training_mask(users, labels, False).tolist() == [True, False, False, False, False]
    assert training_mask(users, labels, True).tolist() == [True, True, True, False, False]
    given, asked = evaluation_masks("user", "test", users, labels)
    assert given.tolist() == [False, False, False, True, False]
    assert asked.tolist() == [False, False, False, False, True]


def test_a_fifth_of_a_held_out_users_interactions_is_asked_for_and_at_least_one() -> None:
    sizes = [1, 4, 5, 9, 10, 23]
    user_of = np.repeat(np.arange(6), sizes)
    plan = all_held_out(6, np.arange(60), 3)
    labels = interaction_labels(plan, np.arange(sum(sizes), dtype=np.int32), user_of, None, hashes_of(user_of))
    assert np.bincount(user_of[labels == TEST]).tolist() == [1, 1, 1, 1, 2, 4]


def test_a_held_out_users_targets_follow_the_seed() -> None:
    user_of = np.repeat(np.arange(20), 10)
    items = np.arange(200, dtype=np.int32)

    def drawn(seed: int) -> list[int]:
        return interaction_labels(all_held_out(20, items, seed), items, user_of, None, hashes_of(user_of)).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def targets(by_user: dict[int, list[int]], *, text: bool = False, reverse: bool = False) -> dict[int, set[int]]:
    """Ids that each user is asked for, where all are test.

    Args:
        text: ids are strings.
        reverse: items, and each user's rows, stand in reverse order.
    """
    step = -1 if reverse else 1
    item_ids = np.arange(60)[::step]
    users = np.array(list(by_user))
    ids = np.concatenate([rows[::step] for rows in by_user.values()])
    user_of = np.repeat(np.arange(len(users)), [len(rows) for rows in by_user.values()])
    of_users = users[user_of].astype(str) if text else users[user_of]
    plan = all_held_out(len(users), item_ids.astype(str) if text else item_ids, 1)
    places = np.argsort(item_ids)[ids].astype(np.int32)
    labels = interaction_labels(plan, places, user_of, None, id_hashes(pa.array(of_users)))
    return {int(user): set(ids[(users[user_of] == user) & (labels == TEST)].tolist()) for user in users}


BY_USER = {user: [(user * 7 + 3 * step) % 60 for step in range(15)] for user in range(40)}


def test_a_held_out_users_targets_hang_on_its_id_and_its_items_ids_alone() -> None:
    known = targets(BY_USER)
    assert {len(asked) for asked in known.values()} == {3}
    assert targets({99: [1, 2, 3, 4, 5], **BY_USER}) == known | targets({99: [1, 2, 3, 4, 5]})
    assert targets({user: BY_USER[user] for user in reversed(BY_USER) if user % 3}) == {
        user: asked for user, asked in known.items() if user % 3
    }
    assert targets(BY_USER, reverse=True) == known
    assert targets(BY_USER, text=True) == known


def test_two_users_of_the_same_items_are_asked_for_different_ones() -> None:
    same = targets({user: list(range(60)) for user in range(20)})
    assert len({frozenset(asked) for asked in same.values()}) == 20


def test_a_users_own_number_among_its_items_is_asked_for_no_more_often_than_any_other() -> None:
    same = targets({user: list(range(60)) for user in range(60)})  # user 7 and item 7 have the same hash
    assert 2 <= sum(user in asked for user, asked in same.items()) <= 24  # 12 by lot


def test_twins_are_held_out_items_with_the_text_of_a_training_item() -> None:
    texts = content_hash(pa.array(["a", "b", "a", "c", "c", "a", "d"]))
    labels = np.array([TRAIN, TRAIN, TEST, VALIDATION, TEST, VALIDATION, TEST], dtype=np.int8)
    assert held_out_twins(texts, labels) == {"validation": 1, "test": 1}  # the two c are held out both
    labels[0] = VALIDATION
    assert held_out_twins(texts, labels) == {"validation": 0, "test": 0}


@pytest.mark.parametrize("draw", ["items", "users"])
@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [(0.1, 0.2, (20, 40)), (0.004, 0.996 - 0.5, (1, 99)), (7, 3, (7, 3)), (5, 0.1, (5, 20))],
)
def test_fractions_and_counts_hold_out_exactly_so_many(
    draw: str, validation: float, test: float, expected: tuple[int, int]
) -> None:
    labels = drawn_labels(draw, SplitConfig(validation=validation, test=test), seed=1)
    assert np.bincount(labels, minlength=3).tolist() == [200 - sum(expected), *expected]


@pytest.mark.parametrize("draw", ["items", "users"])
def test_the_same_seed_draws_the_same_and_another_seed_draws_another(draw: str) -> None:
    config = SplitConfig(validation=0.2, test=0.2)
    assert drawn_labels(draw, config, 1).tolist() == drawn_labels(draw, config, 1).tolist()
    assert drawn_labels(draw, config, 1).tolist() != drawn_labels(draw, config, 2).tolist()


def drawn_labels(draw: str, config: SplitConfig, seed: int) -> np.ndarray:
    if draw == "users":
        return draw_users(config, id_hashes(pa.array(range(200))), seed)
    return draw_items(config, pa.array(range(200)), np.arange(200), seed)


def test_users_keep_their_lots_whatever_their_order_and_whether_ids_are_numbers_or_text() -> None:
    config, ids = SplitConfig(validation=0.1, test=0.1), np.arange(500)
    labels = draw_users(config, id_hashes(pa.array(ids)), 1)
    assert draw_users(config, id_hashes(pa.array(ids[::-1])), 1)[::-1].tolist() == labels.tolist()
    assert draw_users(config, id_hashes(pa.array(ids.astype(str))), 1).tolist() == labels.tolist()


@pytest.mark.parametrize("size", [0.1, 200])
@pytest.mark.parametrize(("num_new", "most"), [(1, 1), (400, 15)])
def test_a_user_that_was_trained_on_is_hardly_ever_held_out_when_others_come(
    size: float, num_new: int, most: int
) -> None:
    config = SplitConfig(validation=size, test=size)
    before, after = (draw_users(config, id_hashes(pa.array(range(n))), 1) for n in (2000, 2000 + num_new))
    moved = after[:2000]
    for label in (VALIDATION, TEST):
        assert ((before == TRAIN) & (moved == label)).sum() <= most  # 160 of a lot that falls anew
    assert not ((before != TRAIN) & (moved != TRAIN) & (before != moved)).any()  # none from validation to test


@pytest.mark.parametrize(("validation", "test"), [(100, 99), (0.001, 0.1), (500, 1)])
def test_a_draw_that_leaves_too_few_names_the_numbers_and_the_remedy(validation: float, test: float) -> None:
    with pytest.raises(DataError, match=r"test items of 200 leave too few; change split\.validation and split\.test"):
        drawn_labels("items", SplitConfig(validation=validation, test=test), 1)


def test_the_time_windows_are_the_last_fractions_of_all_interactions() -> None:
    times = np.random.default_rng(0).permutation(np.arange(100, 200))
    assert time_boundaries(SplitConfig(kind="time", validation=0.1, test=0.2), SortedTimes.of(times)) == (170, 180)


def test_interactions_of_one_instant_stay_together_on_the_later_side() -> None:
    times = np.array([1, 2, 3, 4, 5, 5, 5, 8, 8, 8])
    validation_from, test_from = time_boundaries(
        SplitConfig(kind="time", validation=0.1, test=0.2), SortedTimes.of(times)
    )
    assert (validation_from, test_from) == (5, 8)
    labels = interaction_labels(
        SplitPlan("time", np.zeros(10, np.int8), np.zeros(1, np.int8), (validation_from, test_from), 0),
        np.arange(10, dtype=np.int32),
        np.zeros(10, dtype=np.int64),
        times,
    )
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("times", [[5, 5, 5, 5], [1, 1, 1, 1, 9], [1, 9, 9, 9]])
def test_timestamps_too_coarse_for_three_parts_are_refused(times: list[int]) -> None:
    with pytest.raises(DataError, match=r"split\.kind time: ") as caught:
        time_boundaries(SplitConfig(kind="time", validation=0.3, test=0.3), SortedTimes.of(np.array(times)))
    assert "\n" not in str(caught.value)


def test_a_time_split_without_timestamps_is_refused() -> None:
    plan = SplitPlan("time", np.zeros(1, np.int8), np.zeros(1, np.int8), (1, 2), 0)
    with pytest.raises(ConfigError, match="needs timestamps"):
        interaction_labels(plan, np.zeros(1, np.int32), np.zeros(1, np.int64), None)


def published(real_data: Path, split: str) -> set[int]:
    return set(
        np.loadtxt(real_data / "goodbooks-sample" / f"beeformer_item_split_{split}.txt", dtype=np.int64).tolist()
    )


def test_the_published_held_out_lists_are_drawn_exactly(real_data: Path) -> None:
    ratings = pd.read_csv(real_data / "goodbooks-sample" / "ratings.csv")
    texts = pd.read_feather(real_data / "goodbooks-sample" / "item_text_descriptions.feather")
    kept = ratings[(ratings["rating"] >= 4) & ratings["book_id"].isin(texts["book_id"])]
    kept = kept.drop_duplicates(["user_id", "book_id"])
    kept = kept[kept.groupby("user_id")["book_id"].transform("size") >= 5]
    first = kept.reset_index().groupby("book_id")["index"].min()
    labels = draw_items(SplitConfig(reproduce="beeformer"), pa.array(first.index), first.to_numpy(), seed=1)
    validation, test = set(first.index[labels == VALIDATION]), set(first.index[labels == TEST])
    assert validation == published(real_data, "val")
    assert test == published(real_data, "test")
    assert (len(validation), len(test)) == (1797, 1766)
    shuffled = draw_items(SplitConfig(reproduce="beeformer"), pa.array(first.index), first.to_numpy()[::-1], seed=1)
    assert set(first.index[shuffled == VALIDATION]) != validation


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_preparation_of_the_real_sample_holds_out_the_published_lists(real_data: Path, tmp_path: Path) -> None:
    config = validate_config(
        {
            "name": "goodbooks",
            "data": {
                "source": "goodbooks",
                "path": str(real_data / "goodbooks-sample"),
                "store": str(tmp_path / "store"),
                "num_buckets": 2,
            },
            "split": {"kind": "item", "reproduce": "beeformer"},
        }
    )
    store, _ = ensure_store(config, lambda *_: None)
    ids, labels = np.asarray(store.item_ids().to_pylist()), store.item_labels()
    assert (store.meta.num_users, store.meta.num_items, store.meta.num_interactions) == (2669, 9891, 203561)
    assert set(ids[labels == VALIDATION].tolist()) == published(real_data, "val")
    assert set(ids[labels == TEST].tolist()) == published(real_data, "test")
    assert store.meta.items == {"train": 9891 - 1797 - 1766, "validation": 1797, "test": 1766}
    given = {all_inputs: history_labels(store, all_inputs=all_inputs) for all_inputs in (False, True)}
    assert given == {False: {TRAIN}, True: {TRAIN, VALIDATION}}


def history_labels(store: Store, *, all_inputs: bool) -> set[int]:
    """Labels of the items that are input at test."""
    blocks = store.evaluation_users("test", 512, all_inputs=all_inputs)
    return {int(label) for block in blocks for label in np.unique(store.item_labels()[block.history.indices])}


def test_the_published_protocol_that_takes_every_item_is_refused() -> None:
    with pytest.raises(DataError, match=r"split\.num_draws 500: .*lower it"):
        draw_items(SplitConfig(reproduce="beeformer", num_draws=500), pa.array(range(10)), np.arange(10), 1)


def test_a_fraction_of_nothing_or_of_everything_is_no_split() -> None:
    for value in (0, 0.0, -0.1, -3):
        with pytest.raises(ValidationError):
            SplitConfig(test=value)
