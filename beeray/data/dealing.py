"""Dealing a catalog to ranges of id hashes, through files, so that each range can be joined and embedded alone.

In two steps, so that no more files are opened than need be, however large the catalog is:

    work/scattered/<first row>.arrow     a batch of the catalog, one record batch a *group* of ranges
    work/dealt/group-*.arrow             one group, one record batch a range: item_id, text, content_hash, row
    work/errors/<first row>.parquet      refused rows

Nobody holds more than a batch of the catalog, or one range of it: a batch is so many rows and so many bytes, and
a group's ranges are written one after the other, from a file on the machine's own disk.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from beeray.data.catalog import one_array
from beeray.data.fragments import ROW
from beeray.data.id_ranges import hash_ids, ranges_of
from beeray.data.parts import write_part
from beeray.data.quarantine import sort_out
from beeray.data.record_batches import IPC, batches_by, one_batch, parts_by, read_batch
from beeray.data.slices import slices
from beeray.data.storage import (
    exists,
    file_size,
    join,
    list_files,
    make_dir,
    remove_tree,
    storage_errors,
    write_bytes,
    write_file,
)
from beeray.data.streaming import drain, set_up_ray_data
from beeray.data.tables import Table
from beeray.errors import DataError

Report = Callable[[str, int, int | None], None]
SCATTERED, DEALT, ERRORS = "scattered", "dealt", "errors"
BATCH_ROWS = 65_536
GROUP_ROWS = 262_144
TASK_CPUS = 0.5
LARGE_TEXT_BYTES = 2**31 - 2**20
"""More text than this in one range does not fit Arrow's `string`."""


