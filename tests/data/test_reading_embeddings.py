"""Published parquet in the hands of others: docs/reading-embeddings.md is run, and every dtype read by every reader."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import clustered, write_publication

from beeray import embeddings
from beeray.config import IndexConfig
from beeray.data.faiss_index import write_index
from beeray.data.pgvector import write_pgvector_copy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reading-embeddings.md"
DTYPES = ["float32", "float16", "int8", "binary"]
DIM = 16
AWKWARD_IDS = ["plain", "tab\there", "new\nline", "back\\slash", "\\N", "\\.", "return\rhere", "ünï", "a\\tb", ""]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


def block(mark: str) -> str:
    """The one block of Python that holds a text."""
    (found,) = [code for code in blocks("python") if mark in code]
    return found


def run(code: str, **given: Any) -> dict[str, Any]:
    names = dict(given)
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    return clustered(60, DIM, num_clusters=12)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    folder = tmp_path_factory.mktemp("published")
    return str(write_publication(folder, [f"sku-{row}" for row in range(60)], vectors))


def by_hand(vectors: Any, query: Any, *, cosine: bool) -> list[str]:
    """The ten best ids."""
    scores = vectors.astype(np.float64) @ query
    if cosine:
        scores = scores / np.linalg.norm(vectors, axis=1)
    return [f"sku-{row}" for row in np.argsort(-scores)[:10]]


def test_the_page_has_the_blocks_that_are_run_here() -> None:
    marks = ["iter_batches", "faiss", "array_inner_product", "packbits", "polars", "write_pgvector_copy"]
    assert [code for code in blocks("python") if not any(mark in code for mark in marks)] == []
    assert all(block(mark) for mark in marks)
    assert len(blocks("sql")) == 1
    assert re.findall(r"^```(\w+)", PAGE.read_text(encoding="utf-8"), flags=re.M).count("python") == len(marks)


def test_the_page_names_every_field_of_the_manifest(path: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    fields = vars(embeddings.open(path).manifest)
    assert [name for name in fields if f"`{name}`" not in text] == []


def test_the_numpy_block_ends_with_the_last_rows(path: str, vectors: Any) -> None:
    names = run(block("iter_batches"), path=path)
    assert names["ids"][-1] == "sku-59"
    np.testing.assert_array_equal(names["vectors"][-1], vectors[-1])


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_the_faiss_block_finds_what_cosine_by_hand_finds(path: str, vectors: Any, tmp_path: Path, kind: str) -> None:
    write_index(embeddings.open(path), IndexConfig(kind=kind), str(tmp_path / "index"), lambda *_: None)  # type: ignore[arg-type]
    names = run(block("faiss"), index_path=str(tmp_path / "index"), query=vectors[7])
    assert [one for one, _ in names["nearest"]] == by_hand(vectors, vectors[7], cosine=True)
    assert names["nearest"][0][1] == pytest.approx(1.0, abs=1e-5)


def test_the_sql_block_finds_what_cosine_by_hand_finds(path: str, vectors: Any) -> None:
    (code,) = blocks("sql")
    code = code.format(path=path, dim=DIM, query=vectors[7].tolist())
    ranking = duckdb.connect().execute(code).fetchall()
    assert [one for one, _ in ranking] == by_hand(vectors, vectors[7], cosine=True)


def test_the_duckdb_block_finds_what_inner_products_by_hand_find(path: str, vectors: Any) -> None:
    nearest = run(block("array_inner_product"), path=path, query=vectors[7])["nearest"]
    assert [one for one, _ in nearest] == by_hand(vectors, vectors[7], cosine=False)
    assert by_hand(vectors, vectors[7], cosine=False) != by_hand(vectors, vectors[7], cosine=True)


def test_the_block_on_bits_counts_those_that_differ(vectors: Any, tmp_path: Path) -> None:
    write_publication(tmp_path, [f"sku-{row}" for row in range(60)], vectors, "binary")
    nearest = run(block("packbits"), binary=embeddings.open(str(tmp_path)), query=vectors[7])["nearest"]
    differing = ((vectors > 0) != (vectors[7] > 0)).sum(axis=1)
    assert [distance for _, distance in nearest] == sorted(differing)[:10]
    assert {one: distance for one, distance in nearest} == {
        one: differing[int(one.removeprefix("sku-"))] for one, _ in nearest
    }


def test_the_polars_block_finds_what_inner_products_by_hand_find(path: str, vectors: Any) -> None:
    names = run(block("polars"), path=path, query=vectors[7])
    assert names["nearest"]["item_id"].to_list() == by_hand(vectors, vectors[7], cosine=False)
    assert names["items"].schema["embedding"] == pl.Array(pl.Float32, DIM)


def test_the_pgvector_block_writes_a_line_an_item(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(block("write_pgvector_copy"), path=path)
    lines = (tmp_path / "items.copy").read_text(encoding="utf-8").split("\n")
    assert [line.partition("\t")[0] for line in lines] == [*(f"sku-{row}" for row in range(60)), ""]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind_of_id", ["text", "integer"])
def test_pyarrow_duckdb_and_polars_read_the_same_from_every_dtype(
    vectors: Any, tmp_path: Path, dtype: str, kind_of_id: str
) -> None:
    ids: Any = [f"sku-{row}" for row in range(60)] if kind_of_id == "text" else list(range(100, 160))
    published = embeddings.open(str(write_publication(tmp_path, ids, vectors, dtype)))
    table = published.table()
    numbers = published.manifest.format.numbers(table["embedding"])
    hashes = table["content_hash"].to_pylist()
    assert table["content_hash"].type == pa.binary(16)
    assert {len(one) for one in hashes} == {16}
    assert table["item_id"].to_pylist() == ids
    assert pq.read_table(published.paths).equals(table)

    rows = duckdb.connect().execute("SELECT * FROM read_parquet($f)", {"f": published.paths}).fetchall()
    assert [row[0] for row in rows] == ids
    np.testing.assert_array_equal(np.array([row[1] for row in rows]), numbers)
    assert [row[2] for row in rows] == hashes

    for items in (pl.read_parquet(published.paths), pl.scan_parquet(published.paths).collect()):
        assert items["item_id"].to_list() == ids
        np.testing.assert_array_equal(items["embedding"].to_numpy(), numbers)
        assert items["embedding"].dtype.shape == (published.manifest.format.width,)  # type: ignore[attr-defined]
        assert items["content_hash"].to_list() == hashes


def unescaped(text: str) -> str:
    """A text value of COPY as PostgreSQL takes it."""
    plain = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return re.sub(r"\\(.)", lambda found: plain[found[1]], text)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_lines_read_back_to_the_same_ids_and_to_the_bit_the_same_vectors(tmp_path: Path, dtype: str) -> None:
    vectors = clustered(len(AWKWARD_IDS), DIM)
    vectors[0, :3] = [1e-7, 0.0, -3e4]
    published = embeddings.open(str(write_publication(tmp_path, AWKWARD_IDS, vectors, dtype)))
    stream = io.BytesIO()
    assert write_pgvector_copy(published, stream) == len(AWKWARD_IDS)
    lines = stream.getvalue().decode().removesuffix("\n").split("\n")
    assert [line.count("\t") for line in lines] == [1] * len(AWKWARD_IDS)
    fields = [line.split("\t") for line in lines]
    assert [unescaped(one) for one, _ in fields] == AWKWARD_IDS
    assert fields[4][0] != r"\N"  # that would be NULL
    read = np.array([text.strip("[]").split(",") for _, text in fields]).astype(np.float32)
    np.testing.assert_array_equal(read, published.vectors(published.table()))
    assert all(text.startswith("[") and text.endswith("]") for _, text in fields)


def test_copy_lines_of_integer_ids_are_the_numbers(tmp_path: Path) -> None:
    published = embeddings.open(str(write_publication(tmp_path, [7, -2], np.array([[1, 2.5], [0, -0.1]], np.float32))))
    stream = io.BytesIO()
    write_pgvector_copy(published, stream)
    assert stream.getvalue() == b"7\t[1,2.5]\n-2\t[0,-0.1]\n"
