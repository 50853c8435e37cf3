"""A FAISS index of published embeddings, built file by file.

    <index>/index.faiss    the index; a neighbour's number is a row of ids.parquet
    <index>/ids.parquet    row, item_id
    <index>/index.json     what it was made from, and how well and how fast it finds; written last

A publication is read two or three times (training rows, all rows, exact neighbours) so that never more than
a block of it is in memory beside the index.

FAISS brings an OpenMP of its own, as torch does; two in one process abort on macOS. Nothing here, and nothing
that `beeray.index` imports, brings torch.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from beeray.config import IndexConfig
from beeray.data.embedding_format import Vectors
from beeray.data.embeddings import Embeddings, sha256_of
from beeray.data.index_recall import RowSample, measure_recall, median_query_ms
from beeray.data.manifest import MANIFEST
from beeray.data.staging import Staging
from beeray.data.storage import entries, exists, is_local, join, resolve, storage_errors
from beeray.errors import ConfigError, DataError, EmbeddingsError

INDEX, IDS, INFO = "index.faiss", "ids.parquet", "index.json"
SCHEMA_VERSION = 1
BLOCK_BYTES = 1 << 26
CODE_BITS, NUM_CODES = 8, 256
ROWS_PER_CENTROID = 39
"""Training rows below which FAISS warns that a k-means centroid is badly placed."""
DEFAULT_DIMS_PER_BYTE = 4

Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class IndexPlan:
    """An index with nothing left to choose.

    Attributes:
        kind: `flat`, `ivf_pq` or `hnsw`.
        metric: `cosine` or `inner_product`.
        rows: vectors that will be in it.
        dim: their dimensions.
        parameters: of the kind, as they were given or derived.
        train_rows: vectors to train on; 0 where nothing is trained.
        seed: of every draw.
    """

    kind: str
    metric: str
    rows: int
    dim: int
    parameters: dict[str, int]
    train_rows: int
    seed: int


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ConfigError("faiss is not installed, and an index needs it; pip install 'beeray[index]'") from error
    return faiss


def plan_index(settings: IndexConfig, rows: int, dim: int) -> IndexPlan:
    """Derive what the config leaves open, and refuse what cannot be built.

    Args:
        rows, dim: of the publication.

    Raises:
        ConfigError: an `index` key does not fit the publication, or it has too few rows to train on.
        EmbeddingsError: the publication is empty.
    """
    if not rows:
        raise EmbeddingsError("the publication has no items, so there is nothing to index; publish some")
    parameters, train_rows = {}, 0
    if settings.kind == "hnsw":
        parameters = {
            "hnsw_m": settings.hnsw_m,
            "hnsw_ef_construction": settings.hnsw_ef_construction,
            "hnsw_ef_search": settings.hnsw_ef_search,
        }
    elif settings.kind == "ivf_pq":
        train_rows = min(rows, settings.train_rows)
        num_lists = _num_lists(settings, rows, train_rows)
        parameters = {
            "num_lists": num_lists,
            "pq_bytes": _pq_bytes(settings, dim),
            "num_probes": min(settings.num_probes, num_lists),
        }
    return IndexPlan(settings.kind, settings.metric, rows, dim, parameters, train_rows, settings.seed)


def _num_lists(settings: IndexConfig, rows: int, train_rows: int) -> int:
    if train_rows < NUM_CODES:
        raise ConfigError(
            f"index.kind is ivf_pq: its codes are trained on at least {NUM_CODES} rows, and {rows:,} are published; "
            "set index.kind to flat or hnsw"
        )
    supported = max(1, train_rows // ROWS_PER_CENTROID)
    if settings.num_lists is None:
        return min(supported, max(1, round(4 * rows**0.5)))
    if settings.num_lists > supported:
        raise ConfigError(
            f"index.num_lists is {settings.num_lists}: a list is trained on at least {ROWS_PER_CENTROID} rows, and "
            f"there are {train_rows:,} (index.train_rows is {settings.train_rows:,}, rows published {rows:,}); "
            f"give at most {supported}, or null"
        )
    return settings.num_lists


def _pq_bytes(settings: IndexConfig, dim: int) -> int:
    divisors = [number for number in range(1, dim + 1) if dim % number == 0]
    if settings.pq_bytes is None:
        return max(number for number in divisors if number <= max(1, dim // DEFAULT_DIMS_PER_BYTE))
    if dim % settings.pq_bytes:
        raise ConfigError(
            f"index.pq_bytes is {settings.pq_bytes}: it must divide the embeddings' {dim} dimensions; "
            f"give one of {', '.join(map(str, divisors))}, or null"
        )
    return settings.pq_bytes


def write_index(published: Embeddings, settings: IndexConfig, path: str, report: Report) -> dict[str, Any]:
    """Build the index of a publication, measure it, and publish its folder whole.

    Args:
        path: the index's folder, local or a URI; an older index there is replaced.
        report: called with (stage, rows done, rows in all).

    Returns:
        What `index.json` says.

    Raises:
        ConfigError: faiss is missing, a key of `index` does not fit, or something else is at `path`.
        EmbeddingsError: the publication is empty, or its files hold other rows than its manifest says.
        DataError: something cannot be read or written.
    """
    faiss = load_faiss()
    plan = plan_index(settings, published.num_rows, published.dim)
    _check_free(path)
    queries = RowSample(plan.rows, settings.num_queries, plan.dim, (settings.seed, 1))
    with _published_folder(path) as folder, _threads(faiss, settings.threads):
        started = time.monotonic()
        index = new_index(plan)
        if plan.train_rows:
            train(index, published, plan, report)
        train_s = time.monotonic() - started
        add_all(index, published, plan, folder / IDS, queries, report)
        build_s = time.monotonic() - started
        _write(index, folder / INDEX, path)
        measured = _measured(index, published, plan, settings, queries, report)
        sizes = {name: (folder / name).stat().st_size for name in (INDEX, IDS)}
        record = {
            "schema_version": SCHEMA_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "kind": plan.kind,
            "metric": plan.metric,
            "parameters": plan.parameters,
            "train_rows": plan.train_rows,
            "seed": plan.seed,
            "rows": plan.rows,
            "dim": plan.dim,
            "publication": _described(published),
            **measured,
            "bytes": sizes,
            "bytes_per_vector": round(sizes[INDEX] / plan.rows, 1),
            "train_s": round(train_s, 2),
            "build_s": round(build_s, 2),
            "faiss": faiss.__version__,
        }
        (folder / INFO).write_text(json.dumps(record, indent=2), encoding="utf-8")
    return record


def new_index(plan: IndexPlan) -> Any:
    """An empty FAISS index; scores are inner products, so of unit vectors cosines."""
    faiss = load_faiss()
    parameters = plan.parameters
    if plan.kind == "flat":
        return faiss.IndexFlatIP(plan.dim)
    if plan.kind == "hnsw":
        index = faiss.IndexHNSWFlat(plan.dim, parameters["hnsw_m"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = parameters["hnsw_ef_construction"]
        index.hnsw.efSearch = parameters["hnsw_ef_search"]
        index.hnsw.rng = faiss.RandomGenerator(plan.seed)
        return index
    index = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(plan.dim),
        plan.dim,
        parameters["num_lists"],
        parameters["pq_bytes"],
        CODE_BITS,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.nprobe = parameters["num_probes"]
    # lists are chosen by inner product: centroids of unit length keep the long ones from taking everything
    index.cp.spherical = True
    index.cp.seed = index.pq.cp.seed = plan.seed
    return index


def train(index: Any, published: Embeddings, plan: IndexPlan, report: Report) -> None:
    """Train lists and codes on a seeded sample of the publication."""
    sample = RowSample(plan.rows, plan.train_rows, plan.dim, (plan.seed, 0))
    for start, _, vectors in _reported(
        iter_blocks(published, plan.metric, ["embedding"]), "training rows", plan.rows, report
    ):
        sample.take(start, vectors)
    report("train", 0, plan.train_rows)
    index.train(sample.vectors)
    report("train", plan.train_rows, plan.train_rows)


def add_all(
    index: Any, published: Embeddings, plan: IndexPlan, ids_path: Path, queries: RowSample, report: Report
) -> None:
    """Put every vector into a trained index, its id into `ids_path`, and those asked for into `queries`.

    Raises:
        EmbeddingsError: the files hold more or fewer rows than the manifest says.
    """
    _reserve(index, plan)
    writer: pq.ParquetWriter | None = None
    blocks = iter_blocks(published, plan.metric, ["item_id", "embedding"])
    try:
        for start, table, vectors in _reported(blocks, "add", plan.rows, report):
            index.add(vectors)
            queries.take(start, vectors)
            rows = pa.array(np.arange(start, start + len(table), dtype=np.int64))
            ids = pa.table({"row": rows, "item_id": table["item_id"]})
            if writer is None:
                writer = pq.ParquetWriter(ids_path, ids.schema)
            writer.write_table(ids)
    finally:
        if writer is not None:
            writer.close()
    if index.ntotal != plan.rows:
        raise EmbeddingsError(
            f"{published.folder}: holds {index.ntotal:,} rows, the manifest says {plan.rows:,}; publish again"
        )


def iter_blocks(published: Embeddings, metric: str, columns: list[str]) -> Iterator[tuple[int, pa.Table, Vectors]]:
    """The publication a block at a time: number of its first row, its table, its vectors as an index holds them."""
    start = 0
    with storage_errors(published.folder):
        for table in published.iter_batches(max(1, BLOCK_BYTES // (4 * published.dim)), columns):
            vectors = np.ascontiguousarray(published.vectors(table), dtype=np.float32)
            if metric == "cosine":
                norms = np.linalg.norm(vectors, axis=1, keepdims=True)
                vectors = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
            yield start, table, vectors
            start += len(table)


def _reported(
    blocks: Iterator[tuple[int, pa.Table, Vectors]], stage: str, total: int, report: Report
) -> Iterator[tuple[int, pa.Table, Vectors]]:
    report(stage, 0, total)
    for start, table, vectors in blocks:
        yield start, table, vectors
        report(stage, start + len(table), total)


def _reserve(index: Any, plan: IndexPlan) -> None:
    """Make room for all vectors at once: growing by doubling would hold them twice for a moment."""
    if plan.kind == "ivf_pq":
        return
    storage = load_faiss().downcast_index(index.storage) if plan.kind == "hnsw" else index
    storage.codes.resize(plan.rows * plan.dim * 4)
    storage.codes.resize(0)


def _measured(
    index: Any, published: Embeddings, plan: IndexPlan, settings: IndexConfig, queries: RowSample, report: Report
) -> dict[str, Any]:
    blocks = _reported(iter_blocks(published, plan.metric, ["embedding"]), "exact search", plan.rows, report)
    recall = measure_recall(index, queries, settings.recall_at, ((start, block) for start, _, block in blocks))
    return {
        "recall": {str(k): value for k, value in recall.items()},
        "num_queries": len(queries.rows),
        "query_ms": median_query_ms(index, queries, min(settings.recall_at)),
    }


def _described(published: Embeddings) -> dict[str, Any]:
    return {
        "path": published.path,
        "version": published.version,
        "manifest_sha256": sha256_of(join(published.folder, MANIFEST)),
        "dtype": published.manifest.format.dtype,
        "item_id_type": published.manifest.item_id_type,
    }


def _check_free(path: str) -> None:
    """Refuse to replace what is no index; one that was interrupted while it was put there is part of one.

    Raises:
        ConfigError: something else is there.
    """
    if exists(path) and not exists(join(path, INFO)) and not set(entries(path)) <= {INDEX, IDS}:
        raise ConfigError(f"index.path: {path} is there and is no index (it has no {INFO}); give a path that is free")


def _write(index: Any, file: Path, path: str) -> None:
    try:
        load_faiss().write_index(index, str(file))
    except RuntimeError as error:  # all that FAISS raises
        raise DataError(
            f"{path}: the index cannot be written ({str(error).splitlines()[0]}); check the path and its disk"
        ) from error


@contextmanager
def _published_folder(path: str) -> Iterator[Path]:
    """A local folder that becomes `path` when the block ends well; FAISS writes to local files only."""
    with Staging(path, INFO) as staging:
        with storage_errors(path):
            if is_local(path):
                yield Path(staging.path)
            else:
                with tempfile.TemporaryDirectory(prefix="beeray-index-") as scratch:
                    yield Path(scratch)
                    filesystem, inside = resolve(staging.path)
                    fs.copy_files(scratch, inside, fs.LocalFileSystem(), filesystem)
        staging.publish()


@contextmanager
def _threads(faiss: Any, threads: int | None) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
