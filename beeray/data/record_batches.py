"""Arrow IPC files of numbered record batches: what one task deals out to many that come after it.

One file a task and one batch a receiver, so that the number of files grows with the tasks alone, and a receiver
reads its own rows of each.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beeray.data.storage import resolve, storage_errors

IPC = pa.ipc.IpcWriteOptions(compression="lz4")


def batches_by(rows: pa.Table, numbers: NDArray[np.integer], count: int) -> pa.Buffer:
    """Rows as an Arrow IPC file of `count` record batches, by their numbers; rows of one number keep their order."""
    order = np.argsort(numbers.astype(np.min_scalar_type(count)), kind="stable")  # 16 bits are sorted by radix
    counts = np.bincount(numbers, minlength=count)
    ends = np.cumsum(counts)
    sorted_rows = rows.take(pa.array(order)).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, sorted_rows.schema, options=IPC) as writer:
        for size, end in zip(counts, ends, strict=True):
            part = sorted_rows.slice(end - size, size).combine_chunks()  # more than one chunk beyond 2 GiB of text
            writer.write_batch(part.to_batches()[0] if size else pa.RecordBatch.from_pylist([], sorted_rows.schema))
    return sink.getvalue()


def read_batch(path: str, number: int) -> pa.Table:
    """The rows of one number."""
    filesystem, inside = resolve(path)
    with storage_errors(path), filesystem.open_input_file(inside) as stream:
        return pa.Table.from_batches([pa.ipc.open_file(stream).get_batch(number)])
