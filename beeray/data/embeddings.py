"""Reading published embeddings: find the current version, prove that it is whole, stream it.

    <path>/latest                          {"version": …, "manifest_sha256": …}: replaced in one go
    <path>/versions/<version>/part-*.parquet   item_id, embedding, content_hash; sorted by item_id within a file
    <path>/versions/<version>/errors/      rows that were refused, with the reason
    <path>/versions/<version>/_manifest.json

A reader that has opened a version keeps reading that version whatever is published meanwhile; old versions
are removed only after `embed.keep_versions` newer ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from beeray.data.embedding_format import Vectors
from beeray.data.manifest import INSIDE, MANIFEST, Manifest, PublishedFile
from beeray.data.storage import exists, file_size, join, read_bytes, resolve, storage_errors
from beeray.errors import EmbeddingsError

LATEST, VERSIONS, INDEXES = "latest", "versions", "indexes"
Verify = Literal["checksums", "sizes", "none"]
THREADS = 8
CHUNK_BYTES = 1 << 22


class Embeddings:
    """One version of a publication. Picklable: it holds paths and the manifest, no vectors."""

    def __init__(self, path: str, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def version(self) -> str:
        """Name of the version that was opened."""
        return self.manifest.version

    @property
    def folder(self) -> str:
        """Folder of this version."""
        return join(self.path, VERSIONS, self.version)

    @property
    def num_rows(self) -> int:
        """Items."""
        return self.manifest.rows

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self.manifest.format.dim

    @property
    def paths(self) -> list[str]:
        """The parquet files, in order: what to hand to DuckDB, Polars or Spark."""
        return [join(self.folder, file.path) for file in self.manifest.files]

    def iter_batches(self, batch_rows: int = 65_536, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows file by file, a few at a time: `item_id`, `embedding` as it is stored, `content_hash`.

        Raises:
            DataError: a file is gone (with its version, after newer ones), or cannot be read.
        """
        for path in self.paths:
            filesystem, inside = resolve(path)
            with storage_errors(path), filesystem.open_input_file(inside) as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_rows, columns=list(columns) if columns else None):
                    yield pa.Table.from_batches([batch])

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows at once."""
        batches = list(self.iter_batches(columns=columns))
        if batches:
            return pa.concat_tables(batches)
        filesystem, inside = resolve(self.paths[0])
        return pq.read_table(inside, filesystem=filesystem, columns=list(columns) if columns else None)

    def vectors(self, table: pa.Table) -> Vectors:
        """The vectors of some rows as float32 (rows, dim), whatever they are stored as."""
        return self.manifest.format.decode(table["embedding"])

    def verify(self, how: Verify = "checksums") -> None:
        """Prove that every file is there and is what was written.

        Args:
            how: `checksums` reads every byte; `sizes` asks only for the sizes.

        Raises:
            EmbeddingsError: names the first file that is not.
        """
        if how == "none":
            return
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda file: self._check(file, how), self.manifest.files):
                pass

    def _check(self, file: PublishedFile, how: Verify) -> None:
        path = join(self.folder, file.path)
        if not exists(path):
            raise EmbeddingsError(f"{path}: is missing, the manifest lists it; publish again, or open another version")
        size = file_size(path)
        if size != file.bytes:
            raise EmbeddingsError(
                f"{path}: has {size} bytes, the manifest says {file.bytes}; publish again, or open another version"
            )
        if how == "checksums" and sha256_of(path) != file.sha256:
            raise EmbeddingsError(
                f"{path}: its SHA-256 is not the manifest's: it has changed; publish again, or open another version"
            )


def open_embeddings(
    path: str | os.PathLike[str], version: str | None = None, verify: Verify = "checksums"
) -> Embeddings:
    """Open what is published under a path.

    Args:
        path: of the publication (`embed.path`); local or a URI.
        version: an earlier version; what `latest` names unless given.
        verify: `checksums` reads every byte once, `sizes` only asks for them, `none` trusts.

    Raises:
        EmbeddingsError: nothing published there, a file missing or changed, or a newer schema.
    """
    path = os.fspath(path)
    pointed = read_latest(path) if version is None else None
    if version is None:
        if pointed is None:
            raise EmbeddingsError(f"{path}: nothing is published there (no file {LATEST!r}); run beeray.embed")
        version = pointed["version"]
    manifest_path = join(path, VERSIONS, version, MANIFEST)
    if not exists(manifest_path):
        raise EmbeddingsError(f"{manifest_path}: is not there, so version {version!r} is not published; check the name")
    data = read_bytes(manifest_path)
    if pointed and verify != "none" and hashlib.sha256(data).hexdigest() != pointed["manifest_sha256"]:
        raise EmbeddingsError(f"{manifest_path}: is not the manifest that {LATEST!r} names; publish again")
    found = Embeddings(path, Manifest.from_json(data, manifest_path))
    found.verify(verify)
    return found


def read_latest(path: str) -> dict[str, str] | None:
    """What the pointer says: `version` and `manifest_sha256`; None where nothing is published.

    Raises:
        EmbeddingsError: the pointer is damaged.
    """
    pointer = join(path, LATEST)
    if not exists(pointer):
        return None
    data = read_bytes(pointer)
    try:
        record = json.loads(data)
        version = str(record["version"])
        if not re.fullmatch(INSIDE, version):
            raise ValueError(f"version is {version!r}, which is no name of a folder")
        return {"version": version, "manifest_sha256": str(record["manifest_sha256"])}
    except (ValueError, KeyError, TypeError) as error:
        raise EmbeddingsError(f"{pointer}: is damaged ({error}); publish again") from error


def sha256_of(path: str) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    filesystem, inside = resolve(path)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(inside) as stream:
        while block := stream.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()
