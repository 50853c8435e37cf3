"""Small publications, written by hand in the layout that `beeray.data.embeddings` describes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beeray.data.embedding_format import EmbeddingFormat, calibrate
from beeray.data.manifest import MANIFEST, Manifest, PublishedFile

VERSION = "20260102T030405Z-0"


def write_publication(
    path: Path,
    ids: list[str] | list[int],
    vectors: NDArray[np.float32],
    dtype: str = "float32",
    *,
    version: str = VERSION,
    num_files: int = 3,
    rows_per_row_group: int = 2048,
    normalize: bool = False,
    layout: dict[str, int] | None = None,
) -> Path:
    """Publish some vectors under a folder, and make `latest` name them.

    Args:
        ids: one a row of `vectors`, text or integers; dealt to the files in order, one of which is empty.
        vectors: float32 (rows, dim).
        dtype: what they are stored as; int8 codes have the scale that the vectors calibrate.
    """
    scale = calibrate(vectors) if dtype == "int8" else None
    stored = EmbeddingFormat(dtype, vectors.shape[1], normalize, scale)
    id_type = pa.string() if ids and isinstance(ids[0], str) else pa.int64()
    table = pa.table(
        {
            "item_id": pa.array(ids, id_type),
            "embedding": stored.encode(vectors),
            "content_hash": pa.array([hashlib.md5(str(one).encode()).digest() for one in ids], pa.binary(16)),
        }
    )
    folder = path / "versions" / version
    folder.mkdir(parents=True)
    edges = [round(edge) for edge in np.linspace(0, len(ids), num_files)]
    bounds = list(zip(edges, [*edges[1:], edges[-1]], strict=True))
    files = []
    for number, (first, last) in enumerate(bounds):
        file = folder / f"part-{number:05d}.parquet"
        pq.write_table(table.slice(first, last - first), file, row_group_size=rows_per_row_group)
        files.append(PublishedFile(file.name, last - first, file.stat().st_size, sha256(file)))
    manifest = Manifest(
        version=version,
        created="2026-01-02T03:04:05+00:00",
        rows=len(ids),
        item_id_type=str(id_type),
        format=stored,
        files=files,
        model={"name": "model", "fingerprint": "0" * 16},
        encoding={},
        encoding_digest="0" * 16,
        config_digest="0" * 16,
        catalog={},
        counts={"read": len(ids)},
        layout=layout or {},
    )
    (folder / MANIFEST).write_bytes(manifest.to_json())
    (path / "latest").write_text(
        json.dumps({"version": version, "manifest_sha256": sha256(folder / MANIFEST)}), encoding="utf-8"
    )
    return path


def clustered(rows: int, dim: int, seed: int = 0, num_clusters: int = 40, spread: float = 0.3) -> NDArray[np.float32]:
    """Vectors around random centres, as items of a catalog lie around its kinds of items; float32 (rows, dim)."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(num_clusters, dim))
    vectors = centres[draw.integers(0, num_clusters, rows)] + spread * draw.normal(size=(rows, dim))
    return vectors.astype(np.float32)


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