@dataclass(frozen=True)
class Dealing:
    """How a catalog is dealt.

    Attributes:
        template: text of an item.
        max_text_chars: longer texts are refused.
        num_ranges: ranges of id hashes.
        num_groups: groups of neighbouring ranges.
        folder: takes `scattered/`, `dealt/` and `errors/`.
    """

    template: str
    max_text_chars: int
    num_ranges: int
    num_groups: int
    folder: str

    def group_of(self, number: int) -> int:
        """The group of a range."""
        return number * self.num_groups // self.num_ranges

    def ranges_in(self, group: int) -> range:
        """The ranges of a group."""
        first = -(-group * self.num_ranges // self.num_groups)
        return range(first, -(-(group + 1) * self.num_ranges // self.num_groups))


@dataclass(frozen=True)
class Dealt:
    """What became of a catalog's rows.

    Attributes:
        rows: read.
        errors: refused, by reason.
        range_rows: good rows of each range, repeated ids included.
        item_id_type: Arrow type of the ids.
        group_bytes: size of each group's file.
    """

    rows: int
    errors: dict[str, int]
    range_rows: list[int]
    item_id_type: str
    group_bytes: list[int]


def deal_catalog(catalog: Table, dealing: Dealing, report: Report) -> Dealt:
    """Deal a whole catalog. Ray must be running.

    Args:
        report: told the stage, rows read and rows expected.

    Raises:
        DataError: a file or column is missing, or a file cannot be read.
    """
    set_up_ray_data()
    for name in (SCATTERED, DEALT, ERRORS):
        remove_tree(join(dealing.folder, name))
        make_dir(join(dealing.folder, name))
    expected = catalog.estimated_rows()
    report("deal catalog", 0, expected)
    tasks = catalog.dataset(BATCH_ROWS).map_batches(
        deal_batch, batch_size=None, batch_format="pyarrow", fn_kwargs={"dealing": dealing}, num_cpus=TASK_CPUS
    )
    rows, errors = 0, Counter[str]()
    range_rows = np.zeros(dealing.num_ranges, dtype=np.int64)
    id_type = "string"
    for table in drain(tasks):
        for one in table.to_pylist():
            rows += one["rows"]
            errors.update(dict(zip(one["reasons"], one["counts"], strict=True)))
            range_rows += np.asarray(one["range_rows"], dtype=np.int64)
            id_type = one["item_id_type"]
        report("deal catalog", rows, max(expected, rows))
    group_bytes = _gather_groups(dealing, report)
    return Dealt(rows, dict(errors), range_rows.tolist(), id_type, group_bytes)


def dealt_is_whole(dealing: Dealing, group_bytes: Sequence[int]) -> bool:
    """Whether the files of an earlier dealing are all there, as long as they were."""
    paths = [group_path(dealing.folder, group) for group in range(dealing.num_groups)]
    return all(exists(path) and file_size(path) == size for path, size in zip(paths, group_bytes, strict=True))


def group_path(folder: str, group: int) -> str:
    """The file of a group of ranges."""
    return join(folder, DEALT, f"group-{group:05d}.arrow")


def _gather_groups(dealing: Dealing, report: Report) -> list[int]:
    """Second step: one file a group; returns their sizes."""
    report("sort catalog", 0, dealing.num_groups)
    names = [file.path for file in list_files(join(dealing.folder, SCATTERED), may_be_empty=True)]
    numbers = range(dealing.num_groups)
    groups = ray.data.from_items([{"group": number} for number in numbers], override_num_blocks=len(numbers))
    task = {"dealing": dealing, "names": names}
    gathered = groups.map_batches(gather_group, batch_size=1, batch_format="numpy", fn_kwargs=task, num_cpus=TASK_CPUS)
    sizes = [0] * dealing.num_groups
    for done, table in enumerate(drain(gathered), start=1):
        sizes[table["group"][0].as_py()] = table["bytes"][0].as_py()
        report("sort catalog", done, dealing.num_groups)
    remove_tree(join(dealing.folder, SCATTERED))
    return sizes


def deal_batch(table: pa.Table, dealing: Dealing) -> pa.Table:
    """Deal one batch of the raw catalog to its files; returns one row of counts."""
    rows = table.num_rows
    range_rows = np.zeros(dealing.num_ranges, dtype=np.int64)
    reasons: Counter[str] = Counter()
    id_type = sort_out(table.slice(0, 0), dealing.template, dealing.max_text_chars)[0].schema.field("item_id").type
    for piece in slices(table, BATCH_ROWS):
        good, bad = sort_out(piece, dealing.template, dealing.max_text_chars)
        name = f"{piece[ROW][0].as_py():016x}"  # by row: a task run twice writes the same file twice
        if good.num_rows:
            numbers = ranges_of(hash_ids(good["item_id"].combine_chunks()), dealing.num_ranges)
            range_rows += np.bincount(numbers, minlength=dealing.num_ranges)
            groups = numbers.astype(np.int64) * dealing.num_groups // dealing.num_ranges
            data = batches_by(good, groups, dealing.num_groups)
            write_bytes(join(dealing.folder, SCATTERED, f"{name}.arrow"), data)
        if bad.num_rows:
            reasons.update(bad["reason"].to_pylist())
            write_part(bad, join(dealing.folder, ERRORS, f"{name}.parquet"))
    return pa.table(
        {
            "rows": [rows],
            "reasons": pa.array([list(reasons)], pa.list_(pa.string())),
            "counts": pa.array([list(reasons.values())], pa.list_(pa.int64())),
            "range_rows": pa.array([range_rows], pa.list_(pa.int64())),
            "item_id_type": [str(id_type)],
        }
    )


def gather_group(batch: dict[str, Any], dealing: Dealing, names: Sequence[str]) -> Iterator[pa.Table]:
    """Write the file of each group; returns its size.

    Raises:
        DataError: the batches have different id types, or a file cannot be written.
    """
    for group in batch["group"]:
        path = group_path(dealing.folder, int(group))
        with _scratch() as folder:
            cut = _cut_into_ranges(f"{folder}/cut.arrow", dealing, int(group), names)
            if cut.schema is None:
                write_bytes(path, b"")
                size = 0
            else:
                size = cut.write_sorted(f"{folder}/sorted.arrow")
                write_file(path, f"{folder}/sorted.arrow")
        yield pa.table({"group": pa.array([group], pa.int64()), "bytes": pa.array([size], pa.int64())})


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder on this machine's own disk; what that disk refuses is a DataError."""
    with (
        storage_errors(tempfile.tempdir or "TMPDIR"),
        tempfile.TemporaryDirectory(prefix="beeray-deal-") as folder,
        storage_errors(folder),
    ):
        yield folder


@dataclass
class _CutFile:
    """A group's rows in a file on this machine, one record batch for each range of each scattered file.

    Attributes:
        path: of the file; there is none while `schema` is None, for want of rows.
        batches: numbers of each range's record batches.
        text_bytes: of each range.
    """

    path: str
    schema: pa.Schema | None
    batches: list[list[int]]
    text_bytes: list[int]

    def write_sorted(self, path: str) -> int:
        """Write the ranges to another file, one record batch each, one in memory at a time; returns its size."""
        assert self.schema is not None
        schema = self.schema
        if max(self.text_bytes) > LARGE_TEXT_BYTES:
            schema = schema.set(schema.get_field_index("text"), pa.field("text", pa.large_string()))
        with (
            pa.OSFile(self.path) as cut,
            pa.ipc.open_file(cut) as reader,
            pa.OSFile(path, "wb") as sink,
            pa.ipc.new_file(sink, schema, options=IPC) as writer,
        ):
            for numbers in self.batches:
                rows = pa.Table.from_batches([reader.get_batch(at) for at in numbers], self.schema).cast(schema)
                writer.write_batch(one_batch(rows))
        return file_size(path)


def _cut_into_ranges(path: str, dealing: Dealing, group: int, names: Sequence[str]) -> _CutFile:
    ranges = dealing.ranges_in(group)
    cut = _CutFile(path, None, [[] for _ in ranges], [0] * len(ranges))
    with contextlib.ExitStack() as files:
        written = 0
        for name in names:
            rows = read_batch(name, group)
            if not rows.num_rows:
                continue
            if cut.schema is None:
                cut.schema = rows.schema
                sink = files.enter_context(pa.OSFile(path, "wb"))
                writer = files.enter_context(pa.ipc.new_file(sink, rows.schema))
            if rows.schema != cut.schema:
                types = f"{cut.schema.field('item_id').type} and {rows.schema.field('item_id').type}"
                raise DataError(f"catalog item_id: its parts have different types ({types}); give all parts one type")
            numbers = ranges_of(hash_ids(one_array(rows["item_id"])), dealing.num_ranges).astype(np.int64)
            for at, part in enumerate(parts_by(rows, numbers - ranges.start, len(ranges))):
                if part.num_rows:
                    writer.write_batch(one_batch(part))
                    cut.batches[at].append(written)
                    cut.text_bytes[at] += part["text"].nbytes
                    written += 1
    return cut


def read_range(dealing: Dealing, number: int) -> pa.Table | None:
    """All rows of one range: item_id, text, content_hash, row; None where its group has none."""
    group = dealing.group_of(number)
    path = group_path(dealing.folder, group)
    if not file_size(path):
        return None
    return read_batch(path, number - dealing.ranges_in(group).start)
