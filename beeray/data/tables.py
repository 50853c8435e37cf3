"""Anyone's table as a stream of Arrow batches, with a row number that tells the original order.

Reading is pyarrow.dataset's (parquet, CSV, feather; a file, a folder or a glob). Fragments travel to
Ray tasks, each of which yields one batch after the other, so nobody holds a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as pads
from pyarrow import fs

from beeray.data.storage import list_files, resolve
from beeray.errors import DataError

if TYPE_CHECKING:
    import ray.data

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".feather": "feather",
    ".arrow": "feather",
    ".ipc": "feather",
}
BATCH_ROWS = 262_144
FRAGMENT_SHIFT = 40
ROW = "row"
IDS = ("user_id", "item_id")
PARSE_CSV = pyarrow.csv.ParseOptions(newlines_in_values=True)
READ_CSV = pyarrow.csv.ReadOptions(block_size=8 << 20)


@dataclass(frozen=True)
class Table:
    """A table of standard columns somewhere, or in memory.

    Attributes:
        source: path (file, folder, glob, any filesystem), or an Arrow table.
        columns: standard name → name in the files.
        label: how errors call it, e.g. `catalog`.
    """

    source: str | pa.Table
    columns: Mapping[str, str]
    label: str = "table"

    def check(self) -> pa.Schema:
        """The schema of the standard columns, after checking that every file has them.

        Raises:
            DataError: no file, unknown format, unreadable file, or a missing column.
        """
        if isinstance(self.source, pa.Table):
            schema = self.source.schema
            self._require(schema, "the table in memory")
            return self._standard(schema)
        schemas: list[pa.Schema] = []
        for fragment in self._file_fragments():
            this = _physical_schema(fragment)
            self._require(this, fragment.path)
            schemas.append(self._standard(this))
            try:
                schemas = [pa.unify_schemas(schemas, promote_options="permissive")]
            except pa.ArrowException as error:
                raise DataError(
                    f"{fragment.path}: {self.label}'s columns have other types than in the files before it "
                    f"({_first_line(error)}); give all parts the same types"
                ) from error
        return schemas[0]

    def fragments(self) -> list[Fragment]:
        """Pieces of the table that can be read independently, in the table's order."""
        if isinstance(self.source, pa.Table):
            starts = range(0, max(1, self.source.num_rows), BATCH_ROWS * 4)
            pieces: list[pa.Table | pads.Fragment] = [self.source.slice(start, BATCH_ROWS * 4) for start in starts]
        else:
            pieces = []
            for fragment in self._file_fragments():
                split = isinstance(fragment, pads.ParquetFileFragment)
                pieces += fragment.split_by_row_group() if split else [fragment]
        schema = self.check()
        return [Fragment(number, piece, dict(self.columns), schema) for number, piece in enumerate(pieces)]

    def dataset(self) -> ray.data.Dataset:
        """The table as a streaming Ray dataset of standard columns and `row`."""
        import ray

        fragments = self.fragments()
        blocks = ray.data.from_items([{"fragment": f} for f in fragments], override_num_blocks=len(fragments))
        return blocks.map_batches(_read, batch_size=1, batch_format="numpy", num_cpus=1)

    def fingerprint(self) -> str:
        """Digest that changes with the content: of the files' names, sizes and times, or of the rows."""
        digest = hashlib.sha256(repr(sorted(self.columns.items())).encode())
        if isinstance(self.source, pa.Table):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, self.source.schema) as writer:
                writer.write_table(self.source.combine_chunks())
            digest.update(sink.getvalue())
        else:
            for file in list_files(self.source):
                digest.update(f"{file.path}|{file.size}|{file.modified_ns}".encode())
        return digest.hexdigest()[:16]

    def _standard(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([pa.field(name, schema.field(column).type) for name, column in self.columns.items()])

    def _require(self, schema: pa.Schema, where: str) -> None:
        for name, column in self.columns.items():
            if column not in schema.names:
                raise DataError(
                    f"{where}: {self.label} has no column {column!r} (for {name}); "
                    f"its columns are {', '.join(schema.names)}; map the column in the config"
                )

    def _file_fragments(self) -> list[pads.Fragment]:
        assert isinstance(self.source, str)
        filesystem, _ = resolve(self.source)
        fragments: list[pads.Fragment] = []
        paths = [resolve(file.path)[1] for file in list_files(self.source)]
        texts = _ids_with_leading_zeros(paths, filesystem, [self.columns[name] for name in IDS if name in self.columns])
        for path in paths:
            fragments += _open(path, filesystem, texts)
        return fragments


@dataclass(frozen=True)
class Fragment:
    """A readable piece of a table; picklable."""

    number: int
    piece: pa.Table | pads.Fragment
    columns: dict[str, str]
    schema: pa.Schema

    def read(self) -> Iterator[pa.Table]:
        """Batches of standard columns and `row` (fragment number << 40 | row inside the fragment).

        Raises:
            DataError: the file is damaged, or a value does not fit its column's type.
        """
        first = self.number << FRAGMENT_SHIFT
        for batch in self._batches():
            table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
            table = table.select(list(self.columns.values())).rename_columns(list(self.columns))
            rows = pa.array(np.arange(first, first + table.num_rows, dtype=np.int64))
            first += table.num_rows
            try:
                table = table.cast(self.schema)
            except pa.ArrowException as error:
                raise DataError(
                    f"{self._where}: a value has another type than its column ({_first_line(error)})"
                ) from error
            yield table.append_column(ROW, rows)

    @property
    def _where(self) -> str:
        return "the table in memory" if isinstance(self.piece, pa.Table) else str(self.piece.path)

    def _batches(self) -> Iterator[pa.RecordBatch | pa.Table]:
        if isinstance(self.piece, pa.Table):
            yield from (self.piece.slice(at, BATCH_ROWS) for at in range(0, self.piece.num_rows, BATCH_ROWS))
            return
        try:
            yield from self.piece.to_batches(columns=list(self.columns.values()), batch_size=BATCH_ROWS)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{self._where}: cannot be read ({_first_line(error)}); repair the file, or give the column one type"
            ) from error


