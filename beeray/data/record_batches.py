"""Arrow IPC files of numbered record batches: what one task deals out to many that come after it.

One file a task and one batch a receiver, so that the number of files grows with the tasks alone, and a receiver
reads its own rows of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beeray.data.catalog import one_array
from beeray.data.storage import resolve, storage_errors

IPC = pa.ipc.IpcWriteOptions(compression="lz4")


def batches_by(rows: pa.Table, numbers: NDArray[np.integer], count: int) -> pa.Buffer:
    """Rows as an Arrow IPC file of `count` record batches, by their numbers; rows of one number keep their order."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema, options=IPC) as writer:
        for part in parts_by(rows, numbers, count):
            writer.write_batch(one_batch(part))
    return sink.getvalue()


def parts_by(rows: pa.Table, numbers: NDArray[np.integer], count: int) -> Iterator[pa.Table]:
    """The rows of each number below `count`, in their order."""
    order = np.argsort(numbers.astype(np.min_scalar_type(count)), kind="stable")  # 16 bits are sorted by radix
    counts = np.bincount(numbers, minlength=count)
    sorted_rows = rows.take(pa.array(order))
    for size, end in zip(counts, np.cumsum(counts), strict=True):
        yield sorted_rows.slice(end - size, size)


def one_batch(rows: pa.Table) -> pa.RecordBatch:
    """Rows as one record batch, whatever chunks they lie in."""
    columns = [one_array(column) for column in rows.columns]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def read_batch(path: str, number: int) -> pa.Table:
    """The rows of one number."""
    filesystem, inside = resolve(path)
    with storage_errors(path), filesystem.open_input_file(inside) as stream:
        return pa.Table.from_batches([pa.ipc.open_file(stream).get_batch(number)])
