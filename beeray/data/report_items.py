"""The items that a run's report shows: which, with what text, and who has them together.

Counts are over `MAX_USERS` users, the first of each domain, which are in no order that matters, so a large store costs
no more than a middling one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from beeray.data.parts import read_part, write_part
from beeray.data.splits import SPLITS
from beeray.data.staging import staged_file
from beeray.data.store import INTERACTION_COLUMNS, Store, masked_csr, trainable_interactions

MAX_USERS = 200_000
MAX_TEXT = 300
"""Characters of a text that are kept."""
LONGEST_WORD = 30
"""A text is cut between words, unless the word is longer than this: not every script has spaces."""
MOST_INTERACTED = 0.5
"""Share of the items shown that are the most interacted with; of the others, half are items never trained on."""
REPORT_FOLDER = "report"
"""Folder in a run's where all of this is, and the embeddings of the items by the encoders below."""
ORIGINAL, TRAINED = "original", "trained"
ITEMS, TOGETHER = "items.parquet", "together.npz"
STORE, COUNTED = "beeray.store_fingerprint", "beeray.counted_users"
"""What the table's metadata says: whose items these are, and over how many users they were counted."""


@dataclass(frozen=True)
class ReportItems:
    """Some items of the catalog.

    Attributes:
        item_index: int32 (items,), ascending.
        item_id, domain, text: of each; long texts cut off with an ellipsis.
        split: `train`, `validation` or `test`, the label of each item.
        num_users: int64 (items,), users who have it.
        num_training_users: int64 (items,), those whose having it was trained on; 0: the encoder saw no interaction.
        together: int32 (items, items), symmetric with an empty diagonal: users who have both.
        counted_users: users over whom all this was counted.
    """

    item_index: NDArray[np.int32]
    item_id: list[str]
    domain: list[str]
    text: list[str]
    split: list[str]
    num_users: NDArray[np.int64]
    num_training_users: NDArray[np.int64]
    together: sparse.csr_matrix
    counted_users: int

    def __len__(self) -> int:
        return len(self.item_index)


def collect_items(store: Store, max_items: int, seed: int, *, with_validation: bool) -> ReportItems:
    """Choose and describe the items of a report.

    Args:
        seed: draws the random share.
        with_validation: whether validation's interactions are trained on.
    """
    number = store.meta.num_items
    everyone, trained = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
    counted = 0
    for indptr, items, mask in _user_parts(store, with_validation):
        everyone += np.bincount(items, minlength=number)
        trained += np.bincount(items[mask], minlength=number)
        counted += len(indptr) - 1
    chosen = choose_items(everyone, trained, max_items, seed)
    catalog = store.catalog(["item_id", "domain", "text", "split"]).take(pa.array(chosen))
    labels = {label: name for name, label in SPLITS.items()}
    return ReportItems(
        chosen,
        [str(one) for one in catalog["item_id"].to_pylist()],
        [str(one) for one in catalog["domain"].to_pylist()],
        [_cut(one) for one in catalog["text"].to_pylist()],
        [labels[one] for one in catalog["split"].to_pylist()],
        everyone[chosen],
        trained[chosen],
        _together(store, chosen, with_validation),
        counted,
    )


