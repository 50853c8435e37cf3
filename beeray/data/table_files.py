"""Files of a table: formats, how CSVs are read, and what is said about a file that cannot be."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from beeray.config.credentials import redact_text, shown_uri
from beeray.data.storage import resolve
from beeray.errors import DataError

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".feather": "feather",
    ".arrow": "feather",
    ".ipc": "feather",
}
SAMPLE_BYTES = 1 << 20
SAMPLE_TEXT_BYTES = 32 << 20
PARSE_CSV = pyarrow.csv.ParseOptions(newlines_in_values=True)
BLOCK_BYTES = 8 << 20


def read_options(header: Sequence[str] = ()) -> pyarrow.csv.ReadOptions:
    """How CSVs are read.

    Args:
        header: names of the columns where the file has no line of names.
    """
    return pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, column_names=list(header) or None)


def format_of(path: str) -> str:
    """The format that a file's name tells.

    Raises:
        DataError: another than `FORMATS`.
    """
    suffix = next((ending for ending in FORMATS if path.lower().endswith(ending)), None)
    if suffix is None:
        raise DataError(f"{shown_uri(path)}: not a known table format; use one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def estimated_csv_rows(path: str) -> int:
    """About how many rows a CSV has, from its first megabyte.

    Raises:
        DataError: it cannot be read.
    """
    filesystem, inside = resolve(path)
    with unreadable(path, "repair or remove it"):
        size = filesystem.get_file_info(inside).size
        with filesystem.open_input_stream(inside, compression=None) as stream:
            head = bytes(stream.read(SAMPLE_BYTES))
        text, num_bytes = _unzipped(head) if inside.lower().endswith(".gz") else (head, len(head))
    return max(1, int(text.count(b"\n") * size / max(1, num_bytes)))


def _unzipped(head: bytes) -> tuple[bytes, int]:
    """The text of a gzip file's beginning, and how many bytes of the file it takes."""
    text, left = b"", head
    while left.startswith(b"\x1f\x8b") and len(text) < SAMPLE_TEXT_BYTES:
        member = zlib.decompressobj(wbits=31)
        text += member.decompress(left, SAMPLE_TEXT_BYTES - len(text))
        left = member.unused_data if member.eof else member.unconsumed_tail
        if not member.eof:
            break
    return text, len(head) - len(left)


def whole_numbers(ids: pa.Array) -> pa.Array | None:
    """Text of a CSV as int64, or None unless numbers of 64 bits with sign are, written out again, these very values.

    As numbers `007` and `7`, ` 7` and `7`, or `0x1A` and `26` would be one id, and hashes of 64 bits without sign would
    be rounded. What stands for no value in a CSV is null.
    """
    numbers = _same_numbers(ids)
    if numbers is None:  # looked for only where it must be: most tables have an id in every row
        with_null = _null_where_none(ids)
        numbers = _same_numbers(with_null) if with_null.null_count > ids.null_count else None
    return numbers


def first_other_id(ids: pa.Array) -> str:
    """The first of some ids that `whole_numbers` takes for none."""
    ids = _null_where_none(ids).drop_null()
    first, end = 0, len(ids)
    while end - first > 1:
        middle = (first + end) // 2
        first, end = (first, middle) if _same_numbers(ids.slice(first, middle - first)) is None else (middle, end)
    raw: bytes = ids[first].cast(pa.binary()).as_py()
    return raw.decode(errors="replace")


def _same_numbers(ids: pa.Array) -> pa.Array | None:
    try:
        numbers = ids.cast(pa.int64())
        return numbers if numbers.cast(pa.string()).equals(ids) else None
    except pa.ArrowInvalid:
        return None


def _null_where_none(ids: pa.Array) -> pa.Array:
    none = pc.is_in(ids, pa.array(pyarrow.csv.ConvertOptions().null_values))
    return pc.if_else(none, pa.scalar(None, ids.type), ids)


def check_structure(batch: pa.RecordBatch) -> None:
    """Refuse offsets and codes that point outside their buffers, which Arrow takes from feather files as they are.

    Whether texts are UTF-8 is not looked at.

    Raises:
        pa.ArrowInvalid: names the column and what is wrong with it.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate()
            if pa.types.is_dictionary(column.type):
                _as_bytes(column.dictionary).validate(full=True)
                column = pa.DictionaryArray.from_arrays(column.indices, pa.nulls(len(column.dictionary)), safe=False)
            _as_bytes(column).validate(full=True)
        except pa.ArrowException as error:
            raise pa.ArrowInvalid(f"column {name!r}: {first_line(error)}") from error


def _as_bytes(column: pa.Array) -> pa.Array:
    """Text as the bytes that it is made of, without a copy; any other column as it is."""
    for text, raw in (
        (pa.string(), pa.binary()),
        (pa.large_string(), pa.large_binary()),
        (pa.string_view(), pa.binary_view()),
    ):
        if column.type == text:
            return column.view(raw)
    return column


@contextlib.contextmanager
def unreadable(path: str, remedy: str) -> Iterator[None]:
    """Tell what Arrow says about a file in one line, without a secret of its URI.

    Args:
        remedy: what to do about it; empty where the caller says so.

    Raises:
        DataError: it cannot be read.
    """
    try:
        yield
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError, zlib.error) as error:
        said = f"{shown_uri(path)}: cannot be read ({first_line(error, path)})"
        raise DataError(f"{said}; {remedy}" if remedy else said) from error


def first_line(error: BaseException, uri: str = "") -> str:
    """The first line of an error, without a secret of the URI that it is about."""
    said = redact_text(str(error), uri) if uri else str(error)
    return said.splitlines()[0][:200] if said else type(error).__name__
