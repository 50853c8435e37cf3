"""Dealing ids by ranges of a hash: the same on every machine, whatever the number of ranges.

Ranges one after the other hold ids in hash order, so what was dealt to one number of ranges can be
joined with what was dealt to another: each range of the one overlaps a few neighbours of the other.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

HASH_BITS = 32
"""Upper bits of the hash that decide the range."""


def hash_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each id, the same on every machine."""
    if pa.types.is_integer(ids.type):
        return pd.util.hash_array(ids.to_numpy(zero_copy_only=False).astype(np.int64))
    encoded = pc.dictionary_encode(ids)
    if not len(encoded.dictionary):
        return np.empty(0, dtype=np.uint64)
    hashed = pd.util.hash_array(np.asarray(encoded.dictionary.to_pylist(), dtype=object), categorize=False)
    return hashed[encoded.indices.to_numpy()]


def comparable(ids: pa.Array) -> pa.Array:
    """Ids in the one wide type in which ids of other widths are equal to them; as `hash_ids` sees them."""
    return ids.cast(pa.int64(), safe=False) if pa.types.is_integer(ids.type) else ids.cast(pa.large_string())


def ranges_of(hashes: NDArray[np.uint64], num_ranges: int) -> NDArray[np.int32]:
    """The range of each hash, of `num_ranges` equal ones; int32 (ids,)."""
    return ((hashes >> np.uint64(64 - HASH_BITS)) * np.uint64(num_ranges) >> np.uint64(HASH_BITS)).astype(np.int32)


def overlapping_ranges(number: int, num_ranges: int, other_num_ranges: int) -> range:
    """Ranges, of `other_num_ranges`, that share hashes with range `number` of `num_ranges`."""
    first_hash = -(-(number << HASH_BITS) // num_ranges)
    last_hash = -(-((number + 1) << HASH_BITS) // num_ranges) - 1
    return range(first_hash * other_num_ranges >> HASH_BITS, (last_hash * other_num_ranges >> HASH_BITS) + 1)


def evenly(rows: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """At most so many of some rows, evenly over all: rows of a file are sorted by id, low ids are often old ones."""
    if len(rows) <= num_rows:
        return rows
    return rows[np.arange(num_rows) * len(rows) // num_rows]
