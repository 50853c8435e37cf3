"""The unit of the nightly job: one range of id hashes, from dealt texts to one whole parquet file.

A unit travels through Ray Data as one row, so it is never split or merged, and is what is retried and
resumed:

    plan row → `prepare_unit` (join, tokenise) → encoder actor (vectors) → `write_unit` (file) → report row

A unit depends on nothing but its inputs, so one that is done again gives the same file.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from beeray.data.catalog import HASH_BYTES
from beeray.data.dealing import ERRORS, Dealing, read_range
from beeray.data.embedding_format import NUMPY_TYPES, EmbeddingFormat
from beeray.data.fragments import ROW
from beeray.data.id_ranges import evenly
from beeray.data.lease import Claim
from beeray.data.manifest import part_name
from beeray.data.parts import write_part
from beeray.data.quarantine import error_rows, first_of_each
from beeray.data.reuse import NOT_REUSED, EarlierRows, Join, join_range, reused_numbers
from beeray.data.storage import join, write_bytes
from beeray.errors import DealtOtherwiseError

RANGE, ROWS, NOT_FINITE = "range", "rows", "not_finite_vector"
TEXTS_AT_A_TIME = 1024


@dataclass(frozen=True)
class UnitTask:
    """What every unit of a job needs to know; picklable.

    Attributes:
        dealing: how the catalog was dealt, and where.
        target: folder that takes the parquet files.
        item_id_type: of the catalog, empty or not.
        earlier: rows whose vectors may be reused.
        tokenizer: as JSON, without padding and truncation.
        prefix: put before every text.
        max_seq_length: tokens of a text, special tokens included.
        format: what vectors are stored as.
        rows_per_row_group: of the parquet files.
        claim: on the lease without which no unit is written; None: a lock keeps others away.
    """

    dealing: Dealing
    target: str
    item_id_type: pa.DataType
    earlier: tuple[EarlierRows, ...]
    tokenizer: str
    prefix: str
    max_seq_length: int
    format: EmbeddingFormat
    rows_per_row_group: int
    claim: Claim | None = None


def prepare_unit(batch: pa.Table, task: UnitTask) -> pa.Table:
    """Read one range, join it with earlier rows, tokenise what must be encoded.

    Args:
        batch: one row: `range`, and `rows` that were dealt to it.

    Returns:
        one row: `range`; `item_id`, `content_hash` lists; `source`, `source_row`, `tokens`, `lengths` as bytes
        of int32; `counts` as JSON; `ready_at`, seconds since 1970.
    """
    number, rows = int(batch[RANGE][0].as_py()), int(batch[ROWS][0].as_py())
    dealt = read_range(task.dealing, number)
    if dealt is None:
        dealt = _no_items(task.item_id_type)
    if dealt.num_rows != rows:
        raise DealtOtherwiseError(
            f"{task.dealing.folder}: range {number} of the dealt catalog has {dealt.num_rows} rows, {rows} were dealt; "
            "is another job at work there? run the same command again"
        )
    items, repeated, num_same = first_of_each(dealt)
    if repeated.num_rows:
        name = join(task.dealing.folder, ERRORS, f"range-{number:05d}.parquet")
        write_part(error_rows(repeated, "repeated_item_id"), name)
    joined = join_range(items, task.earlier, number, task.dealing.num_ranges)
    encoded = items["text"].filter(pa.array(joined.source == NOT_REUSED)).to_pylist()
    tokens, lengths = tokenise(encoded, task.tokenizer, task.prefix, task.max_seq_length)
    counts = {**joined.counts, "repeated": num_same, "repeated_item_id": repeated.num_rows, "encoded": len(encoded)}
    return pa.table(
        {
            RANGE: pa.array([number], pa.int32()),
            "item_id": _one_list(items["item_id"].combine_chunks()),
            "content_hash": _one_list(items["content_hash"].combine_chunks()),
            "source": _bytes(joined.source),
            "source_row": _bytes(joined.source_row),
            "tokens": _bytes(tokens),
            "lengths": _bytes(lengths),
            "counts": [json.dumps(counts)],
            "ready_at": [time.time()],
        }
    )


def write_unit(batch: pa.Table, task: UnitTask) -> pa.Table:
    """Write the file of one unit; a file written before by the same unit is replaced.

    Args:
        batch: one row, as the encoder actor leaves it: that of `prepare_unit` with `vectors` (bytes of the
            encoded items' numbers as they are stored, in order) and `unusable` (a byte for each of them, 1 where
            they are no numbers; such an item is refused) in place of the tokens, and its timings.

    Returns:
        one row: `range`, `path`, `rows`, `bytes`, `sha256`, `counts` and `timings` as JSON.

    Raises:
        RunError: another job has taken over, whose files these may be by now.
    """
    started = time.time()
    number = int(batch[RANGE][0].as_py())
    ids = pa.concat_arrays(batch["item_id"].chunks).flatten()
    hashes = pa.concat_arrays(batch["content_hash"].chunks).flatten()
    joined = Join(_int32(batch["source"]), _int32(batch["source_row"]), {})
    numbers = np.zeros((len(ids), task.format.width), dtype=NUMPY_TYPES[task.format.dtype])
    vectors = np.frombuffer(batch["vectors"][0].as_buffer(), dtype=numbers.dtype)
    encoded = np.flatnonzero(joined.source == NOT_REUSED)
    numbers[encoded] = vectors.reshape(-1, task.format.width)
    reused_numbers(ids, hashes, joined, task.earlier, number, task.dealing.num_ranges, numbers)
    table = pa.table({"item_id": ids, "embedding": task.format.column(numbers), "content_hash": hashes})
    unusable = encoded[np.frombuffer(batch["unusable"][0].as_buffer(), dtype=np.bool_)]
    if len(unusable):
        table = _without(table, unusable, join(task.dealing.folder, ERRORS, f"vectors-{number:05d}.parquet"))
    counts = json.loads(batch["counts"][0].as_py()) | {NOT_FINITE: len(unusable)}
    counts["encoded"] -= len(unusable)
    data = file_bytes(table, task.rows_per_row_group)
    name = part_name(number)
    if task.claim is not None:
        task.claim.check()
    write_bytes(join(task.target, name), data)
    timings = json.loads(batch["timings"][0].as_py())
    written = time.time()
    timings |= {
        "write_queue_s": started - timings.pop("encoded_at"),
        "write_s": written - started,
        "written_at": written,
    }
    return pa.table(
        {
            RANGE: pa.array([number], pa.int32()),
            "path": [name],
            "rows": [table.num_rows],
            "bytes": [len(data)],
            "sha256": [hashlib.sha256(data).hexdigest()],
            "counts": [json.dumps(counts)],
            "timings": [json.dumps(timings)],
        }
    )


def _without(table: pa.Table, unusable: NDArray[np.int64], errors: str) -> pa.Table:
    """A unit's rows less those whose vector is not finite, which go to an errors file."""
    refused = table.select(["item_id"]).take(pa.array(unusable))
    unknown = pa.nulls(len(unusable), pa.string()), pa.nulls(len(unusable), pa.int64())  # its place is not kept so long
    refused = refused.append_column("text", unknown[0]).append_column(ROW, unknown[1])
    write_part(error_rows(refused, NOT_FINITE), errors)
    kept = np.ones(table.num_rows, dtype=bool)
    kept[unusable] = False
    return table.filter(pa.array(kept))


