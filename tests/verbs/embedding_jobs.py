"""Nightly jobs in tests: a folder with an encoder and a config, `beeray.embed` in it, and what it published."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlflow
import numpy as np
import pyarrow as pa
import yaml
from mlflow.entities import Run
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tiny_encoder import build_tiny_encoder

from beeray import embed
from beeray.data.embeddings import Embeddings, open_embeddings

PREFIX = "passage: "
SEQ_LENGTH = 24
TEMPLATE = "{title}. {description}"


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The JSON that a command which went well leaves as the only line of stdout."""
        assert self.code == 0, self.err[-3000:]
        assert len(self.out.splitlines()) == 1, self.out
        record: dict[str, Any] = json.loads(self.out)
        return record

    @property
    def complaint(self) -> str:
        """The one line about a user's mistake."""
        assert (self.code, self.out) == (2, ""), self.err[-3000:]
        assert "Traceback" not in self.err
        return self.err.splitlines()[-1]


@dataclass(frozen=True)
class Rows:
    """What a version holds, in ascending order of the ids: vectors as float32 (items, dim), hashes as bytes."""

    ids: list[Any]
    vectors: NDArray[np.float32]
    hashes: list[bytes]


class Jobs:
    """A folder in which `beeray.embed --config nightly.yaml` is typed.

    Args:
        folder: new; gets an encoder and a config whose catalog is `catalog` and whose publication is `published`.
        sections: put over the config's sections.
    """

    def __init__(self, folder: Path, sections: dict[str, dict[str, Any]] | None = None) -> None:
        self.folder = folder
        self.encoder = build_tiny_encoder(folder / "encoder")
        tree: dict[str, Any] = {
            "name": "nightly",
            "data": {"source": "tables", "catalog": {"path": "catalog", "template": TEMPLATE}},
            "encoder": {"name": "encoder", "max_seq_length": SEQ_LENGTH, "prefix": PREFIX},
            "embed": {"model": "untouched", "path": "published", "threads_per_actor": 1},
            "cluster": {"object_store_mib": 100},
        }
        for name, section in (sections or {}).items():
            tree[name] = {**tree.get(name, {}), **section}
        self.max_seq_length = int(tree["encoder"]["max_seq_length"])
        (folder / "nightly.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

    def embed(self, *arguments: str) -> Ended:
        """`beeray.embed` in this process, with the Ray that it has: it costs no start of Python and Ray."""
        out, err = io.StringIO(), io.StringIO()
        command = ["beeray.embed", "--config", "nightly.yaml", "--verbose", *arguments]
        with (
            contextlib.chdir(self.folder),
            patch.object(sys, "argv", command),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = embed.main()
        return Ended(code, without_rays_lines(out.getvalue()), without_rays_lines(err.getvalue()))

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """`python -m beeray.embed` in a process of its own.

        Args:
            environment: all variables of the process; those of this one unless given.
        """
        return subprocess.Popen(
            [sys.executable, "-m", "beeray.embed", "--config", "nightly.yaml", *arguments],
            cwd=self.folder,
            env={**(environment or os.environ), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PWD": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def published(self, name: str = "published", version: str | None = None) -> Embeddings:
        """What is published in a folder of this one, every byte verified."""
        return open_embeddings(str(self.folder / name), version)

    def tracked(self, version: str) -> list[Run]:
        """The MLflow runs of a version."""
        experiment = self.client.get_experiment_by_name("beeray")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id], f"tags.version = '{version}'"))

    @property
    def client(self) -> mlflow.MlflowClient:
        """Reads what commands tracked."""
        return mlflow.MlflowClient(f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}")

    def encode(self, texts: list[str], **settings: Any) -> NDArray[np.float32]:
        """What sentence-transformers itself makes of some texts with the config's encoder.

        Args:
            settings: `encoder`, `max_seq_length`, `prompt` and `truncate_dim` in place of the config's; the rest
                goes to `encode`.
        """
        encoder, prompt = settings.pop("encoder", self.encoder), settings.pop("prompt", PREFIX)
        model = SentenceTransformer(str(encoder), device="cpu", truncate_dim=settings.pop("truncate_dim", None))
        model.max_seq_length = settings.pop("max_seq_length", self.max_seq_length)
        vectors: NDArray[np.float32] = model.encode(texts, prompt=prompt, batch_size=64, **settings)
        return vectors


def without_rays_lines(text: str) -> str:
    """What a command printed in this process, less what Ray's workers and raylet printed there meanwhile."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(("\x1b[", "(")))


def rows_of(published: Embeddings) -> Rows:
    """All rows of a version."""
    table = published.table().sort_by("item_id")
    return Rows(table["item_id"].to_pylist(), published.vectors(table), table["content_hash"].to_pylist())


def stored(published: Embeddings) -> dict[Any, bytes]:
    """The bytes of every vector as they stand in the files, by id."""
    table = published.table()
    numbers = published.manifest.format.numbers(table["embedding"])
    return {item_id: row.tobytes() for item_id, row in zip(table["item_id"].to_pylist(), numbers, strict=True)}


def files_of(published: Embeddings) -> list[tuple[str, int, str]]:
    """Name, rows and checksum of every file."""
    return [(file.path, file.rows, file.sha256) for file in published.manifest.files]


def texts_of(catalog: pa.Table, template: str = TEMPLATE) -> dict[Any, str]:
    """The text of every item of a catalog without bad rows, by id in ascending order."""
    texts: dict[Any, str] = {}
    for row in catalog.sort_by("item_id").to_pylist():
        texts[row["item_id"]] = template.format(title=row["title"] or "", description=row["description"] or "").strip()
    return texts


def hash_of(text: str) -> bytes:
    """The content hash of a text, as published."""
    return hashlib.sha256(text.encode()).digest()[:16]


def furthest(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Largest difference of two sets of vectors in any number."""
    assert one.shape == other.shape
    return float(np.abs(one - other).max())
