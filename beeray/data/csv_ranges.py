"""A large CSV file as ranges of bytes that several tasks read at once.

Only where a cut is sure to fall between two rows: in a local, uncompressed file without a single quote character,
every line break ends a row. That is so for tables of ids and numbers; any other file stays in one piece.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
from pyarrow import fs

RANGE_BYTES = 32 << 20
BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class CsvRange:
    """Rows of a CSV file; picklable.

    Attributes:
        path: of the file, local.
        start, stop: bytes, from the beginning of a row to the end of one; the header is in no range.
        schema: of all columns of the file.
        check_utf8: refuse texts that are no UTF-8.
    """

    path: str
    start: int
    stop: int
    schema: pa.Schema
    check_utf8: bool = True

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows, some megabytes at a time."""
        convert = pyarrow.csv.ConvertOptions(
            column_types=self.schema, include_columns=list(columns), check_utf8=self.check_utf8
        )
        read = pyarrow.csv.ReadOptions(column_names=self.schema.names, block_size=BLOCK_BYTES, use_threads=False)
        with fs.LocalFileSystem().open_input_file(self.path) as file:
            stream = file.get_stream(self.start, self.stop - self.start)
            yield from pyarrow.csv.open_csv(stream, read_options=read, convert_options=convert)


def csv_ranges(path: str, schema: pa.Schema, *, check_utf8: bool = True, has_header: bool = True) -> list[CsvRange]:
    """Ranges of some `RANGE_BYTES` that make up a local CSV file; none where it had better stay in one piece."""
    size = Path(path).stat().st_size
    if size < 2 * RANGE_BYTES or path.lower().endswith(".gz"):
        return []
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'"') >= 0 or content[:1] in (b"\n", b"\r"):
            return []
        starts = [content.find(b"\n") + 1 if has_header else 0]
        while starts[-1] + RANGE_BYTES < size and (cut := content.find(b"\n", starts[-1] + RANGE_BYTES) + 1):
            starts.append(cut)
    if has_header and not starts[0]:  # there is no line break at all
        return []
    stops = [*starts[1:], size][: len(starts)]
    return [
        CsvRange(path, start, stop, schema, check_utf8)
        for start, stop in zip(starts, stops, strict=True)
        if start < stop
    ]
