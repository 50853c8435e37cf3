"""A FAISS index of a publication: exact where it should be, measured honestly, whole or not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from published import clustered, sha256, write_publication

from beeray import embeddings
from beeray.config import IndexConfig
from beeray.data import faiss_index
from beeray.data.faiss_index import IDS, INDEX, INFO, plan_index, write_index
from beeray.data.index_recall import RowSample, measure_recall, neighbours
from beeray.errors import ConfigError, DataError, EmbeddingsError

DIM = 32
NUM_ROWS = 3000
Vectors = NDArray[np.float32]


def settings(**keys: Any) -> IndexConfig:
    return IndexConfig.model_validate({"threads": 1, "num_queries": 200, **keys})


def silent(*_: Any) -> None:
    """No progress."""


def build(path: Path | str, target: Path | str, **keys: Any) -> dict[str, Any]:
    return write_index(embeddings.open(str(path)), settings(**keys), str(target), silent)


def search(folder: Path, queries: Vectors, k: int) -> tuple[list[list[Any]], Vectors]:
    """Ids and scores, as the documentation says."""
    scores, rows = faiss.read_index(str(folder / INDEX)).search(np.asarray(queries, np.float32), k)
    ids = pq.read_table(folder / IDS)["item_id"].to_numpy()
    return [[ids[row] for row in found if row >= 0] for found in rows], scores


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return clustered(NUM_ROWS, DIM)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, vectors: Vectors) -> Path:
    return write_publication(tmp_path_factory.mktemp("published"), list(range(NUM_ROWS)), vectors)


# Lengths 5, 2, 1, 10; the last has the largest inner product with (1, 0), the second the largest cosine.
KNOWN = np.array([[3, 4], [2, 0], [0, -1], [6, 8]], np.float32)


def test_cosine_ranks_known_vectors_by_their_angle(tmp_path: Path) -> None:
    write_publication(tmp_path / "p", ["a", "b", "c", "d"], KNOWN)
    build(tmp_path / "p", tmp_path / "i", kind="flat", metric="cosine")
    found, scores = search(tmp_path / "i", np.array([[1, 0]]), 4)
    assert found[0][0] == "b" and set(found[0][1:3]) == {"a", "d"} and found[0][3] == "c"
    np.testing.assert_allclose(scores[0], [1.0, 0.6, 0.6, 0.0], atol=1e-6)


def test_inner_product_ranks_the_same_vectors_by_length_too(tmp_path: Path) -> None:
    write_publication(tmp_path / "p", ["a", "b", "c", "d"], KNOWN)
    build(tmp_path / "p", tmp_path / "i", kind="flat", metric="inner_product")
    found, scores = search(tmp_path / "i", np.array([[1, 0]]), 4)
    assert found == [["d", "a", "b", "c"]]
    np.testing.assert_allclose(scores[0], [6, 3, 2, 0])


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_pq"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_an_index_of_any_kind_and_dtype_finds_each_item_as_its_own_nearest(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    vectors = np.random.default_rng(3).normal(size=(600, 64)).astype(np.float32)  # no two alike
    published = embeddings.open(str(write_publication(tmp_path / "p", list(range(600)), vectors, dtype)))
    record = write_index(published, settings(kind=kind, pq_bytes=32), str(tmp_path / "i"), silent)
    decoded = published.vectors(published.table())
    queries = decoded / np.linalg.norm(decoded, axis=1, keepdims=True)
    found, _ = search(tmp_path / "i", queries, 1)
    assert np.mean([one == [row] for row, one in enumerate(found)]) > 0.99
    assert (record["rows"], record["dim"], record["publication"]["dtype"]) == (600, 64, dtype)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "binary"])
def test_flat_has_recall_one_also_where_scores_are_equal(
    tmp_path: Path, vectors: Vectors, metric: str, dtype: str
) -> None:
    repeated = np.concatenate([vectors[:300]] * 4)  # every item three times more; bits have few distances anyway
    write_publication(tmp_path / "p", list(range(1200)), repeated, dtype)
    record = build(tmp_path / "p", tmp_path / "i", kind="flat", metric=metric, recall_at=[1, 2, 10, 100])
    assert record["recall"] == {"1": 1.0, "2": 1.0, "10": 1.0, "100": 1.0}


def test_recall_is_one_where_k_exceeds_the_items_and_absent_for_one_item(tmp_path: Path) -> None:
    write_publication(tmp_path / "p", ["a", "b", "c", "d"], KNOWN)
    assert build(tmp_path / "p", tmp_path / "i", kind="flat")["recall"] == {"10": 1.0, "100": 1.0}
    write_publication(tmp_path / "one", ["a"], KNOWN[:1])
    assert build(tmp_path / "one", tmp_path / "j", kind="hnsw")["recall"] == {}


def all_rows(vectors: Vectors) -> RowSample:
    sample = RowSample(len(vectors), len(vectors), vectors.shape[1], (0,))
    sample.take(0, vectors)
    return sample


class Shifted:
    """An index that answers with the item after the right one, the first in place of the last."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.ntotal = index.ntotal

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        scores, rows = self.index.search(queries, k)
        return scores, (rows + 1) % self.ntotal