def write_and_tell(batch: pa.Table, task: UnitTask, monitor: Any) -> pa.Table:
    """`write_unit`, with its report sent to an actor that takes events.

    It is here and not beside the pipeline, so that the processes that run it need not load torch.
    """
    report = write_unit(batch, task)
    monitor.send.remote({"kind": "unit", **report.to_pylist()[0]})
    return report


def tokenise(
    texts: list[str], tokenizer: str, prefix: str, max_seq_length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Token ids of some texts one after the other (flat), special tokens included, and the tokens of each."""
    fast = _tokenizer(tokenizer, max_seq_length)
    ids: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        batch = fast.encode_batch_fast([prefix + text for text in texts[start : start + TEXTS_AT_A_TIME]])
        for one in batch:
            ids.append(np.asarray(one.ids, dtype=np.int32))
            lengths.append(len(ids[-1]))
    return np.concatenate(ids) if ids else np.empty(0, np.int32), np.asarray(lengths, dtype=np.int32)


def sample_texts(dealing: Dealing, num_texts: int) -> list[str]:
    """Some texts of a dealt catalog, always the same: those of the first ranges, which are ranges of a hash."""
    texts: list[str] = []
    for number in range(dealing.num_ranges):
        dealt = read_range(dealing, number)
        if dealt is not None:
            found = first_of_each(dealt)[0]["text"]
            texts += found.take(pa.array(evenly(np.arange(len(found)), num_texts - len(texts)))).to_pylist()
        if len(texts) >= num_texts:
            break
    return texts


def item_id_type(name: str) -> pa.DataType:
    """The Arrow type that a manifest names."""
    return pa.type_for_alias(name)


def file_bytes(table: pa.Table, rows_per_row_group: int) -> pa.Buffer:
    """A parquet file of published embeddings. Vectors are not compressed: it costs time and gains nothing."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_row_group,
        use_dictionary=False,
        compression={"item_id": "zstd", "content_hash": "none", "embedding.list.element": "none"},
        write_statistics=["item_id"],
        write_page_checksum=True,
    )
    return sink.getvalue()


@lru_cache(maxsize=2)
def _tokenizer(as_json: str, max_seq_length: int) -> Tokenizer:
    fast = Tokenizer.from_str(as_json)
    fast.enable_truncation(max_seq_length)
    return fast


def _no_items(item_id_type: pa.DataType) -> pa.Table:
    kinds = {"item_id": item_id_type, "text": pa.string(), "content_hash": pa.binary(HASH_BYTES), "row": pa.int64()}
    return pa.table({name: pa.array([], kind) for name, kind in kinds.items()})


def _one_list(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _bytes(values: NDArray[np.int32]) -> pa.Array:
    return pa.array([values.astype(np.int32).tobytes()], pa.large_binary())


def _int32(column: pa.ChunkedArray) -> NDArray[np.int32]:
    return np.frombuffer(column[0].as_buffer(), dtype=np.int32)
