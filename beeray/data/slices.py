"""Slices of a table that hold so many rows and so many bytes, whatever lies in its rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

SLICE_ROWS = 65_536
SLICE_BYTES = 64 << 20


def slices(table: pa.Table, max_rows: int = SLICE_ROWS, max_bytes: int = SLICE_BYTES) -> Iterator[pa.Table]:
    """A table in order, without a copy, in slices of at most so many rows and bytes of text; a longer row is alone."""
    if not table.num_rows:
        return
    ends = np.cumsum(_row_bytes(table))
    start = 0
    while start < table.num_rows:
        before = int(ends[start - 1]) if start else 0
        fits = int(np.searchsorted(ends, before + max_bytes, side="right"))
        end = min(max(fits, start + 1), start + max_rows, table.num_rows)
        yield table.slice(start, end - start)
        start = end


def _row_bytes(table: pa.Table) -> NDArray[np.int64]:
    """Bytes of text of each row, (rows,), from offsets alone: text is neither copied nor looked at."""
    total = np.zeros(table.num_rows, dtype=np.int64)
    for column in table.columns:
        start = 0
        for chunk in column.chunks:
            lengths = _lengths(chunk)
            if lengths is not None:
                total[start : start + len(chunk)] += pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
            start += len(chunk)
    return total


def _lengths(chunk: pa.Array) -> pa.Array | None:
    kind = chunk.type
    if pa.types.is_dictionary(kind):
        lengths = _lengths(chunk.dictionary)
        return None if lengths is None else lengths.take(chunk.indices)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pc.binary_length(chunk.view(pa.binary_view()).cast(pa.large_binary()))
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pc.binary_length(chunk) if text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None