def test_recall_of_wrong_answers_is_counted_by_hand() -> None:
    """Six items on a half circle: the two nearest of each are its neighbours on the circle."""
    angles = np.radians([0, 10, 30, 70, 105, 150])
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    index = faiss.IndexFlatIP(2)
    index.add(circle)
    queries = all_rows(circle)
    blocks = [(0, circle[:4]), (4, circle[4:])]
    assert measure_recall(index, queries, [1, 2], blocks) == {1: 1.0, 2: 1.0}
    # item:             0      1      2      3      4      5
    # two nearest:      1 2    0 2    1 0    4 2    3 5    4 3
    # three found +1:   1 2 3  2 1 3  3 2 1  4 5 3  5 4 0  0 5 4
    # first two others: 1 2    2 3    3 1    4 5    5 0    0 4
    # of them right:    2      1      1      1      1      1     = 7 of 12
    assert neighbours(Shifted(index), queries, 2).tolist() == [[1, 2], [2, 3], [3, 1], [4, 5], [5, 0], [0, 4]]
    assert measure_recall(Shifted(index), queries, [2], blocks) == {2: round(7 / 12, 4)}


def test_recall_of_hnsw_is_high_and_falls_with_a_crippled_graph(path: Path, tmp_path: Path) -> None:
    whole = build(path, tmp_path / "a", kind="hnsw")
    crippled = build(path, tmp_path / "b", kind="hnsw", hnsw_m=2, hnsw_ef_construction=1, hnsw_ef_search=1)
    assert whole["recall"]["10"] > 0.99 and whole["recall"]["100"] > 0.98
    assert crippled["recall"]["10"] < 0.5 < whole["recall"]["10"]


def test_the_search_breadth_is_stored_and_each_k_is_measured_with_its_own(path: Path, tmp_path: Path) -> None:
    """A search for 100 looks further than one for 10: recall@10 must not profit from the other."""
    keys = {"kind": "hnsw", "hnsw_m": 3, "hnsw_ef_search": 1}
    both = build(path, tmp_path / "a", **keys, recall_at=[10, 100])
    alone = build(path, tmp_path / "b", **keys, recall_at=[10])
    wider = build(path, tmp_path / "c", **keys | {"hnsw_ef_search": 200}, recall_at=[10])
    assert both["recall"]["10"] == alone["recall"]["10"] < wider["recall"]["10"] - 0.05
    assert faiss.read_index(str(tmp_path / "c" / INDEX)).hnsw.efSearch == 200


