"""A store that has grown, compared with what an earlier run left: what it knew, and what of it was trained on.

runs/<name>/items.parquet       item_id string, domain, trained, content_hash: the store's items, and whether the run's
                                encoder ever trained on them: in the run, or before it in those that it began with; then
                                items of those runs that the store has no more
runs/<name>/users.npy           in a `user` split: hashes of the domain and id of users whom it ever trained on
runs/<name>/windows.json        in a `time` split: of each domain, the first timestamp that it never trained on

Where a run began with an encoder of unknown history (a copied one, a published one), nothing tells what that was
trained on. The list of items then says so in its metadata, for all runs that go on from there, and the other two are
not left.

What is held out is drawn, or cut, anew when a store grows, or when another seed or size is asked for. So some of it may
have been trained on, which flatters its figures; it is counted here.

Items are told apart by domain and id. A config may have another name for a domain (`books` beside films, `goodbooks`
alone), so in domains that the earlier stores did not name an item is an earlier one where id and text are the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beeray.data.id_ranges import hash_ids
from beeray.data.parts import REMEDY, read_part, write_part
from beeray.data.scored import SEEN_BEFORE
from beeray.data.splits import SPLITS, TRAIN, VALIDATION
from beeray.data.storage import resolve, storage_errors, write_bytes
from beeray.data.store import Store, list_column
from beeray.data.table_files import unreadable
from beeray.errors import DataError

BETWEEN = "\x1f"
USERS, WINDOWS = "users.npy", "windows.json"
"""Beside the list of items."""
UNKNOWN_START = {b"beeray.unknown_start": b"true"}
"""In the metadata of a list whose run, or one before it, began with an encoder of unknown history."""
HELD_OUT = {"item": "items", "user": "users", "time": "interactions"}
"""What each kind of split holds out."""
STRANGE = "domains_it_did_not_name"
"""In the record of an evaluation, the store's domains that the encoder's run, and those before it, did not name."""
HASH = "content_hash"
LISTED = pa.schema([("item_id", pa.string()), ("domain", pa.string()), ("trained", pa.bool_()), (HASH, pa.binary(16))])


@dataclass(frozen=True)
class Growth:
    """What an earlier run knew of a store.

    Attributes:
        known: bool (items,), whether the earlier store had the item, or one before it.
        trained: bool (items,), whether the earlier run trained on it, or one before it.
        domains: of the earlier stores.
        strange: those of the store that the earlier ones did not name.
        has_texts: whether the list tells what its items' texts hash to, as an earlier version's does not.
        gone: the earlier list's items that the store does not have, as in the list.
        users: sorted uint64 hashes of users whom the earlier run trained on, or one before it; None where not known.
        windows: by domain, the first timestamp that none of them trained on; None where not known.
        unknown_start: the earlier run, or one before it, began with an encoder of unknown history, so it was trained on
            more than is listed.
    """

    known: NDArray[np.bool_]
    trained: NDArray[np.bool_]
    domains: tuple[str, ...]
    strange: tuple[str, ...]
    gone: pa.Table
    has_texts: bool = True
    users: NDArray[np.uint64] | None = None
    windows: dict[str, int] | None = None
    unknown_start: bool = False

    def record(self, store: Store) -> dict[str, Any]:
        """How many items are old and new, and what `trained_on` says where that is known."""
        counts: dict[str, Any] = {"old_items": int(self.known.sum()), "new_items": int((~self.known).sum())}
        trained_on = self.trained_on(store)
        if trained_on is not None:
            counts[SEEN_BEFORE] = trained_on
        return counts

    def trained_on(self, store: Store) -> dict[str, int] | None:
        """How many held-out items, users or interactions (by the kind of split) are not unseen any more, by split.

        In a `time` split these are all of the window that was trained on, also those that came in later. Of strange
        domains only items are counted, where id and text are those of one that was trained on.

        Returns:
            None where the earlier run did not leave what is needed: its split was of another kind or of strange domains
            alone, it is too old, or it began with an encoder of unknown history.
        """
        if self.unknown_start:
            return None
        told = store.meta.split_kind == "item" and self.has_texts
        if not told and len(self.strange) == len(store.meta.domains):
            return None
        counts = dict.fromkeys((name for name, label in SPLITS.items() if label), 0)
        if store.meta.split_kind == "item":
            _count(counts, store.item_labels()[self.trained])
            return counts
        if store.meta.split_kind == "user" and self.users is not None:
            for path in store.user_paths():
                rows = read_part(path, ["user_id", "domain", "split"])
                rows = rows.filter(pc.not_equal(rows["split"], TRAIN))
                seen = np.isin(hash_ids(_keys(rows, "user_id")), self.users)
                _count(counts, rows["split"].to_numpy()[seen])
            return counts
        if store.meta.split_kind == "time" and self.windows is not None:
            for domain in store.domains:
                until = self.windows.get(domain.name)
                if until is None or domain.time_boundaries is None or until <= domain.time_boundaries[0]:
                    continue
                for path in store.user_paths(domain.name):
                    rows = read_part(path, ["splits", "timestamps"])
                    seen = list_column(rows["timestamps"])[1] < until
                    _count(counts, list_column(rows["splits"])[1][seen])
            return counts
        return None

    def said_of_strange(self, kind: str) -> str:
        """What is not known of domains that the earlier stores did not name, in words; empty where there are none.

        Args:
            kind: of split.
        """
        if not self.strange:
            return ""
        known = "is known by id and text alone" if kind == "item" and self.has_texts else "is not known"
        return (
            f"it was trained on {', '.join(self.domains)}; of {HELD_OUT[kind]} of {', '.join(self.strange)} it {known} "
            "whether they were among them under another name"
        )


def trained_on_before(store: Store, path: str | None) -> tuple[dict[str, int] | None, Growth | None]:
    """As `Growth.trained_on`, by the list of an earlier run, and what that list gives; None where it left none."""
    if path is None:
        return None, None
    growth = growth_since(store, path)
    return growth.trained_on(store), growth


def said_of(counts: Mapping[str, int], kind: str) -> str:
    """`it was trained on items that are held out now (3 of test)` in words and figures; empty where on nothing.

    Args:
        counts: by split, as `Growth.trained_on` gives them.
        kind: of split.
    """
    seen = ", ".join(f"{number:,} of {name}" for name, number in counts.items() if number)
    return f"it was trained on {HELD_OUT[kind]} that are held out now ({seen})" if seen else ""


def said_without_note(kind: str) -> str:
    """What is said of a run where `Growth.trained_on` is None, behind its name."""
    return f"left no note of the {HELD_OUT[kind]} that it was trained on, so they may be held out now"


def write_lists(
    store: Store, with_validation: bool, path: str, before: Growth | None = None, *, unknown_start: bool = False
) -> None:
    """Leave the list of a store's items, and what its split needs, for a later run that begins with this one.

    Of users and time nothing is left where the run itself does not know what was trained on before it.

    Args:
        path: of the list of items; the others are written beside it.
        before: what the run itself begins with.
        unknown_start: it begins with an encoder of which no list tells what it was trained on.
    """
    unknown_start |= before is not None and before.unknown_start
    trained = np.zeros(store.meta.num_items, dtype=bool) if before is None else before.trained.copy()
    trained[store.trainable_items(with_validation)] = True
    table = store.catalog(["item_id", "domain", HASH])
    columns = [table["item_id"], table["domain"], pa.array(trained), table[HASH]]
    listed = pa.table([one.cast(kind) for one, kind in zip(columns, LISTED.types, strict=True)], LISTED)
    if before is not None:
        listed = pa.concat_tables([listed, before.gone]).combine_chunks()
    write_part(listed.replace_schema_metadata(UNKNOWN_START if unknown_start else None), path)
    if unknown_start:
        return
    if store.meta.split_kind == "user" and (before is None or before.users is not None):
        users, file = _training_users(store, with_validation), io.BytesIO()
        np.save(file, users if before is None or before.users is None else np.union1d(users, before.users))
        write_bytes(str(Path(path).with_name(USERS)), file.getvalue())
    if store.meta.split_kind == "time" and (before is None or before.windows is not None):
        windows = {} if before is None else dict(before.windows or {})
        for domain in store.domains:
            if domain.time_boundaries is not None:
                until = domain.time_boundaries[1 if with_validation else 0]
                windows[domain.name] = max(until, windows.get(domain.name, until))
        write_bytes(str(Path(path).with_name(WINDOWS)), json.dumps(windows).encode())


def growth_since(store: Store, path: str) -> Growth:
    """A store compared with the list of items, and what lies beside it, that an earlier run left."""
    schema = _schema(path)
    has_texts = HASH in schema.names
    earlier = read_part(path, LISTED.names if has_texts else LISTED.names[:-1])
    if not has_texts:  # of an earlier version
        earlier = earlier.append_column(HASH, pa.nulls(earlier.num_rows, pa.binary(16)))
    earlier = earlier.cast(LISTED)
    table = store.catalog(["item_id", "domain", HASH])
    here, listed = _keys(table, "item_id"), _keys(earlier, "item_id")
    places = pc.index_in(here, value_set=listed)
    domains = tuple(pc.unique(earlier["domain"]).to_pylist())
    strange = tuple(name for name in store.meta.domains if name not in domains)
    if strange:
        of_text = pc.index_in(_text_keys(table), value_set=_text_keys(earlier), skip_nulls=True)
        named = pc.is_in(table["domain"].combine_chunks(), pa.array(domains, pa.string()))
        places = pc.if_else(named, places, of_text)
    gone = earlier.filter(pc.invert(pc.is_in(listed, value_set=here)))
    known = pc.is_valid(places).to_numpy(zero_copy_only=False)
    trained = np.concatenate([earlier["trained"].to_numpy(), [False]])[pc.fill_null(places, -1).to_numpy()]
    if _has_unknown_start(schema):  # what may lie beside it is of an earlier version, which did not know
        return Growth(known, trained, domains, strange, gone, has_texts, unknown_start=True)
    users, windows = (_left(Path(path).with_name(name)) for name in (USERS, WINDOWS))
    return Growth(known, trained, domains, strange, gone, has_texts, users, windows)


def has_unknown_start(path: str) -> bool:
    """Whether a list of items says that its run, or one before it, began with an encoder of unknown history.

    Raises:
        DataError: it is damaged, or not there.
    """
    return _has_unknown_start(_schema(path))


def _has_unknown_start(schema: pa.Schema) -> bool:
    return (schema.metadata or {}).items() >= UNKNOWN_START.items()


def _schema(path: str) -> pa.Schema:
    filesystem, inside = resolve(path)
    with unreadable(path, REMEDY), storage_errors(path):
        return pq.read_schema(inside, filesystem=filesystem)


def _left(path: Path) -> Any:
    """What a run left beside its list of items; None where it is not there."""
    if not path.is_file():
        return None
    try:
        with storage_errors(str(path)):
            return np.load(path) if path.suffix == ".npy" else {**json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, EOFError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged ({str(error).splitlines()[0][:200]}); delete it, and what was trained on is not known"
        ) from None


def _training_users(store: Store, with_validation: bool) -> NDArray[np.uint64]:
    """Hashes of a `user` split's training users, sorted."""
    last = VALIDATION if with_validation else TRAIN
    found = [np.empty(0, dtype=np.uint64)]
    for path in store.user_paths():
        rows = read_part(path, ["user_id", "domain", "split"])
        found.append(hash_ids(_keys(rows.filter(pc.less_equal(rows["split"], last)), "user_id")))
    return np.unique(np.concatenate(found))


def _count(counts: dict[str, int], labels: NDArray[np.int8]) -> None:
    for name in counts:
        counts[name] += int((labels == SPLITS[name]).sum())


def _keys(table: pa.Table, column: str) -> pa.Array:
    """Of each row its domain and id, as one text."""
    domain, one = (table[name].combine_chunks().cast(pa.large_string()) for name in ("domain", column))
    keys = pc.binary_join_element_wise(domain, one, pa.scalar(BETWEEN, pa.large_string()))
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys


def _text_keys(table: pa.Table) -> pa.Array:
    """Of each row its id and what its text hashes to, as bytes; null where that is not known."""
    hashes, ids = (table[name].combine_chunks() for name in (HASH, "item_id"))
    ids = ids.cast(pa.large_string()).cast(pa.large_binary())
    keys = pc.binary_join_element_wise(hashes.cast(pa.large_binary()), ids, pa.scalar(b"", pa.large_binary()))
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
