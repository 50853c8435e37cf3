"""`beeray.index` as anyone types it: what is written, what is said, and what a mistake or a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from published import clustered, sha256, write_publication

from beeray.config import validate_config

DIM = 16
EARLIER, LATER = "20260101T000000Z-0", "20260102T000000Z-0"
LIMIT_S = 600
TREE: dict[str, Any] = {
    "name": "shop",
    "data": {"source": "goodbooks", "path": "raw"},
    "embed": {"path": "published"},
    "index": {"num_queries": 50, "threads": 1},
}


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "beeray.index", "--config", "shop.yaml", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PWD": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # what interrupts it does not interrupt the tests
    )


def index(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr of `python -m beeray.index --config shop.yaml …`."""
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err.splitlines()


def result(folder: Path, *arguments: str) -> tuple[dict[str, Any], list[str]]:
    code, out, lines = index(folder, *arguments)
    assert code == 0, lines
    assert len(out.splitlines()) == 1
    record: dict[str, Any] = json.loads(out)
    return record, lines


def complaint(folder: Path, *arguments: str, **environment: str) -> str:
    """The one line about a user's mistake."""
    code, out, lines = index(folder, *arguments, **environment)
    assert (code, out) == (2, ""), lines
    assert lines[-1].startswith("beeray index: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1].removeprefix("beeray index: ")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two versions of a publication of text ids, and a config."""
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(TREE), encoding="utf-8")
    for version, rows in ((EARLIER, 300), (LATER, 400)):
        ids = [f"sku-{row}" for row in range(rows)]
        write_publication(tmp_path / "published", ids, clustered(rows, DIM), version=version)
    return tmp_path


def test_the_served_version_is_indexed_beside_the_versions_and_measured(folder: Path) -> None:
    record, lines = result(folder)
    place = folder / "published" / "indexes" / f"{LATER}-hnsw"
    assert record["path"] == str(place)
    assert names(place) == ["ids.parquet", "index.faiss", "index.json"]
    assert (record["kind"], record["rows"], record["dim"]) == ("hnsw", 400, DIM)
    assert record["publication"]["version"] == LATER
    assert record["publication"]["manifest_sha256"] == sha256(
        folder / "published" / "versions" / LATER / "_manifest.json"
    )
    assert record["recall"]["10"] > 0.99
    written = json.loads((place / "index.json").read_text())
    assert {key: record[key] for key in written} == written
    text = "\n".join(lines)
    for said in ("400 items of 16 dimensions (float32)", "built in", "recall@10 ", "bytes a vector", str(place)):
        assert said in text
    assert names(folder / "published") == ["indexes", "latest", "versions"]


def test_an_earlier_version_and_another_kind_have_a_folder_of_their_own(folder: Path) -> None:
    record, _ = result(folder, "--version", EARLIER, "index.kind=flat", "index.recall_at=[1, 5]")
    assert record["rows"] == 300
    assert record["recall"] == {"1": 1.0, "5": 1.0}
    assert names(folder / "published" / "indexes") == [f"{EARLIER}-flat"]


def test_a_path_of_ones_own_is_taken_from_the_folder_where_the_command_is_typed(folder: Path) -> None:
    record, _ = result(folder, "index.kind=ivf_pq", "index.path=elsewhere/books")
    assert record["path"] == str(folder / "elsewhere" / "books")
    assert record["parameters"] == {"num_lists": 10, "pq_bytes": 4, "num_probes": 10}
    assert not (folder / "published" / "indexes").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["embed.path=nothing"], ["nothing: nothing is published there", "run beeray.embed"]),
        (["--version", "20250101T000000Z-0"], ["version '20250101T000000Z-0' is not published", "check the name"]),
        (["index.kind=ivf_pq", "index.pq_bytes=5"], ["index.pq_bytes is 5", "1, 2, 4, 8, 16, or null"]),
        (["index.kind=ivf_pq", "index.num_lists=100"], ["index.num_lists is 100", "give at most 10, or null"]),
        (["index.kind=annoy"], ["index.kind is 'annoy'", "'flat', 'ivf_pq' or 'hnsw'"]),
        (["index.recall_at=[]"], ["index.recall_at is empty", "give at least one k"]),
        (["index.probes=3"], ["unknown key 'index.probes'", "did you mean 'index.num_probes'?"]),
        (["index.path=published"], ["published is there and is no index", "give a path that is free"]),
        (["index.path=/proc/no/such"], ["/proc/no/such"]),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy_and_leaves_nothing(
    folder: Path, arguments: list[str], expected: list[str]
) -> None:
    said = complaint(folder, *arguments)
    assert [piece for piece in expected if piece not in said] == []
    assert names(folder / "published") == ["latest", "versions"]


def test_a_damaged_publication_is_not_indexed(folder: Path) -> None:
    part = folder / "published" / "versions" / LATER / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(bytes(content))
    assert "part-00000.parquet: its SHA-256 is not the manifest's" in complaint(folder)
    assert result(folder, "--version", EARLIER)[0]["rows"] == 300


def test_without_faiss_one_line_says_what_to_install(folder: Path) -> None:
    shadow = folder / "shadow"
    shadow.mkdir()
    (shadow / "faiss.py").write_text("raise ModuleNotFoundError('No module named faiss', name='faiss')")
    said = complaint(folder, PYTHONPATH=os.pathsep.join([str(shadow), str(Path(__file__).resolve().parents[2])]))
    assert said == "faiss is not installed, and an index needs it; pip install 'beeray[index]'"


SLOW = ["index.hnsw_ef_construction=2000", "index.hnsw_m=64"]


def started_build(folder: Path) -> subprocess.Popen[str]:
    """A build that takes half a minute, once it has begun to write."""
    vectors = clustered(20_000, DIM, num_clusters=1, spread=1.0)
    write_publication(folder / "published", list(range(20_000)), vectors, version="20260103T000000Z-0")
    process = start(folder, *SLOW)
    deadline = time.monotonic() + LIMIT_S
    while not list(folder.glob("published/indexes/*.partial-*/ids.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(0.2)
    assert process.poll() is None
    return process


@pytest.mark.long
def test_a_killed_build_leaves_no_index_and_the_next_one_clears_up(folder: Path) -> None:
    process = started_build(folder)
    process.kill()
    process.communicate()
    assert not (folder / "published" / "indexes" / "20260103T000000Z-0-hnsw").exists()
    record, _ = result(folder, "index.hnsw_ef_construction=10")
    assert record["rows"] == 20_000
    assert names(folder / "published" / "indexes") == ["20260103T000000Z-0-hnsw"]


@pytest.mark.long
def test_an_interrupted_build_says_so_and_leaves_nothing(folder: Path) -> None:
    process = started_build(folder)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (130, ""), err
    assert "interrupted; run the same command again" in err
    assert names(folder / "published" / "indexes") == []


def test_the_index_does_not_decide_what_training_computes() -> None:
    other = TREE | {"index": {"kind": "flat", "seed": 7}}
    assert validate_config(TREE).result_digest() == validate_config(other).result_digest()
    assert not [key for key in validate_config(TREE).result_keys() if key.startswith("index")]
