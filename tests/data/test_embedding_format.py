"""Vectors written and read back: what each dtype loses, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers.util import quantize_embeddings

from beeray.data.embedding_format import ARROW_TYPES, NUMPY_TYPES, EmbeddingFormat, Vectors, calibrate
from beeray.errors import DataError

DTYPES = ["float32", "float16", "int8", "binary"]
DIM = 16


def vectors(rows: int = 50, dim: int = DIM, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def a_format(dtype: str, dim: int = DIM, *, normalize: bool = False, scale: float = 0.05) -> EmbeddingFormat:
    return EmbeddingFormat(dtype, dim, normalize, scale if dtype == "int8" else None)


def through(how: EmbeddingFormat, given: Any) -> Vectors:
    return how.decode(how.encode(np.asarray(given, dtype=np.float32)))


def test_float32_comes_back_to_the_bit() -> None:
    given = vectors()
    given[0, :4] = [0.0, -0.0, 1e-42, 3.4e38]
    assert through(a_format("float32"), given).tobytes() == given.tobytes()


def test_float16_rounds_to_eleven_bits() -> None:
    given = vectors()
    back = through(a_format("float16"), given)
    assert back.dtype == np.float32
    assert (np.abs(back - given) <= np.abs(given) * 2.0**-11 + 2.0**-25).all()
    assert (back != given).any()
    assert through(a_format("float16", 4), [[1 + 2.0**-10, 1 + 2.0**-12, 65504, 2.0**-24]]).tolist() == [
        [1 + 2.0**-10, 1.0, 65504.0, 2.0**-24]
    ]


def test_int8_is_within_half_a_step_and_clipped_beyond_127_steps() -> None:
    how = EmbeddingFormat("int8", 8, False, 0.5)
    given = [[0.0, 0.24, 0.26, -0.26, 63.4, 63.9, -1000.0, 1e30]]
    assert how.numbers(how.encode(np.array(given, np.float32))).tolist() == [[0, 0, 1, -1, 127, 127, -127, 127]]
    assert through(how, given).tolist() == [[0.0, 0.0, 0.5, -0.5, 63.5, 63.5, -63.5, 63.5]]
    many = vectors()
    back = through(a_format("int8", scale=0.05), many)
    inside = np.abs(many) <= 127 * 0.05
    assert (np.abs(back - many)[inside] <= 0.05 / 2 + 1e-6).all()


def test_a_calibrated_scale_clips_next_to_nothing_and_keeps_directions() -> None:
    many = vectors(2000)
    scale = calibrate(many)
    assert 127 * scale == pytest.approx(np.quantile(np.abs(many), 0.9999))
    assert (np.abs(many) > 127 * scale).mean() <= 1.3e-4  # an interpolated quantile: 4 of 32,000
    back = through(a_format("int8", scale=scale), many)
    cosines = (back * many).sum(axis=1) / (np.linalg.norm(back, axis=1) * np.linalg.norm(many, axis=1))
    assert np.median(cosines) > 0.9999
    assert cosines.min() > 0.99  # rows with a clipped number


def test_the_scale_of_a_plain_sample_is_its_largest_number_over_127() -> None:
    assert calibrate(np.full((10, 4), -2.54, np.float32)) == pytest.approx(0.02)


@pytest.mark.parametrize("sample", [np.zeros((0, 4), np.float32), np.zeros((5, 4), np.float32)])
def test_a_sample_of_nothing_gives_a_scale_that_divides(sample: Vectors) -> None:
    assert 0 < calibrate(sample) < 1e-30
    assert through(EmbeddingFormat("int8", 4, False, calibrate(sample)), np.zeros((2, 4))).tolist() == [[0.0] * 4] * 2


def test_bits_are_one_above_zero_and_come_back_as_one_and_minus_one() -> None:
    how = a_format("binary", 8)
    stored = how.encode(np.array([[1, -1, 0, 2, -0.0, 1e-42, -5, 3]], np.float32))
    assert how.numbers(stored).tolist() == [[0b10010101]]
    assert how.decode(stored).tolist() == [[1, -1, -1, 1, -1, 1, -1, 1]]


def test_bits_are_those_of_sentence_transformers_and_not_in_the_order_of_faiss() -> None:
    given = vectors()
    stored = a_format("binary").numbers(a_format("binary").encode(given))
    np.testing.assert_array_equal(stored, quantize_embeddings(given, "ubinary"))
    theirs = np.zeros_like(stored)
    faiss.fvecs2bitvecs(faiss.swig_ptr(given), faiss.swig_ptr(theirs), DIM, len(given))
    np.testing.assert_array_equal(theirs, np.packbits(given > 0, axis=1, bitorder="little"))
    assert (theirs != stored).any()


def test_faiss_finds_among_stored_bits_what_decoded_vectors_say() -> None:
    how = a_format("binary")
    stored = how.numbers(how.encode(vectors(200))).astype(np.uint8)
    index = faiss.IndexBinaryFlat(DIM)
    index.add(stored)
    distances, found = index.search(stored[:20], 5)
    decoded = how.decode(how.encode(vectors(200)))
    products = (decoded[:20, None, :] * decoded[found]).sum(axis=2)
    np.testing.assert_array_equal(products, DIM - 2 * distances)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dimensions_are_cut_before_vectors_are_brought_to_unit_length(dtype: str) -> None:
    given = np.concatenate([vectors(20, 8), 1000 * vectors(20, 8, seed=1)], axis=1)
    how = a_format(dtype, 8, normalize=True, scale=1 / 127)
    prepared = how.prepare(given)
    assert prepared.shape == (20, 8)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(prepared, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(prepared, given[:, :8] / np.linalg.norm(given[:, :8], axis=1)[:, None], rtol=1e-6)
    assert how.encode(given).equals(how.encode(given[:, :8] * 4))
    if dtype != "binary":
        np.testing.assert_allclose(np.linalg.norm(through(how, given), axis=1), 1, atol=0.02)


def test_lengths_are_kept_unless_asked_for() -> None:
    given = vectors() * 5
    np.testing.assert_array_equal(a_format("float32").prepare(given), given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_vector_of_zeros_stays_one(dtype: str, normalize: bool) -> None:
    back = through(a_format(dtype, normalize=normalize), np.zeros((2, DIM)))
    np.testing.assert_array_equal(back, np.full((2, DIM), -1 if dtype == "binary" else 0))


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_unit_length_does_not_depend_on_the_size_of_the_numbers(size: float) -> None:
    given = vectors()
    prepared = a_format("float32", normalize=True).prepare(given * np.float32(size))
    np.testing.assert_allclose(np.linalg.norm(prepared, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(prepared, a_format("float32", normalize=True).prepare(given), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_never_written(dtype: str, normalize: bool, bad: float) -> None:
    given = vectors()
    given[[3, 7, 7], [2, 0, 1]] = bad
    with pytest.raises(DataError, match=r"embeddings: 2 of 50 vectors hold NaN or infinity; check the encoder"):
        a_format(dtype, normalize=normalize).encode(given)


def test_what_is_cut_off_need_not_be_finite() -> None:
    given = vectors()
    given[:, 8:] = np.nan
    assert through(a_format("float32", 8), given).tolist() == given[:, :8].tolist()


def test_a_number_beyond_float16_is_refused_with_the_remedy() -> None:
    given = vectors()
    given[5, 5] = 70_000
    with pytest.raises(DataError, match=r"1 of 50 vectors .*; embed.dtype float16 ends at 65,504: choose float32, or"):
        a_format("float16").encode(given)
    assert through(a_format("float16", normalize=True), given)[5, 5] == pytest.approx(1, abs=1e-3)
    assert through(a_format("float32"), given)[5, 5] == 70_000


def test_no_scale_is_made_of_numbers_that_are_not_finite() -> None:
    with pytest.raises(DataError, match="1 of 50 vectors hold NaN or infinity"):
        calibrate(np.where(np.arange(50)[:, None] == 4, np.float32(np.nan), vectors()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_have_the_right_type(dtype: str) -> None:
    how = a_format(dtype)
    stored = how.encode(np.empty((0, DIM), np.float32))
    assert (len(stored), stored.type) == (0, how.arrow_type)
    assert how.decode(stored).shape == (0, DIM)
    assert how.decode(pa.chunked_array([], how.arrow_type)).shape == (0, DIM)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slice_and_chunks_of_a_column_decode_to_their_rows(dtype: str) -> None:
    how = a_format(dtype)
    whole = how.encode(vectors())
    expected = how.decode(whole)
    np.testing.assert_array_equal(how.decode(whole.slice(7, 20)), expected[7:27])
    np.testing.assert_array_equal(
        how.decode(pa.chunked_array([whole.slice(30), whole.slice(0, 3)])), expected[[*range(30, 50), 0, 1, 2]]
    )
    np.testing.assert_array_equal(how.decode(how.column(how.numbers(whole))), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parquet_keeps_type_and_bits(tmp_path: Path, dtype: str) -> None:
    how = a_format(dtype)
    column = how.encode(vectors())
    pq.write_table(pa.table({"embedding": column}), tmp_path / "one.parquet", row_group_size=7)
    back = pq.read_table(tmp_path / "one.parquet")["embedding"]
    assert back.type == how.arrow_type
    assert how.numbers(back).tobytes() == how.numbers(column).tobytes()
    assert how.numbers(back).dtype == NUMPY_TYPES[dtype]
    assert how.numbers(back).shape == (50, how.width)
    assert how.arrow_type.value_type == ARROW_TYPES[dtype]


@pytest.mark.parametrize("dim", [1, 7, 12, 100])
def test_bits_need_whole_bytes(dim: int) -> None:
    with pytest.raises(DataError, match=rf"embed.dtype is binary: the embeddings have {dim} dimensions"):
        EmbeddingFormat("binary", dim, False)
    assert EmbeddingFormat("int8", dim, False, 1.0).width == dim


def test_a_dtype_of_a_later_version_is_refused() -> None:
    with pytest.raises(DataError, match="embeddings of dtype 'int4': this beeray knows float32, float16, int8, binary"):
        EmbeddingFormat("int4", 8, False)
