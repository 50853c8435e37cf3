"""A generated shop: realistic product texts, and shopping behaviour that the texts alone do not tell.

It stands in for the two tables of a real web shop wherever those may not be shown, or a few hundred
kilobytes must do: demos, smoke runs, tests. Nothing is read or downloaded; one seed gives one shop.

*Catalog.* Twelve worlds (printing, phones, coffee, cameras, …) of three families each (printer, toner,
drum). A world has `shop.num_series` product lines; a line is a brand, a name, a tier (budget, mid, premium)
and the code of a standard by which its products fit each other ("TK-420"). Each family has one to three
products per line. Every product's text shows its world in its nouns and states its code and its tier.

*Behaviour.* What decides who buys what:

1. compatibility: who buys into a line of a world buys the products with its code, whatever their family;
2. tier: a user keeps to one tier in every world, so premium coffee goes with premium cameras;
3. lifestyle: a user has one of ten, each of which couples four worlds (aquarists read);
4. popularity: lines and products differ in it, log-normally;
5. mistakes: purchases outside of a user's own lines, of which many get a low `value`.

An untrained encoder groups toner with toner and pays little heed to codes and tiers. Since all that decides
is in the text, and lines and tiers have many products, behaviour learnt on some predicts brand-new ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beeray.config import DataConfig, ShopConfig
from beeray.data.sources import RawTables
from beeray.data.sources.shop_catalog import (
    ACCESSORY_TITLES,
    BRANDS,
    DEVICE_TITLES,
    LINES,
    SHAPES,
    TIER_WORDS,
    TIERS,
    WORLDS,
    Family,
)
from beeray.data.tables import Table

TEMPLATE = "{title}. {description}"
LIFESTYLES = (
    {"printing": 3, "phones": 2, "coffee": 2, "reading": 2},
    {"cameras": 3, "printing": 2, "camping": 2, "phones": 1},
    {"camping": 3, "grilling": 2, "cycling": 2, "cameras": 1},
    {"coffee": 3, "reading": 2, "sewing": 2, "gaming": 1},
    {"gaming": 3, "phones": 2, "grilling": 2, "aquariums": 1},
    {"guitars": 3, "coffee": 2, "gaming": 2, "cycling": 1},
    {"cycling": 3, "phones": 2, "cameras": 2, "coffee": 1},
    {"aquariums": 3, "reading": 2, "guitars": 2, "printing": 1},
    {"sewing": 3, "printing": 2, "aquariums": 2, "guitars": 1},
    {"grilling": 3, "aquariums": 2, "cycling": 2, "sewing": 1},
)
"""Worlds that go together, with the weight of each."""
TIER_AFFINITY = ((1.0, 0.15, 0.02), (0.15, 1.0, 0.15), (0.02, 0.15, 1.0))
"""How much a user of tier (row) wants a line of tier (column)."""
USER_TIERS = (0.4, 0.35, 0.25)
KEEP_PRODUCT = 0.85
SECOND_LINE = 0.3
OTHER_LINE = 0.02
OTHER_WORLD = 0.002
"""Weights of a line that a user does not own, inside and outside of its worlds, beside 1 for one that it owns."""
MIN_PURCHASES, MAX_PURCHASES = 7, 25
VALUES = np.array([2.0, 3.0, 4.0, 5.0])
OWN_VALUES, OTHER_VALUES = (0.02, 0.03, 0.35, 0.6), (0.2, 0.3, 0.3, 0.2)
OPENING_S, SEASON_S, GAP_S = 1_672_531_200, 2 * 365 * 86_400, 12 * 86_400
SCORES_PER_BLOCK = 1 << 22
NOISE_FLOOR = np.float32(1e-7)
"""Float32 draws can be exactly 0, whose logarithm is not finite."""


@dataclass(frozen=True)
class ShopProducts:
    """The catalog and what the texts state.

    Attributes:
        catalog: `item_id`, `title`, `description`.
        worlds: int64 (items,), place in `WORLDS`.
        families: int64 (items,), place among the world's families; 0 is the device.
        series: int64 (items,), `world * num_series + line`.
        tiers: int64 (series,), place in `TIERS`.
        codes: the standard of each series.
    """

    catalog: pa.Table
    worlds: NDArray[np.int64]
    families: NDArray[np.int64]
    series: NDArray[np.int64]
    tiers: NDArray[np.int64]
    codes: list[str]


def open_shop(config: DataConfig) -> RawTables:
    """Generate the shop of `data.shop`, in memory."""
    products = generate_products(config.shop)
    purchases = generate_purchases(config.shop, products)
    return RawTables(
        domain=config.domain or "shop",
        catalog=_table(products.catalog, "the shop's catalog"),
        interactions=_table(purchases, "the shop's purchases"),
        template=TEMPLATE,
    )


def generate_products(shop: ShopConfig) -> ShopProducts:
    """The catalog; it depends on `num_series` and `seed` only."""
    rng = np.random.default_rng([shop.seed, 0])
    num_series = shop.num_series
    tiers = np.concatenate([rng.permutation(np.arange(num_series) % len(TIERS)) for _ in WORLDS])
    codes: list[str] = []
    rows: list[tuple[str, str, str]] = []
    places: list[tuple[int, int, int]] = []
    for w, world in enumerate(WORLDS):
        numbers = 100 + 5 * rng.permutation(max(180, 2 * num_series))[:num_series]
        prefixes = rng.integers(len(world.prefixes), size=num_series)
        codes += [f"{world.prefixes[p]}-{number}" for p, number in zip(prefixes, numbers, strict=True)]
        brands, lines = (rng.permutation(num_series + 64)[:num_series] for _ in range(2))
        for f, family in enumerate(world.families):
            number = 0
            for line in range(num_series):
                s = w * num_series + line
                words = {
                    "code": codes[s],
                    "line": LINES[lines[line] % len(LINES)],
                    "brand": BRANDS[brands[line] % len(BRANDS)],
                }
                for kind in _kinds(family, rng):
                    number += 1
                    rows.append(
                        (f"{family.slug}-{number:04d}", *_write(family, kind, f == 0, int(tiers[s]), words, rng))
                    )
                    places.append((w, f, s))
    columns = [list(column) for column in zip(*rows, strict=True)]
    worlds, families, series = np.array(places, dtype=np.int64).T
    catalog = pa.table(dict(zip(("item_id", "title", "description"), columns, strict=True)))
    return ShopProducts(catalog, worlds, families, series, tiers, codes)


def generate_purchases(shop: ShopConfig, products: ShopProducts) -> pa.Table:
    """Who bought what, when and how content: `user_id`, `item_id`, `value`, `timestamp` (s); sorted by time."""
    rng = np.random.default_rng([shop.seed, 1])
    num_items = products.catalog.num_rows
    line_appeal = np.exp(rng.normal(0.0, 0.7, len(products.tiers)))
    popularity = rng.normal(0.0, 0.6, num_items).astype(np.float32)
    block = max(1, SCORES_PER_BLOCK // num_items)
    sizes = [min(block, shop.num_users - start) for start in range(0, shop.num_users, block)]
    baskets = [_buy(size, products, line_appeal, popularity, rng) for size in sizes]
    counts, chosen, owned = (np.concatenate(parts) for parts in zip(*baskets, strict=True))
    users = np.repeat(np.arange(shop.num_users), counts)
    values = _values(owned, rng)
    timestamps = _timestamps(counts, users, products.families[chosen], rng)
    order = np.lexsort((chosen, users, timestamps))
    user_ids = pa.array([f"user-{number:06d}" for number in range(shop.num_users)])
    return pa.table(
        {
            "user_id": user_ids.take(pa.array(users[order])),
            "item_id": products.catalog["item_id"].combine_chunks().take(pa.array(chosen[order])),
            "value": values[order],
            "timestamp": timestamps[order],
        }
    )


def _kinds(family: Family, rng: np.random.Generator) -> list[str]:
    """The kinds that one line makes: most of them, at least one."""
    kept = rng.random(len(family.kinds)) < KEEP_PRODUCT
    kept[rng.integers(len(kept))] = True
    return [kind for kind, keep in zip(family.kinds, kept, strict=True) if keep]


def _write(
    family: Family, kind: str, device: bool, tier: int, words: dict[str, str], rng: np.random.Generator
) -> tuple[str, str]:
    """Title and description of one product."""

    def pick(phrases: tuple[str, ...]) -> str:
        return phrases[rng.integers(len(phrases))]

    if not device and rng.random() < 0.5:
        words = {**words, "brand": pick(BRANDS)}
    said = {
        "tier": pick(TIER_WORDS[tier]),
        "head": family.head,
        "use": pick(family.uses),
        "fits": pick(family.fits).format(**words),
        "feature": pick(family.features),
    }
    said.update({key.capitalize(): phrase[0].upper() + phrase[1:] for key, phrase in said.items()})
    title = pick(DEVICE_TITLES if device else ACCESSORY_TITLES).format(
        kind=kind, Kind=kind[0].upper() + kind[1:], **words
    )
    return title, pick(SHAPES).format(**said)


def _buy(
    num_users: int,
    products: ShopProducts,
    line_appeal: NDArray[np.float64],
    popularity: NDArray[np.float32],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Purchases of a block of users: how many each, the items (flat), and whether their line is the user's own."""
    wants, owned = _line_affinities(num_users, products.tiers, line_appeal, rng)
    counts = np.minimum(MIN_PURCHASES + rng.gamma(1.3, 4.0, num_users).astype(np.int64), MAX_PURCHASES)
    # The k largest of log weight + Gumbel noise are k draws without replacement.
    scores = wants[:, products.series] + popularity
    noise = rng.standard_exponential(scores.shape, dtype=np.float32)
    scores -= np.log(np.maximum(noise, NOISE_FLOOR))
    top = np.argpartition(-scores, MAX_PURCHASES - 1, axis=1)[:, :MAX_PURCHASES]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
    ranked = np.take_along_axis(top, order, axis=1)
    bought = np.arange(MAX_PURCHASES) < counts[:, None]
    items = ranked[bought]
    return counts, items, owned[np.nonzero(bought)[0], products.series[items]]


