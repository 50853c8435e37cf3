"""Anyone's table as a stream of Arrow batches, with a row number that tells the original order.

Reading is pyarrow.dataset's (parquet, CSV, feather; a file, a folder or a glob). Fragments travel to
Ray tasks, each of which yields one batch after the other, so nobody holds a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
from pyarrow import fs

from beeray.config.credentials import shown_uri
from beeray.data.csv_ranges import CsvRange, csv_ranges
from beeray.data.csv_types import EMPTY_SO_FAR, head_types, read_types
from beeray.data.file_tags import UNPACKED, FileStat
from beeray.data.fragments import FRAGMENT_SHIFT, IDS, ROW, Fragment
from beeray.data.storage import is_local, list_files, local_path, resolve, storage_errors
from beeray.data.table_files import (
    PARSE_CSV,
    estimated_csv_rows,
    first_line,
    format_of,
    read_options,
    unreadable,
)
from beeray.data.table_folders import check_folder
from beeray.errors import ConfigError, DataError, RowError

if TYPE_CHECKING:
    import ray.data

FRAGMENT_ROWS = 1 << 20
"""Rows of a table in memory that make a fragment."""
OPEN_AT_ONCE = 16
DIGEST_BYTES = 1 << 22
OTHER_SIGNS = ";\t|"
"""By which some programs part the columns of what they call CSV."""
SHOWN_NAMES = 500
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class OpenFile:
    """A file of a table whose footer (of a CSV: beginning) has been read.

    Attributes:
        path: as errors name it, with the scheme of a URI.
        fragment: its content.
        physical_schema: all of its columns, ids of a CSV as they are to be, which are read from it as text.
        size: bytes.
    """

    path: str
    fragment: pads.Fragment
    physical_schema: pa.Schema
    size: int


@dataclass(frozen=True)
class Table:
    """A table of standard columns somewhere, or in memory; picklable.

    Files are opened once and again only when the list of them, their sizes or times have changed.

    Attributes:
        source: path (file, folder, glob, any filesystem), or an Arrow table.
        columns: standard name → name in the files.
        label: how errors call it, e.g. `catalog`.
        unchecked_text: read texts of CSVs that are no UTF-8, for whoever sorts them out row by row.
        typed: standard columns whose type the values of a CSV decide, ids among them numbers only where all are plain
            whole numbers. All others are text as it is written there: `1.50`, `007` and `TRUE` stay what they are.
    """

    source: str | pa.Table
    columns: Mapping[str, str]
    label: str = "table"
    unchecked_text: bool = False
    typed: tuple[str, ...] = (*IDS, "value", "timestamp")
    header: tuple[str, ...] = ()
    """Names of the columns of CSVs that have no line of names."""
    _opened: dict[tuple[FileStat, ...], list[OpenFile]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

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
        for file in self._file_fragments():
            self._require(file.physical_schema, file.path)
            schemas.append(self._standard(file.physical_schema))
            try:
                schemas = [pa.unify_schemas(schemas, promote_options="permissive")]
            except pa.ArrowException as error:
                raise DataError(
                    f"{shown_uri(file.path)}: {self.label}'s columns have other types than in the files before it "
                    f"({first_line(error)}); give all parts the same types"
                ) from error
        return self._with_number_ids(schemas[0])

    def fragments(self) -> list[Fragment]:
        """Pieces of the table that can be read independently, in the table's order."""
        schema, columns = self.check(), dict(self.columns)
        if isinstance(self.source, pa.Table):
            starts = range(0, max(1, self.source.num_rows), FRAGMENT_ROWS)
            slices = [self.source.slice(start, FRAGMENT_ROWS) for start in starts]
            return [
                Fragment(number, "the table in memory", one, columns, schema, _weight(one.num_rows, one.nbytes))
                for number, one in enumerate(slices)
            ]
        pieces = [(file.path, *piece) for file in self._file_fragments() for piece in self._pieces(file)]
        return [
            Fragment(number, path, one, columns, schema, weight) for number, (path, one, weight) in enumerate(pieces)
        ]

    def place_of(self, row: int) -> str:
        """The file of a row and its number there, from 1, as an error tells it.

        In a range of a large CSV rows are counted from the range's first byte.

        Args:
            row: as `Fragment.read` numbers rows.
        """
        fragments = self.fragments()
        fragment, inside = fragments[row >> FRAGMENT_SHIFT], row & ((1 << FRAGMENT_SHIFT) - 1)
        place = f"{shown_uri(fragment.path)}, row "
        if isinstance(fragment.piece, CsvRange):
            return f"{place}{inside + 1:,} after byte {fragment.piece.start:,}"
        before = [one for one in fragments[: fragment.number] if one.path == fragment.path]
        return f"{place}{sum(one.num_rows for one in before) + inside + 1:,}"

    def _pieces(self, file: OpenFile) -> list[tuple[pads.Fragment | CsvRange, int]]:
        """What of a file is read at a time, with its weight: row groups, ranges of a large CSV, or all of it."""
        if isinstance(file.fragment, pads.ParquetFileFragment):
            groups = list(file.fragment.split_by_row_group())
            return [(one, _weight(sum(group.num_rows for group in one.row_groups), _bytes_of(one))) for one in groups]
        ranges: list[CsvRange] = []
        if isinstance(file.fragment.format, pads.CsvFileFormat) and is_local(file.path):
            with unreadable(file.path, "repair or remove it"):
                inside = resolve(file.path)[1]
                ranges = csv_ranges(
                    inside,
                    file.fragment.physical_schema,
                    check_utf8=not self.unchecked_text,
                    has_header=not self.header,
                )
        return [(one, _weight(0, one.stop - one.start)) for one in ranges] or [(file.fragment, _weight(0, file.size))]

    def estimated_rows(self) -> int:
        """About how many rows there are: exact for parquet and feather, from the first megabyte for CSVs."""
        if isinstance(self.source, pa.Table):
            return int(self.source.num_rows)
        files = self._file_fragments()
        is_csv = [isinstance(file.fragment.format, pads.CsvFileFormat) for file in files]
        csvs = [file.path for file, yes in zip(files, is_csv, strict=True) if yes]
        # Not in threads: Arrow's counts wait for each other for ever once they are as many as its I/O threads.
        counted = [_counted_rows(file) for file, yes in zip(files, is_csv, strict=True) if not yes]
        return sum(counted) + sum(_in_threads(estimated_csv_rows, csvs))

    def dataset(self, weight_per_task: int = 1) -> ray.data.Dataset:
        """The table as a streaming Ray dataset of standard columns and `row`.

        Args:
            weight_per_task: neighbouring fragments of less weight (rows, or KiB where those are more) are read by one
                task, so that its blocks are not small ones. Ray Data cuts blocks at its own largest size.
        """
        import ray

        tasks: list[_ReadTask] = []
        filled = weight_per_task
        for fragment in self.fragments():
            if filled >= weight_per_task:
                tasks.append(_ReadTask([]))
                filled = 0
            tasks[-1].fragments.append(fragment)
            filled += fragment.weight
        blocks = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=max(1, len(tasks)))
        return blocks.map_batches(_read, batch_size=1, batch_format="numpy", num_cpus=1)

    def fingerprint(self, *, as_opened: bool = False) -> str:
        """Digest that changes with the content: of the files' names, sizes, times and ETags, or of the rows.

        Args:
            as_opened: of the files that were there when the table was opened last, as those that `fragments` reads.
        """
        digest = hashlib.sha256(repr(sorted(self.columns.items())).encode())
        if isinstance(self.source, pa.Table):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, self.source.schema) as writer:
                writer.write_table(self.source.combine_chunks())
            digest.update(sink.getvalue())
        else:
            for file in next(iter(self._opened), ()) if as_opened else list_files(self.source, tagged=True):
                digest.update(_identity(file).encode())
        return digest.hexdigest()[:16]

    def _standard(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([pa.field(name, schema.field(column).type) for name, column in self.columns.items()])

    def _with_number_ids(self, schema: pa.Schema) -> pa.Schema:
        """Ids are numbers where no file's beginning has any; what comes later is looked at then."""
        without = {self.columns[one.name] for one in schema if one.name in IDS and pa.types.is_null(one.type)}
        return pa.schema([one.with_type(pa.int64()) if self.columns[one.name] in without else one for one in schema])

    def _require(self, schema: pa.Schema, where: str) -> None:
        if ROW in self.columns:
            raise ConfigError(f"{self.label}: a column called {ROW!r} cannot be used in a template; rename it")
        for name, column in self.columns.items():
            if column not in schema.names:
                shown = ", ".join(schema.names)
                shown = shown if len(shown) <= SHOWN_NAMES else f"{shown[:SHOWN_NAMES]} …"
                raise DataError(
                    f"{shown_uri(where)}: {self.label} has no column {column!r} (for {name}); "
                    f"its columns are {shown}; map the column in the config{_hint(schema.names)}"
                )
            if schema.names.count(column) > 1:
                raise DataError(
                    f"{shown_uri(where)}: {self.label} has column {column!r} (for {name}) more than once; rename the "
                    "others"
                )

    def _text_columns(self) -> list[str]:
        typed = {column for name, column in self.columns.items() if name in self.typed}
        return [column for column in self.columns.values() if column not in typed]

    def _file_fragments(self) -> list[OpenFile]:
        assert isinstance(self.source, str)
        files = tuple(list_files(self.source, tagged=True))
        if files not in self._opened:
            check_folder(self.source, self.label)
            filesystem, _ = resolve(self.source)
            named = {name: column for name, column in self.columns.items() if name in self.typed}
            ids = [named[name] for name in IDS if name in named]
            others = {named[name]: name for name in EMPTY_SO_FAR if name in named and named[name] not in ids}
            told = _in_threads(
                lambda file: head_types(
                    file.path, filesystem, ids, others, unchecked_text=self.unchecked_text, header=self.header
                ),
                files,
            )
            as_text = {name for types in told for name in ids if types.get(name) == pa.string()}
            numbers = [{name: types[name] for name in ids if name in types and name not in as_text} for types in told]
            texts = dict.fromkeys([*self._text_columns(), *ids], pa.string())
            read_as = [{**types, **texts} for types in read_types(told, others)]
            opened = _in_threads(
                lambda one: _open(*one, filesystem, unchecked_text=self.unchecked_text, header=self.header),
                list(zip(files, numbers, read_as, strict=True)),
            )
            self._opened.clear()
            self._opened[files] = opened
        return self._opened[files]


@contextmanager
def located(table: Table) -> Iterator[None]:
    """Put before what is wrong with a row of a table where the row is.

    Raises:
        DataError: in place of a `RowError`.
    """
    try:
        yield
    except RowError as error:
        raise DataError(f"{table.place_of(error.row)}: {error}") from None


@dataclass(frozen=True)
class _ReadTask:
    fragments: list[Fragment]


def _counted_rows(file: OpenFile) -> int:
    with unreadable(file.path, "repair or remove it"):
        return int(file.fragment.count_rows())


def _bytes_of(fragment: pads.ParquetFileFragment) -> int:
    return sum(int(group.total_byte_size) for group in fragment.row_groups)


def _weight(rows: int, size: int) -> int:
    return max(1, rows, size >> 10)


def _read(batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
    for fragment in [fragment for task in batch["task"] for fragment in task.fragments]:
        empty = True
        for table in fragment.read():
            empty = False
            yield table
        if empty:
            yield pa.table({field.name: pa.array([], field.type) for field in fragment.schema}).append_column(
                ROW, pa.array([], pa.int64())
            )


def _in_threads(work: Callable[[T], R], inputs: Sequence[T]) -> list[R]:
    """What `work` returns for each input, in order; for waiting on many files, not for computing."""
    if len(inputs) < 2:
        return [work(one) for one in inputs]
    with ThreadPoolExecutor(min(OPEN_AT_ONCE, len(inputs))) as pool:
        return list(pool.map(work, inputs))


def _hint(names: Sequence[str]) -> str:
    """What else a missing column may mean: one column whose name holds signs is a CSV of another kind."""
    sign = next((sign for sign in OTHER_SIGNS if len(names) == 1 and sign in names[0]), None)
    return "" if sign is None else f", or write it with commas: its columns are parted by {sign!r}"


def _identity(file: FileStat) -> str:
    """What changes with a file's content.

    What a submitted job brings along lies in a folder that is named anew whenever anything in it changes, and is as old
    there as the node's copy: such a file is known by its place in that folder and by its content. So is one of whose
    content its filesystem tells nothing but the size.
    """
    place = Path(local_path(file.path)).parts if is_local(file.path) else ()
    if UNPACKED in place:
        inside = "/".join(place[place.index(UNPACKED) + 2 :])  # behind `_ray_pkg_<hash>`
        return f"{inside}|{file.size}|{_digest(file.path)}"
    if file.etag or file.modified_ns:
        return f"{file.path}|{file.size}|{file.modified_ns}{f'|{file.etag}' if file.etag else ''}"
    return f"{file.path}|{file.size}|{_digest(file.path)}"


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    filesystem, inside = resolve(path)
    with storage_errors(path), filesystem.open_input_stream(inside) as stream:
        while block := stream.read(DIGEST_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _open(
    file: FileStat,
    numbers: Mapping[str, pa.DataType],
    read_as: Mapping[str, pa.DataType],
    filesystem: fs.FileSystem,
    *,
    unchecked_text: bool = False,
    header: Sequence[str] = (),
) -> OpenFile:
    path = file.path
    kind = format_of(path)
    file_format: pads.FileFormat = pads.ParquetFileFormat() if kind == "parquet" else pads.IpcFileFormat()
    if kind == "csv":
        convert = pyarrow.csv.ConvertOptions(column_types=read_as, check_utf8=not unchecked_text)
        file_format = pads.CsvFileFormat(
            parse_options=PARSE_CSV, read_options=read_options(header), convert_options=convert
        )
    with unreadable(path, "repair or remove it"):
        fragment = file_format.make_fragment(resolve(path)[1], filesystem)
        schema = fragment.physical_schema
        _ = schema.names  # names that are no UTF-8 are found here
        schema = pa.schema([one.with_type(numbers.get(one.name, one.type)) for one in schema])
        return OpenFile(path, fragment, schema, file.size)