def choose_items(
    num_users: NDArray[np.int64], num_training_users: NDArray[np.int64], max_items: int, seed: int
) -> NDArray[np.int32]:
    """Items to show, sorted: all, or the most interacted with and a random share of the rest.

    Half of the random share are items that users have and training never saw, where there are so many.

    Args:
        num_users, num_training_users: of every item of the catalog, (items,).
    """
    number = len(num_users)
    if number <= max_items:
        return np.arange(number, dtype=np.int32)
    generator = np.random.default_rng([seed, 3])
    order = np.argsort(-num_users, kind="stable")
    num_most = round(max_items * MOST_INTERACTED)
    most, rest = order[:num_most], order[num_most:]
    new = rest[(num_training_users[rest] == 0) & (num_users[rest] > 0)]
    num_new = min(len(new), (max_items - num_most) // 2)
    drawn = generator.choice(new, num_new, replace=False)
    others = np.setdiff1d(rest, drawn)
    more = generator.choice(others, max_items - num_most - num_new, replace=False)
    return np.sort(np.concatenate([most, drawn, more])).astype(np.int32)


def write_items(items: ReportItems, folder: Path, store_fingerprint: str) -> None:
    """Write them into a folder, the table last: one that is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with staged_file(folder / TOGETHER) as partial, open(partial, "wb") as file:
        sparse.save_npz(file, items.together)
    columns = {
        "item_index": items.item_index,
        "item_id": items.item_id,
        "domain": items.domain,
        "text": items.text,
        "split": items.split,
        "num_users": items.num_users,
        "num_training_users": items.num_training_users,
    }
    known = {STORE: store_fingerprint, COUNTED: str(items.counted_users)}
    with staged_file(folder / ITEMS) as partial:
        write_part(pa.table(columns).replace_schema_metadata(known), str(partial))


def read_items(folder: Path) -> ReportItems | None:
    """What `write_items` wrote; None where there is nothing."""
    if not (folder / ITEMS).is_file():
        return None
    table = read_part(str(folder / ITEMS))
    texts = {name: table[name].to_pylist() for name in ("item_id", "domain", "text", "split")}
    counts = {name: table[name].to_numpy() for name in ("item_index", "num_users", "num_training_users")}
    together = sparse.csr_matrix(sparse.load_npz(folder / TOGETHER))
    return ReportItems(**texts, **counts, together=together, counted_users=int(table.schema.metadata[COUNTED.encode()]))


def item_indices(folder: Path) -> NDArray[np.int32] | None:
    """Item indices of what `write_items` wrote; None where there is nothing."""
    if not (folder / ITEMS).is_file():
        return None
    indices: NDArray[np.int32] = read_part(str(folder / ITEMS), ["item_index"])["item_index"].to_numpy()
    return indices


def store_of_items(folder: Path) -> str | None:
    """Fingerprint of the store whose items `write_items` wrote; None where there is nothing."""
    if not (folder / ITEMS).is_file():
        return None
    return str(pq.read_schema(folder / ITEMS).metadata[STORE.encode()].decode())


def _user_parts(
    store: Store, with_validation: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]]:
    """Users' items as CSR, and which of the interactions are trained on, part by part."""
    share = min(1.0, MAX_USERS / max(1, store.meta.num_users))
    for domain in store.domains:
        left = math.ceil(share * domain.num_users)
        for path in store.user_paths(domain.name):
            if left <= 0:
                break
            part = read_part(path, INTERACTION_COLUMNS).slice(0, left)
            left -= len(part)
            yield trainable_interactions(part, with_validation)


def _together(store: Store, chosen: NDArray[np.int32], with_validation: bool) -> sparse.csr_matrix:
    together = sparse.csr_matrix((len(chosen), len(chosen)), dtype=np.float32)  # exact: MAX_USERS is below 2^24
    for indptr, items, _ in _user_parts(store, with_validation):
        places = np.minimum(np.searchsorted(chosen, items), len(chosen) - 1)
        users = masked_csr(indptr, places, chosen[places] == items, len(chosen))
        together = together + users.T @ users
    together = sparse.csr_matrix(together, dtype=np.int32)
    together.setdiag(0)
    together.eliminate_zeros()
    together.sort_indices()
    return together


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    beginning = text[: MAX_TEXT - 1]
    words, space, last = beginning.rpartition(" ")
    return (words if space and len(last) < LONGEST_WORD else beginning).rstrip() + "…"


def read_embeddings(folder: Path, name: str, number: int) -> NDArray[np.float32] | None:
    """Embeddings of a report's items, row-normalised; None where they were not kept, or are of other items.

    Args:
        folder: the run's `report/`.
        name: `ORIGINAL` or `TRAINED`.
        number: of items.
    """
    path = folder / f"{name}.npy"
    if not path.is_file():
        return None
    rows = np.load(path, allow_pickle=False).astype(np.float32)
    if len(rows) != number or not np.isfinite(rows).all():
        return None
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
