"""The prepared store: what training and evaluation read.

    store/meta.json                 `StoreMeta`; a store without it is not there
    store/catalog/part-*.parquet    item_index, item_id, domain, text, content_hash, split
    store/users/part-*.parquet      user_index, user_id, domain, split, item_indices, splits, timestamps
    store/tokens/<digest>/          see `tokens.py`

Parts are in the order of their indices. `splits` labels every interaction (0 train, 1 validation,
2 test), `split` every item (`item` split) or user (`user` split); `splits.py` says what they mean.

Of several domains each has a range of item indices and one of user indices, one domain after the other, and parts
of its own (`users/part-<domain>-<bucket>.parquet`). What names an item or a user is its domain *and* its id: two
domains may use the same ids. Where their ids are of two types all are strings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from beeray.data.parts import read_part
from beeray.data.splits import SPLITS, TEST, TRAIN, VALIDATION, evaluation_masks, training_mask
from beeray.data.storage import exists, join, list_files, read_json, resolve
from beeray.data.store_meta import SCHEMA_VERSION, DomainMeta, StoreMeta
from beeray.errors import BeerayError, OlderStoreError, StoreError

META = "meta.json"
CATALOG_COLUMNS = {
    "item_index": pa.int32(),
    "item_id": None,
    "domain": pa.string(),
    "text": pa.string(),
    "content_hash": pa.binary(16),
    "split": pa.int8(),
}
USER_COLUMNS = {
    "user_index": pa.int32(),
    "user_id": None,
    "domain": pa.string(),
    "split": pa.int8(),
    "item_indices": pa.list_(pa.int32()),
    "splits": pa.list_(pa.int8()),
    "timestamps": pa.list_(pa.int64()),
}
"""Columns of the parts and their types; None: int64 or string."""
INTERACTION_COLUMNS = ["split", "item_indices", "splits"]
"""What of a users part says who has what, and for which use."""


@dataclass(frozen=True)
class UserBlock:
    """Some users to evaluate.

    Attributes:
        user_index: int32 (users,).
        history, targets: float32 0/1 CSR, (users, items).
    """

    user_index: NDArray[np.int32]
    history: sparse.csr_matrix
    targets: sparse.csr_matrix


class Store:
    """An opened store. Picklable: it holds paths and counts, no data."""

    def __init__(self, path: str, meta: StoreMeta) -> None:
        self.path = path
        self.meta = meta

    @classmethod
    def open(cls, path: str) -> Store:
        """Open a whole store.

        Raises:
            StoreError: missing, half-written, damaged, or written by a newer version (`OlderStoreError`: an older one).
        """
        marker = join(path, META)
        if not exists(marker):
            raise StoreError(f"store {path!r}: no {META} there, so no whole store; run beeray.prepare")
        try:
            record = read_json(marker)
            version = int(record["schema_version"])
            meta = StoreMeta.from_record(record) if version == SCHEMA_VERSION else None
        except BeerayError:  # storage that does not answer says nothing about the store
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StoreError(
                f"store {path!r}: {META} is damaged ({error}); delete the store and prepare again"
            ) from error
        if meta is None:
            older = 1 <= version < SCHEMA_VERSION
            raise (OlderStoreError if older else StoreError)(
                f"store {path!r}: schema_version is {version}, this beeray reads {SCHEMA_VERSION}; "
                + ("update beeray" if version > SCHEMA_VERSION else "delete the store and prepare again")
            )
        return cls(path, meta)

    @classmethod
    def is_at(cls, path: str, fingerprint: str) -> bool:
        """Whether a whole store of a fingerprint is there."""
        try:
            return cls.open(path).meta.fingerprint == fingerprint
        except StoreError:
            return False

    def check_unchanged(self) -> None:
        """Refuse what was read from a store that another command has replaced meanwhile.

        Raises:
            StoreError: another one is at its path now, or none.
        """
        if not Store.is_at(self.path, self.meta.fingerprint):
            raise StoreError(
                f"store {self.path!r} was replaced or removed while it was read: another command prepared it from "
                "other tables, rules or splits; run the same command again, and give each config its own data.store"
            )

    @cached_property
    def domains(self) -> list[DomainMeta]:
        """What is known of each domain, in the order of their indices."""
        meta = self.meta
        if meta.by_domain:
            return [DomainMeta(**one) for one in meta.by_domain]
        known = {one.name for one in dataclasses.fields(DomainMeta)}
        of_all = {one.name: getattr(meta, one.name) for one in dataclasses.fields(StoreMeta) if one.name in known}
        return [DomainMeta(name=meta.domains[0], **of_all)]

    def domain(self, name: str) -> DomainMeta:
        """What is known of one domain.

        Raises:
            StoreError: there is none of that name.
        """
        for one in self.domains:
            if one.name == name:
                return one
        raise StoreError(f"store {self.path!r}: has no domain {name!r}; its domains are {', '.join(self.meta.domains)}")

    @property
    def item_domains(self) -> NDArray[np.int16]:
        """Place in `domains` of every item's domain; int16 (items,)."""
        return np.repeat(np.arange(len(self.domains), dtype=np.int16), [one.num_items for one in self.domains])

    def catalog_paths(self) -> list[str]:
        """Parts of the catalog, in order."""
        return self._parts("catalog")

    def user_paths(self, domain: str | None = None) -> list[str]:
        """Parts of the users, in order; of one domain or of all."""
        paths = self._parts("users")
        if domain is None or not self.meta.by_domain:
            return paths
        begins = user_part_name(self.meta.domains.index(domain), 0)[: -len("00000.parquet")]
        return [path for path in paths if path.rpartition("/")[2].startswith(begins)]

    def catalog(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of the whole catalog, in the order of item_index."""
        return pa.concat_tables([read_part(path, columns) for path in self.catalog_paths()])

    def item_ids(self) -> pa.ChunkedArray:
        """Raw id of every item."""
        return self.catalog(["item_id"])["item_id"]

    def user_ids(self, user_index: Sequence[int]) -> list[Any]:
        """Raw ids of some users, in the order of their indices."""
        wanted, found = pa.array(sorted(user_index), pa.int32()), []
        for path in self.user_paths() if len(wanted) else ():
            rows = read_part(path, ["user_index", "user_id"])
            found += rows.filter(pc.is_in(rows["user_index"], wanted))["user_id"].to_pylist()
        return found

    def item_labels(self) -> NDArray[np.int8]:
        """Label of every item: 0 train, 1 validation, 2 test; int8 (items,)."""
        return self.catalog(["split"])["split"].to_numpy()

    def trainable_items(self, with_validation: bool) -> NDArray[np.int32]:
        """Items that training may encode, sorted; everything unless the split is by item."""
        last = VALIDATION if with_validation else TRAIN
        return np.flatnonzero(self.item_labels() <= last).astype(np.int32)

    def candidates(self, split: str, domain: str | None = None) -> NDArray[np.int32]:
        """Items that are ranked when `split` is evaluated, sorted: its held-out items, or the catalog.

        Args:
            domain: whose items; all unless given.
        """
        inside = slice(0, self.meta.num_items) if domain is None else self.domain(domain).item_range
        if self.meta.split_kind == "item":
            held_out = self.item_labels()[inside] == SPLITS[split]
            return (np.flatnonzero(held_out) + inside.start).astype(np.int32)
        return np.arange(inside.start, inside.stop, dtype=np.int32)

    def items_within(self, split: str) -> NDArray[np.int32]:
        """Items of any interaction of `split`, sorted."""
        found = np.zeros(self.meta.num_items, dtype=bool)
        for path in self.user_paths():
            rows = read_part(path, ["item_indices", "splits"])
            found[list_column(rows["item_indices"])[1][list_column(rows["splits"])[1] == SPLITS[split]]] = True
        return np.flatnonzero(found).astype(np.int32)

    def training_interactions(self, with_validation: bool) -> sparse.csr_matrix:
        """All that training may see, users with a single item too; float32 0/1 CSR (users, items)."""
        parts: list[sparse.csr_matrix] = []
        for path in self.user_paths():
            indptr, items, mask = trainable_interactions(read_part(path, INTERACTION_COLUMNS), with_validation)
            parts.append(masked_csr(indptr, items, mask, self.meta.num_items))
        self.check_unchanged()
        return sparse.vstack(parts, format="csr")

    def num_training_users(self, with_validation: bool) -> int:
        """Users with two or more trainable interactions."""
        return self.meta.training_users["train+validation" if with_validation else "train"]

    def evaluation_users(
        self,
        split: str,
        users_per_block: int,
        *,
        shard: int = 0,
        num_shards: int = 1,
        domain: str | None = None,
        all_inputs: bool = False,
    ) -> Iterator[UserBlock]:
        """Users with at least one input and one target in `split`, block by block.

        Args:
            users_per_block: most users of a block.
            shard, num_shards: every `num_shards`-th user from `shard` on.
            domain: whose users; all unless given.
            all_inputs: whatever came before the split is input, also where the published protocol leaves some out.
        """
        published = self.meta.published_inputs and not all_inputs
        columns = ["user_index", *INTERACTION_COLUMNS]
        for path in self.user_paths(domain):
            filesystem, inside = resolve(path)
            with filesystem.open_input_file(inside) as file:
                for batch in pq.ParquetFile(file).iter_batches(
                    batch_size=users_per_block * num_shards, columns=columns
                ):
                    mine = np.flatnonzero(batch["user_index"].to_numpy() % num_shards == shard)
                    block = self._user_block(split, batch.take(pa.array(mine)), published=published)
                    if len(block.user_index):
                        yield block
        self.check_unchanged()

    def _user_block(self, split: str, batch: pa.RecordBatch, *, published: bool) -> UserBlock:
        indptr, items, user_labels, labels = _interactions(batch)
        masks = evaluation_masks(self.meta.split_kind, split, user_labels, labels, published=published)
        history, targets = (masked_csr(indptr, items, mask, self.meta.num_items) for mask in masks)
        both = np.flatnonzero((np.diff(history.indptr) > 0) & (np.diff(targets.indptr) > 0))
        return UserBlock(batch["user_index"].to_numpy()[both], history[both], targets[both])

    def _parts(self, folder: str) -> list[str]:
        return [file.path for file in list_files(join(self.path, folder))]


def training_rows(batch: pa.Table, with_validation: bool) -> pa.Table:
    """Users of a part with their trainable items: user_index, item_indices list<int32>.

    Users left with fewer than two are dropped: there is nothing to reconstruct.
    """
    indptr, items, mask = trainable_interactions(batch, with_validation)
    counts = np.diff(np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[indptr])
    enough = counts >= 2
    mask &= np.repeat(enough, np.diff(indptr))
    offsets = np.concatenate([[0], np.cumsum(counts[enough])]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(items[mask]))
    return pa.table({"user_index": batch["user_index"].to_numpy()[enough], "item_indices": lists})


def trainable_interactions(
    rows: pa.Table, with_validation: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
    """Users' items as CSR (indptr, flat items), and which of the interactions are trained on.

    Args:
        rows: of a users part, with `INTERACTION_COLUMNS`.
    """
    indptr, items, user_labels, labels = _interactions(rows)
    return indptr, items, training_mask(user_labels, labels, with_validation)


def _interactions(
    rows: pa.Table | pa.RecordBatch,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int8], NDArray[np.int8]]:
    """indptr (users + 1,), then of every interaction its item, its user's label and its own."""
    indptr, items = list_column(rows["item_indices"])
    _, labels = list_column(rows["splits"])
    return indptr, items, np.repeat(rows["split"].to_numpy(), np.diff(indptr)), labels


def list_column(column: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """A list column as CSR: indptr int64 (rows + 1,) from 0, and flat values."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], values


def user_part_name(domain: int | None, bucket: int) -> str:
    """Name of the part that a bucket of users becomes.

    Args:
        domain: place of their domain among several; None where there is one.
    """
    return f"part-{bucket:05d}.parquet" if domain is None else f"part-{domain:03d}-{bucket:05d}.parquet"


def label_counts(labels: NDArray[np.int8]) -> dict[str, int]:
    """How many carry each label, e.g. `{"train": 3, "validation": 0, "test": 1}`."""
    counts = np.bincount(labels, minlength=TEST + 1)
    return {name: int(counts[label]) for name, label in SPLITS.items()}


def masked_csr(
    indptr: NDArray[np.int64], items: NDArray[np.integer[Any]], mask: NDArray[np.bool_], num_items: int
) -> sparse.csr_matrix:
    """The interactions that a mask keeps, float32 0/1 CSR (users, items)."""
    kept = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[indptr]
    chosen = items[mask]
    shape = (len(indptr) - 1, num_items)
    return sparse.csr_matrix((np.ones(len(chosen), dtype=np.float32), chosen, kept), shape=shape)
