"""Published embeddings as PostgreSQL's COPY reads them into a pgvector column.

    COPY items (item_id, embedding) FROM STDIN        one line an item: id, tab, [0.1,0.2,…]

The text format of COPY: backslash, tab, newline and carriage return inside a value are escaped.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beeray.data.embeddings import Embeddings

BLOCK_ROWS = 8192
ESCAPES = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}
"""Backslash first: the others bring one in."""


class Writes(Protocol):
    """A binary file, or psycopg's `cursor.copy(…)`."""

    def write(self, data: bytes, /) -> object:
        """Take some bytes."""


def write_pgvector_copy(published: Embeddings, stream: Writes) -> int:
    """Write a publication as rows for `COPY <table> (item_id, embedding) FROM STDIN`, a block at a time.

    Vectors are decoded to float32, whatever they are stored as, and written so that they read back to the bit.

    Args:
        stream: UTF-8 goes in; an open binary file or a psycopg copy.

    Returns:
        Rows written.
    """
    rows = 0
    for table in published.iter_batches(BLOCK_ROWS, ["item_id", "embedding"]):
        vectors = published.vectors(table)
        numbers = pc.cast(pa.array(vectors.reshape(-1)), pa.string())
        ends = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * published.dim)
        texts = pc.binary_join(pa.ListArray.from_arrays(ends, numbers), ",")
        lines = pc.binary_join_element_wise(escape_copy(table["item_id"].combine_chunks()), "\t[", texts, "]", "")
        if len(lines):
            stream.write(("\n".join(lines.to_pylist()) + "\n").encode())
        rows += len(lines)
    return rows


def escape_copy(ids: pa.Array) -> pa.Array:
    """Ids as text values of COPY."""
    texts = pc.cast(ids, pa.string())
    for sign, escaped in ESCAPES.items():
        texts = pc.replace_substring(texts, sign, escaped)
    return texts
