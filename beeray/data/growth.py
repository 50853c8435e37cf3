"""A store that has grown: which of its items an earlier run knew, told by item id and domain, and which it trained on.

runs/<name>/items.parquet   item_id string, domain, trained: the store's items, and whether the run's encoder ever
                            trained on them: in the run, or before it in those that it began with; then items of those
                            runs that the store has no more
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beeray.data.parts import read_part, write_part
from beeray.data.splits import SPLITS
from beeray.data.store import Store

BETWEEN = "\x1f"


@dataclass(frozen=True)
class Growth:
    """What an earlier run knew of a store's items.

    Attributes:
        known: bool (items,), whether the earlier store had the item, or one before it.
        trained: bool (items,), whether the earlier run trained on it, or one before it.
        domains: of the earlier stores.
        gone: the earlier list's items that the store does not have, as in the list.
    """

    known: NDArray[np.bool_]
    trained: NDArray[np.bool_]
    domains: tuple[str, ...]
    gone: pa.Table

    def record(self, store: Store) -> dict[str, Any]:
        """How many items are old and new; in an `item` split also how many held-out ones are not unseen any more."""
        counts: dict[str, Any] = {"old_items": int(self.known.sum()), "new_items": int((~self.known).sum())}
        if store.meta.split_kind == "item":
            labels = store.item_labels()
            counts["held_out_but_trained_on_before"] = {
                split: int((self.trained & (labels == label)).sum()) for split, label in SPLITS.items() if label
            }
        return counts


def write_items(store: Store, with_validation: bool, path: str, before: Growth | None = None) -> None:
    """Leave the list of a store's items, for a later run that begins with what this one learned.

    Args:
        before: what the run itself begins with.
    """
    trained = np.zeros(store.meta.num_items, dtype=bool) if before is None else before.trained.copy()
    trained[store.trainable_items(with_validation)] = True
    table = store.catalog(["item_id", "domain"])
    listed = pa.table(
        {
            "item_id": table["item_id"].cast(pa.string()),
            "domain": table["domain"].cast(pa.string()),
            "trained": pa.array(trained),
        }
    )
    write_part(listed if before is None else pa.concat_tables([listed, before.gone]).combine_chunks(), path)


def growth_since(store: Store, path: str) -> Growth:
    """A store compared with the list that an earlier run left."""
    earlier = read_part(path, ["item_id", "domain", "trained"])
    here, listed = _keys(store.catalog(["item_id", "domain"])), _keys(earlier)
    places = pc.index_in(here, value_set=listed)
    gone = earlier.filter(pc.invert(pc.is_in(listed, value_set=here)))
    known = pc.is_valid(places).to_numpy(zero_copy_only=False)
    trained = np.concatenate([earlier["trained"].to_numpy(), [False]])[pc.fill_null(places, -1).to_numpy()]
    of_text = pa.schema([("item_id", pa.string()), ("domain", pa.string()), ("trained", pa.bool_())])
    return Growth(known, trained, tuple(pc.unique(earlier["domain"]).to_pylist()), gone.cast(of_text))


def _keys(table: pa.Table) -> pa.Array:
    domain, item = (table[name].combine_chunks().cast(pa.large_string()) for name in ("domain", "item_id"))
    keys = pc.binary_join_element_wise(domain, item, pa.scalar(BETWEEN, pa.large_string()))
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
