"""A readable piece of a table: a row group, a range of a CSV, a file, or part of a table in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from pyarrow import parquet as pq

from beeray.config.credentials import shown_uri
from beeray.data.csv_ranges import CsvRange
from beeray.data.table_files import (
    BLOCK_BYTES,
    check_structure,
    first_line,
    first_other_id,
    format_of,
    unreadable,
    whole_numbers,
)
from beeray.errors import DataError

BATCH_ROWS = 16_384
NARROW_ROWS = 262_144
"""Rows that are read at once, at most; more where there are only ids and numbers (`NARROW`)."""
BATCH_BYTES = 16 << 20
"""Rows of a parquet file that are read at once; its columns are read through buffers of `BUFFER_BYTES`."""
BUFFER_BYTES = 4 << 20
FRAGMENT_SHIFT = 40
ROW = "row"
IDS = ("user_id", "item_id")
NARROW = {*IDS, "value", "timestamp"}
REPAIR = "repair the file, or give the column one type"
REPAIR_CSV = (
    f"repair the file; where the value is right, move its row to the top, for the first {BLOCK_BYTES >> 20} MiB tell "
    "the type of its column, or give the table as parquet"
)


@dataclass(frozen=True)
class Fragment:
    """A readable piece of a table; picklable.

    Attributes:
        weight: rows, or KiB where those are more, as far as they are known without reading; 1 at least.
    """

    number: int
    path: str
    piece: pa.Table | pads.Fragment | CsvRange
    columns: dict[str, str]
    schema: pa.Schema
    weight: int = 1

    @property
    def num_rows(self) -> int:
        """Rows of a row group, or of a piece of a table in memory."""
        if isinstance(self.piece, pa.Table):
            return int(self.piece.num_rows)
        assert isinstance(self.piece, pads.ParquetFileFragment), self.piece
        return sum(int(group.num_rows) for group in self.piece.row_groups)

    def read(self) -> Iterator[pa.Table]:
        """Batches of standard columns and `row` (fragment number << 40 | row inside the fragment).

        Raises:
            DataError: the file is damaged, or a value does not fit its column's type.
        """
        first = self.number << FRAGMENT_SHIFT
        for batch in self._batches():
            table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
            table = pa.table({name: self._typed(name, table[column]) for name, column in self.columns.items()})
            rows = pa.array(np.arange(first, first + table.num_rows, dtype=np.int64))
            first += table.num_rows
            try:
                table = table.cast(self.schema)
            except pa.ArrowException as error:
                raise DataError(
                    f"{shown_uri(self.path)}: a value has another type than its column ({first_line(error)})"
                ) from error
            yield table.append_column(ROW, rows)

    def _typed(self, name: str, values: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Ids of a CSV, which come as text, as numbers where the table has such; any other column as it is."""
        if not (pa.types.is_string(values.type) and pa.types.is_integer(self.schema.field(name).type)):
            return values
        ids = pa.concat_arrays(values.chunks)
        numbers = whole_numbers(ids)
        if numbers is None:
            where = f"{shown_uri(self.path)}: {self.columns[name]}"
            raise DataError(
                f"{where} {first_other_id(ids)!r} is no plain whole number, and all ids in the first "
                f"{BLOCK_BYTES >> 20} MiB are; move its row to the top of the file, which makes the whole column text, "
                "or give the table as parquet with text for ids"
            )
        return numbers

    def _batches(self) -> Iterator[pa.RecordBatch | pa.Table]:
        num_rows = NARROW_ROWS if NARROW.issuperset(self.columns) else BATCH_ROWS
        if isinstance(self.piece, pa.Table):
            yield from (self.piece.slice(at, num_rows) for at in range(0, self.piece.num_rows, num_rows))
            return
        columns = list(dict.fromkeys(self.columns.values()))
        with unreadable(self.path, REPAIR_CSV if format_of(self.path) == "csv" else REPAIR):
            if isinstance(self.piece, pads.ParquetFileFragment):
                yield from _parquet_batches(self.piece, columns, num_rows)
            elif isinstance(self.piece, CsvRange):
                yield from self.piece.batches(columns)
            else:
                for batch in self.piece.to_batches(
                    columns=columns, batch_size=num_rows, batch_readahead=1, fragment_readahead=1
                ):
                    check_structure(batch)
                    yield batch


def _parquet_batches(
    piece: pads.ParquetFileFragment, columns: Sequence[str], num_rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of one row group, page by page: a scan of the dataset would hold all of it, read and decoded."""
    with piece.open() as stream:
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES, arrow_extensions_enabled=False)
        for number in [group.id for group in piece.row_groups]:
            group = file.metadata.row_group(number)
            chunks = [group.column(at) for at in range(group.num_columns)]
            size = sum(
                chunk.total_uncompressed_size
                for chunk in chunks
                if chunk.path_in_schema in columns or chunk.path_in_schema.partition(".")[0] in columns
            )
            rows = max(1, min(num_rows, BATCH_BYTES * group.num_rows // max(1, size)))
            yield from file.iter_batches(rows, row_groups=[number], columns=list(columns), use_threads=False)