def _line_affinities(
    num_users: int, tiers: NDArray[np.int64], line_appeal: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Log weight of every line for every user, and which lines each owns; both (users, series)."""
    styles = np.array([[style.get(world.name, 0.0) for world in WORLDS] for style in LIFESTYLES])
    interest = styles[rng.integers(len(LIFESTYLES), size=num_users)] * rng.gamma(4.0, 0.25, (num_users, len(WORLDS)))
    interest = (interest / interest.sum(axis=1, keepdims=True))[:, :, None]
    user_tiers = rng.choice(len(TIERS), size=num_users, p=USER_TIERS)
    appeal = np.array(TIER_AFFINITY)[user_tiers][:, tiers] * line_appeal
    appeal = appeal.reshape(num_users, len(WORLDS), -1)
    noisy = np.log(appeal) - np.log(rng.standard_exponential(appeal.shape))
    second, first = np.moveaxis(np.partition(noisy, -2, axis=2)[:, :, -2:], 2, 0)
    owns_two = rng.random(first.shape) < SECOND_LINE
    owned = (noisy >= np.where(owns_two, second, first)[:, :, None]) & (interest > 0)
    shares = appeal / appeal.sum(axis=2, keepdims=True)
    weights = interest * (owned + OTHER_LINE * shares * appeal.shape[2]) + OTHER_WORLD * shares
    return np.log(weights).astype(np.float32).reshape(num_users, -1), owned.reshape(num_users, -1)


def _values(owned: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    own, other = (rng.choice(VALUES, size=len(owned), p=chances) for chances in (OWN_VALUES, OTHER_VALUES))
    return np.where(owned, own, other)


def _timestamps(
    counts: NDArray[np.int64], users: NDArray[np.int64], families: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Seconds: users come over two years, and buy devices sooner than what goes with them."""
    joined = OPENING_S + rng.random(len(counts)) * SEASON_S
    haste = families + 2.0 * rng.standard_exponential(len(users))
    order = np.lexsort((haste, users))
    gaps = 1.0 + rng.standard_exponential(len(users)) * GAP_S
    elapsed = np.cumsum(gaps)
    first = np.cumsum(counts) - counts
    when = np.empty(len(users))
    when[order] = joined[users] + elapsed - elapsed[first][users]
    return when.astype(np.int64)


def _table(table: pa.Table, label: str) -> Table:
    return Table(table, {name: name for name in table.column_names}, label)