def _read(batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
    for fragment in batch["fragment"]:
        empty = True
        for table in fragment.read():
            empty = False
            yield table
        if empty:
            yield pa.table({field.name: pa.array([], field.type) for field in fragment.schema}).append_column(
                ROW, pa.array([], pa.int64())
            )


def _open(path: str, filesystem: fs.FileSystem, text_columns: Sequence[str]) -> list[pads.Fragment]:
    file_format: pads.FileFormat | str = _format(path)
    if file_format == "csv":
        as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string()))
        file_format = pads.CsvFileFormat(parse_options=PARSE_CSV, read_options=READ_CSV, convert_options=as_text)
    try:
        return list(pads.dataset(path, filesystem=filesystem, format=file_format).get_fragments())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)}); repair or remove it") from error


def _format(path: str) -> str:
    suffix = next((ending for ending in FORMATS if path.lower().endswith(ending)), None)
    if suffix is None:
        raise DataError(f"{path}: not a known table format; use one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _ids_with_leading_zeros(paths: Sequence[str], filesystem: fs.FileSystem, id_columns: Sequence[str]) -> list[str]:
    """Id columns that must stay text in all of a table's CSVs: as numbers `007` and `7` would be one id.

    Looks at the first block of each file.
    """
    as_text = pyarrow.csv.ConvertOptions(
        include_columns=list(id_columns),
        include_missing_columns=True,
        column_types=dict.fromkeys(id_columns, pa.string()),
    )
    found: set[str] = set()
    for path in paths:
        if _format(path) != "csv":
            continue
        try:
            with filesystem.open_input_stream(path) as stream:
                reader = pyarrow.csv.open_csv(
                    stream, read_options=READ_CSV, parse_options=PARSE_CSV, convert_options=as_text
                )
                head = next(iter(reader), None)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({_first_line(error)}); repair or remove it") from error
        if head is None:
            continue
        for name in id_columns:
            if pc.any(pc.match_substring_regex(head[name], r"^0[0-9]")).as_py():
                found.add(name)
    return sorted(found)


def _physical_schema(fragment: pads.Fragment) -> pa.Schema:
    try:
        return fragment.physical_schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{fragment.path}: cannot be read ({_first_line(error)}); repair or remove it") from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
