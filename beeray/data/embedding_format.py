"""How vectors are written: float32, float16, int8 with one scale, or bits; and how they are read back.

    float32, float16   fixed_size_list<float | halffloat>[d]
    int8               fixed_size_list<int8>[d]; x ≈ code · scale, one scale for all dimensions, so that an
                       inner product of codes ranks like one of vectors
    binary             fixed_size_list<uint8>[d / 8]; bit = x > 0, most significant bit first, as np.packbits and
                       sentence-transformers' `ubinary`; FAISS's own fvecs2bitvecs puts the least first,
                       which its searches do not mind as long as queries are packed as items are

The scale is a quantile of |x| over a sample of the catalog; the few values beyond it are clipped. It is
taken once and kept from publication to publication, so that codes of different nights compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beeray.errors import DataError

Vectors = NDArray[np.float32]
CLIP_QUANTILE = 0.9999
ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}
NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.uint8}


@dataclass(frozen=True)
class EmbeddingFormat:
    """What becomes of the encoder's vectors on their way to a file.

    Attributes:
        dtype: `float32`, `float16`, `int8` or `binary`.
        dim: dimensions kept, the first ones.
        normalize: whether vectors are brought to unit length after the cut.
        scale: value of one step of an int8 code; None for other types.
    """

    dtype: str
    dim: int
    normalize: bool
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ARROW_TYPES:
            raise DataError(
                f"embeddings of dtype {self.dtype!r}: this beeray knows {', '.join(ARROW_TYPES)}; update beeray"
            )
        if self.dtype == "binary" and self.dim % 8:
            raise DataError(
                f"embed.dtype is binary: the embeddings have {self.dim} dimensions, which is no multiple of 8; "
                "set embed.dims to one, or choose another dtype"
            )

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of the `embedding` column."""
        return pa.list_(pa.field("item", ARROW_TYPES[self.dtype]), self.width)

    @property
    def width(self) -> int:
        """Numbers a row holds in its file."""
        return self.dim // 8 if self.dtype == "binary" else self.dim

    def prepare(self, embeddings: Vectors) -> Vectors:
        """The encoder's vectors cut to `dim` and brought to unit length, if that is asked for; (rows, dim)."""
        kept = embeddings[:, : self.dim]
        if not self.normalize:
            return kept
        norms = np.linalg.norm(kept.astype(np.float64), axis=1, keepdims=True)  # squares leave float32's range
        return (kept / np.where(norms > 0, norms, 1)).astype(np.float32)

    def fits(self, embeddings: Vectors) -> NDArray[np.bool_]:
        """Which of the encoder's vectors can be stored, (rows,): their numbers are finite, as float16 if need be."""
        finite = np.isfinite(embeddings[:, : self.dim]).all(axis=1)
        if self.dtype == "float16":
            with np.errstate(over="ignore", invalid="ignore"):
                finite &= np.isfinite(self.prepare(embeddings).astype(np.float16)).all(axis=1)
        return np.asarray(finite)

    def encode(self, embeddings: Vectors) -> pa.FixedSizeListArray:
        """The `embedding` column of the encoder's vectors, float32 (rows, at least dim).

        Raises:
            DataError: a number is not finite, or does not fit float16.
        """
        _check_finite(embeddings[:, : self.dim], "check the encoder's weights; with embed.precision bf16 try fp32")
        kept = self.prepare(embeddings)
        if self.dtype == "int8":
            assert self.scale is not None
            numbers = np.clip(np.rint(kept / np.float32(self.scale)), -127, 127).astype(np.int8)
        elif self.dtype == "binary":
            numbers = np.packbits(kept > 0, axis=1)
        else:
            with np.errstate(over="ignore"):
                numbers = kept.astype(NUMPY_TYPES[self.dtype])
            _check_finite(numbers, "embed.dtype float16 ends at 65,504: choose float32, or set embed.normalize")
        return self.column(numbers)

    def column(self, numbers: NDArray[np.generic]) -> pa.FixedSizeListArray:
        """Numbers as they stand in a file, (rows, width), as an Arrow column."""
        flat = pa.array(np.ascontiguousarray(numbers).reshape(-1), ARROW_TYPES[self.dtype])
        return pa.FixedSizeListArray.from_arrays(flat, type=self.arrow_type)

    def numbers(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.generic]:
        """An `embedding` column as it stands in its file, (rows, width)."""
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width) for chunk in chunks]
        return np.concatenate(parts) if parts else np.empty((0, self.width), NUMPY_TYPES[self.dtype])

    def decode(self, column: pa.Array | pa.ChunkedArray) -> Vectors:
        """An `embedding` column as float32 (rows, dim): int8 codes times their scale, bits as −1 and 1."""
        numbers = self.numbers(column)
        if self.dtype == "binary":
            return np.unpackbits(numbers.astype(np.uint8), axis=1).astype(np.float32) * 2 - 1
        floats = numbers.astype(np.float32)
        return floats * np.float32(self.scale) if self.scale is not None else floats


def calibrate(sample: Vectors) -> float:
    """The int8 scale for vectors like these, float32 (rows, dim), already cut and normalised.

    Raises:
        DataError: a number is not finite.
    """
    _check_finite(sample, "check the encoder's weights; with embed.precision bf16 try fp32")
    largest = float(np.quantile(np.abs(sample), CLIP_QUANTILE)) if sample.size else 0.0
    return max(largest, float(np.finfo(np.float32).tiny) * 127) / 127


def _check_finite(numbers: NDArray[np.floating], remedy: str) -> None:
    bad = ~np.isfinite(numbers).all(axis=-1)
    if bad.any():
        raise DataError(f"embeddings: {bad.sum():,} of {len(bad):,} vectors hold NaN or infinity; {remedy}")
