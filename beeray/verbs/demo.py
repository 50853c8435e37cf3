"""What `beeray.demo` does: in a few minutes and one screen, what training on interactions does to an encoder.

It is `beeray.train` on a generated shop (`data/sources/shop.py`) and nothing else; then it shows metrics
on products that training never saw, and the neighbours of three of them, before and after.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beeray.config import Config
from beeray.console import Console
from beeray.core.encoder import load_encoder
from beeray.data.parts import read_part
from beeray.data.splits import TEST
from beeray.data.storage import storage_options
from beeray.data.store import Store, list_column
from beeray.errors import ConfigError
from beeray.inputs import located_encoder
from beeray.verbs import train

NUM_SHOWN = 3
NUM_NEIGHBOURS = 4
COLUMN = 50
RULE = "─" * (2 * COLUMN + 18)


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train the demo's config, then show it."""
    started = time.monotonic()
    if config.split.kind != "item" or not config.evaluate.before or "test" not in config.evaluate.splits:
        raise ConfigError(
            "beeray.demo shows test items before and after training, so it needs split.kind: item, evaluate.before: "
            "true and test among evaluate.splits; for anything else type python -m beeray.train --config demo"
        )
    record = train.execute(config, arguments, console)
    with storage_options(config.storage):
        store = Store.open(config.store_path)
        shop = _Shop(store)
    shown = shop.best_sellers(NUM_SHOWN)
    console.line("embed the catalog with both encoders …")
    texts = shop.texts
    before = _embed(config, located_encoder(config.encoder.name), texts)
    after = _embed(config, record["model"], texts)
    lines = [RULE, *metric_lines(record, store)]
    for item in shown:
        lines += neighbour_lines(shop, item, before, after)
    opened = f"SentenceTransformer({_relative(record['model'])!r})"
    lines += [RULE, f"The trained encoder is an ordinary SentenceTransformer folder: {opened}"]
    console.show("\n".join(lines))
    record["seconds"] = round(time.monotonic() - started, 1)
    return record


@dataclass
class _Shop:
    """The store's catalog and who bought what, for looking at."""

    store: Store

    def __post_init__(self) -> None:
        catalog = self.store.catalog(["item_id", "text", "split"])
        self.texts: list[str] = catalog["text"].to_pylist()
        self.families = [str(item_id).rpartition("-")[0] for item_id in catalog["item_id"].to_pylist()]
        self.labels = catalog["split"].to_numpy()
        columns = [list_column(read_part(path, ["item_indices"])["item_indices"]) for path in self.store.user_paths()]
        self.buyer = np.concatenate(
            [np.repeat(np.arange(len(p) - 1), np.diff(p)) + 10**7 * n for n, (p, _) in enumerate(columns)]
        )
        self.bought: NDArray[np.int32] = np.concatenate([items for _, items in columns])
        self.sales = np.bincount(self.bought, minlength=len(self.texts))

    def best_sellers(self, number: int) -> list[int]:
        """The best-selling new products, each of another family."""
        chosen: list[int] = []
        for item in np.argsort(-self.sales, kind="stable"):
            new = self.labels[item] == TEST
            if new and self.families[item] not in [self.families[one] for one in chosen]:
                chosen.append(int(item))
            if len(chosen) == number:
                break
        return chosen

    def bought_together(self, item: int) -> NDArray[np.float64]:
        """Share of an item's buyers who bought each item too, (items,)."""
        buyers = self.buyer[self.bought == item]
        counts = np.bincount(self.bought[np.isin(self.buyer, buyers)], minlength=len(self.texts))
        return counts / max(1, len(buyers))


def metric_lines(record: dict[str, Any], store: Store) -> list[str]:
    """The metrics on brand-new items, before → after, with 95 % intervals."""
    old = record["metrics_before"]["test"]["held_out"]
    new = record["metrics"]["test"]["held_out"]
    lines = [
        f"{new['candidates']} brand-new products, never trained on, ranked for {new['users']:,} shoppers "
        f"(catalog: {store.meta.num_items:,} products). 95 % intervals over shoppers.",
        "",
        f"  {'':<12}{'text alone (before)':<28}{'with behaviour (after)':<28}",
    ]
    for name in [name for name, value in new.items() if isinstance(value, dict)]:
        times = f"× {new[name]['mean'] / old[name]['mean']:.2f}" if old[name]["mean"] else ""
        lines.append(f"  {name:<12}{_interval(old[name]):<28}{_interval(new[name]):<28}{times}".rstrip())
    lines += ["", "Nearest neighbours of three new products. Percent: how many of its buyers bought that one, too.", ""]
    return lines


def neighbour_lines(shop: _Shop, item: int, before: NDArray[np.float32], after: NDArray[np.float32]) -> list[str]:
    """One product and its nearest neighbours under both encoders, side by side."""
    together = shop.bought_together(item)
    columns = [
        [f"{together[other]:>4.0%} {_title(shop.texts[other]):<{COLUMN}}" for other in nearest(embeddings, item)]
        for embeddings in (before, after)
    ]
    head = f"▸ {_title(shop.texts[item], 2 * COLUMN)}"
    return [head, *(f"    {left}   {right}".rstrip() for left, right in zip(*columns, strict=True)), ""]


def nearest(embeddings: NDArray[np.float32], item: int, number: int = NUM_NEIGHBOURS) -> list[int]:
    """The most similar items by cosine, (items, d) row-normalised, the item itself left out."""
    similarity = embeddings @ embeddings[item]
    similarity[item] = -np.inf
    return [int(one) for one in np.argsort(-similarity, kind="stable")[:number]]


def _embed(config: Config, model: str, texts: list[str]) -> NDArray[np.float32]:
    encoder = load_encoder(model, max_seq_length=config.served_seq_length, prefix=config.encoder.prefix)
    embeddings = encoder.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(embeddings, dtype=np.float32)


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _title(text: str, width: int = COLUMN) -> str:
    title = text.partition(". ")[0]
    return title if len(title) <= width else title[: width - 1] + "…"


def _relative(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