def test_recall_of_ivf_pq_is_high_and_falls_with_one_probe_and_with_short_codes(path: Path, tmp_path: Path) -> None:
    whole = build(path, tmp_path / "a", kind="ivf_pq", pq_bytes=32, num_lists=50, num_probes=16)
    narrow = build(path, tmp_path / "b", kind="ivf_pq", pq_bytes=32, num_lists=50, num_probes=1)
    coarse = build(path, tmp_path / "c", kind="ivf_pq", pq_bytes=4, num_lists=50, num_probes=16)
    assert whole["recall"]["10"] > 0.85
    assert narrow["recall"]["100"] < whole["recall"]["100"] - 0.1
    assert coarse["recall"]["10"] < whole["recall"]["10"] - 0.2
    assert faiss.read_index(str(tmp_path / "a" / INDEX)).nprobe == 16
    assert whole["bytes_per_vector"] < 4 * DIM < build(path, tmp_path / "d", kind="hnsw")["bytes_per_vector"]


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_pq"])
def test_one_thread_and_one_seed_build_the_same_bytes(path: Path, tmp_path: Path, kind: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(path, tmp_path / name, kind=kind, seed=seed)
    assert sha256(tmp_path / "a" / INDEX) == sha256(tmp_path / "b" / INDEX)
    assert (sha256(tmp_path / "a" / INDEX) == sha256(tmp_path / "c" / INDEX)) == (kind == "flat")


@pytest.mark.parametrize("ids", [[f"sku-{row:03d}" for row in range(500)], list(range(10_000, 10_500))])
def test_rows_map_to_ids_in_their_own_type(tmp_path: Path, vectors: Vectors, ids: list[Any]) -> None:
    published = embeddings.open(str(write_publication(tmp_path / "p", ids, vectors[:500])))
    write_index(published, settings(kind="flat"), str(tmp_path / "i"), silent)
    table = pq.read_table(tmp_path / "i" / IDS)
    assert table["row"].to_pylist() == list(range(500))
    assert table["item_id"].to_pylist() == ids
    assert table.schema.field("item_id").type == published.table().schema.field("item_id").type
    found, _ = search(tmp_path / "i", vectors[[3, 499]], 1)
    assert found == [[ids[3]], [ids[499]]]


def test_blocks_smaller_than_the_files_build_the_same(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(path, tmp_path / "a", kind="ivf_pq")
    monkeypatch.setattr(faiss_index, "BLOCK_BYTES", 4 * DIM * 71)
    blockwise = build(path, tmp_path / "b", kind="ivf_pq")
    assert whole["recall"] == blockwise["recall"]
    ids = [pq.read_table(tmp_path / name / IDS) for name in "ab"]
    assert ids[0].equals(ids[1])
    found = [search(tmp_path / name, clustered(20, DIM), 5)[0] for name in "ab"]
    assert found[0] == found[1]


PEAK = """
import sys
from pathlib import Path
from beeray import embeddings
from beeray.config import IndexConfig
from beeray.data import faiss_index

def peak_kib():  # of this process alone, which getrusage is not: it starts with the parent's
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])

published = embeddings.open(sys.argv[1])
faiss_index.BLOCK_BYTES = 1 << 20
settings = IndexConfig(kind="flat", num_queries=10, recall_at=[1], threads=1)
faiss_index.write_index(published, settings, sys.argv[2], lambda *_: None)
print(peak_kib(), "torch" in sys.modules, "ray" in sys.modules)
"""


def peak_bytes(folder: Path, rows: int) -> int:
    """Largest memory of a process that indexes so many vectors of 1 KiB, in files of 4,000."""
    write_publication(folder / "p", list(range(rows)), clustered(rows, 256), num_files=rows // 4000 + 1)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder / "p"), str(folder / "i")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak_kib, torch, ray = done.stdout.split()
    assert (torch, ray) == ("False", "False")
    return int(peak_kib) * 1024


@pytest.mark.slow
def test_memory_grows_by_the_index_alone_and_neither_torch_nor_ray_is_imported(tmp_path: Path) -> None:
    """Both are a little more than a power of two: growing by doubling would hold twice the vectors for a moment."""
    growth = peak_bytes(tmp_path / "large", 136_000) - peak_bytes(tmp_path / "small", 36_000)
    assert 0.8 < growth / (100_000 * 1024) < 1.4  # 2 also with the parquet's vectors in memory beside the index


def test_what_is_left_open_is_derived_from_the_publication() -> None:
    plan = plan_index(settings(kind="ivf_pq"), 1_000_000, 384)
    assert plan.parameters == {"num_lists": 4000, "pq_bytes": 96, "num_probes": 32}
    assert plan.train_rows == 200_000
    small = plan_index(settings(kind="ivf_pq"), 1000, 30)
    assert small.parameters == {"num_lists": 25, "pq_bytes": 6, "num_probes": 25}  # 1000 // 39; 30 / 4 is none
    assert plan_index(settings(kind="ivf_pq"), 1000, 7).parameters["pq_bytes"] == 1
    assert plan_index(settings(kind="flat"), 1, 7).parameters == {}


@pytest.mark.parametrize(
    ("keys", "rows", "expected"),
    [
        ({"pq_bytes": 5}, 1000, ["index.pq_bytes is 5", "divide", "32 dimensions", "1, 2, 4, 8, 16, 32, or null"]),
        ({}, 255, ["index.kind is ivf_pq", "256 rows", "255 are published", "flat or hnsw"]),
        ({"num_lists": 26}, 1000, ["index.num_lists is 26", "39 rows", "there are 1,000", "at most 25, or null"]),
        ({"num_lists": 50, "train_rows": 256}, 9000, ["index.train_rows is 256", "published 9,000", "at most 6"]),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_remedy(keys: dict[str, Any], rows: int, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_index(settings(kind="ivf_pq", **keys), rows, 32)
    assert [piece for piece in expected if piece not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_an_empty_publication_is_refused(tmp_path: Path) -> None:
    write_publication(tmp_path / "p", [], np.empty((0, 4), np.float32))
    with pytest.raises(EmbeddingsError, match="no items"):
        build(tmp_path / "p", tmp_path / "i")


def test_the_record_says_what_it_was_made_from(path: Path, tmp_path: Path) -> None:
    record = build(path, tmp_path / "i", kind="hnsw")
    assert record == json.loads((tmp_path / "i" / INFO).read_text())
    published = embeddings.open(str(path))
    assert record["publication"]["version"] == published.version
    assert record["publication"]["manifest_sha256"] == sha256(Path(published.folder) / "_manifest.json")
    assert record["bytes"] == {name: (tmp_path / "i" / name).stat().st_size for name in (INDEX, IDS)}
    assert record["query_ms"] > 0 and record["num_queries"] == 200


def fail_at(stage: str) -> Any:
    def report(reached: str, done: int, total: int | None) -> None:
        if reached == stage and done:
            raise RuntimeError("half-way")

    return report


@pytest.mark.parametrize("stage", ["training rows", "add", "exact search"])
def test_a_build_that_fails_leaves_nothing_and_an_older_index_as_it_was(path: Path, tmp_path: Path, stage: str) -> None:
    published = embeddings.open(str(path))
    target = tmp_path / "i"
    with pytest.raises(RuntimeError, match="half-way"):
        write_index(published, settings(kind="ivf_pq"), str(target), fail_at(stage))
    assert names(tmp_path) == []
    build(path, target, kind="flat")
    before = sha256(target / INDEX)
    with pytest.raises(RuntimeError, match="half-way"):
        write_index(published, settings(kind="ivf_pq"), str(target), fail_at(stage))
    assert (names(tmp_path), sha256(target / INDEX)) == (["i"], before)


def test_building_again_replaces_the_index_whole(path: Path, tmp_path: Path) -> None:
    build(path, tmp_path / "i", kind="flat")
    assert build(path, tmp_path / "i", kind="hnsw")["kind"] == "hnsw"
    assert names(tmp_path) == ["i"]
    assert names(tmp_path / "i") == sorted([INDEX, IDS, INFO])
    assert isinstance(faiss.read_index(str(tmp_path / "i" / INDEX)), faiss.IndexHNSWFlat)


def test_a_folder_that_is_no_index_is_never_replaced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="is there and is no index"):
        build(path, tmp_path)
    with pytest.raises(ConfigError, match="is there and is no index"):
        build(path, path)
    assert names(tmp_path) == ["precious.txt"]


def test_an_index_that_was_interrupted_while_it_was_put_there_is_made_again(path: Path, tmp_path: Path) -> None:
    """An object store has no rename: its files are copied, and what makes them an index last."""
    build(path, tmp_path / "i", kind="flat")
    (tmp_path / "i" / INFO).unlink()
    assert build(path, tmp_path / "i", kind="flat")["kind"] == "flat"
    (tmp_path / "i" / INFO).unlink()
    (tmp_path / "i" / INDEX).unlink()
    build(path, tmp_path / "i", kind="flat")
    assert names(tmp_path / "i") == sorted([INDEX, IDS, INFO])


def test_files_with_other_rows_than_the_manifest_says_are_refused(path: Path, tmp_path: Path) -> None:
    published = embeddings.open(str(path))
    published.manifest.__dict__["rows"] = NUM_ROWS + 1
    with pytest.raises(EmbeddingsError, match="holds 3,000 rows, the manifest says 3,001"):
        write_index(published, settings(kind="flat"), str(tmp_path / "i"), silent)
    assert names(tmp_path) == []


def test_a_publication_that_is_removed_meanwhile_is_named(tmp_path: Path, vectors: Vectors) -> None:
    published = embeddings.open(str(write_publication(tmp_path / "p", list(range(50)), vectors[:50])))
    Path(published.paths[1]).unlink()
    with pytest.raises(DataError, match="versions"):
        write_index(published, settings(kind="flat"), str(tmp_path / "i"), silent)
    assert names(tmp_path) == ["p"]


@pytest.fixture
def remote() -> Iterator[str]:
    """A folder on a filesystem that only fsspec knows and that has no rename, as on S3."""
    yield "memory://bucket/indexes"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_an_index_is_published_to_any_filesystem(path: Path, tmp_path: Path, remote: str) -> None:
    build(path, tmp_path / "i", kind="hnsw")
    record = build(path, f"{remote}/a", kind="hnsw")
    memory = fsspec.filesystem("memory")
    assert {file.rpartition("/")[2] for file in memory.find("/bucket")} == {INDEX, IDS, INFO}
    assert {file.rpartition("/")[0] for file in memory.find("/bucket")} == {"/bucket/indexes/a"}
    assert memory.cat_file(f"/bucket/indexes/a/{INDEX}") == (tmp_path / "i" / INDEX).read_bytes()
    assert json.loads(memory.cat_file(f"/bucket/indexes/a/{INFO}")) == record


def test_a_build_for_another_filesystem_that_fails_leaves_nothing_there(path: Path, remote: str) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/other", b"x")
    with pytest.raises(RuntimeError, match="half-way"):
        write_index(embeddings.open(str(path)), settings(kind="flat"), f"{remote}/a", fail_at("exact search"))
    assert fsspec.filesystem("memory").find("/bucket") == ["/bucket/other"]


def test_a_sample_is_seeded_has_no_row_twice_and_holds_the_rows_it_names(vectors: Vectors) -> None:
    one, same, other = (RowSample(NUM_ROWS, 100, DIM, seed) for seed in ((1, 0), (1, 0), (1, 1)))
    assert len(np.unique(one.rows)) == 100
    assert (one.rows == same.rows).all() and not (one.rows == other.rows).all()
    for start in range(0, NUM_ROWS, 77):
        one.take(start, vectors[start : start + 77])
    np.testing.assert_array_equal(one.vectors, vectors[one.rows])
    assert len(RowSample(5, 100, DIM, (0,)).rows) == 5
