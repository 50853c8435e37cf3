"""What `beeray.index` does: a FAISS index of published embeddings, and how good it is.

Starts no Ray and imports no torch: the work is one process reading files.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from beeray.config import Config
from beeray.config.paths import placed
from beeray.console import Console, StageReporter
from beeray.data.embeddings import INDEXES
from beeray.data.faiss_index import load_faiss, write_index
from beeray.data.storage import join, resolve, storage_options
from beeray.embeddings import open as open_embeddings
from beeray.errors import ConfigError
from beeray.runtime.job_folder import check_outlives_job


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Index one version of the config's publication; leaves `<embed path>/indexes/<version>-<kind>/`.

    Of several domains each has a publication and an index of its own.
    """
    check_outlives_job(config, "embed.path", *(["index.path"] if config.index.path else []))
    configs = config.by_domain()
    if None in configs:
        return _index(config, arguments, console)
    if len(configs) > 1 and (arguments.version or config.index.path):
        named = "--version" if arguments.version else "index.path"
        raise ConfigError(f"{named} is of one publication, and each domain has its own: choose one with embed.domains")
    return {"domains": {name: _index(one, arguments, console) for name, one in configs.items()}}


def _index(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    started = time.monotonic()
    load_faiss()
    settings = config.index
    with storage_options(config.storage):
        published = open_embeddings(config.embeddings_path, arguments.version)
        path = index_path(config, published.version)
        console.line(
            f"index {settings.kind}, {settings.metric}: {published.num_rows:,} items of {published.dim} dimensions "
            f"({published.manifest.format.dtype}), version {published.version} of {published.path}"
        )
        with StageReporter(console) as reporter:
            record = write_index(published, settings, path, reporter)
    for line in headline(record):
        console.line(line)
    console.line(f"index written: {path}")
    return {"path": path, **record, "seconds": round(time.monotonic() - started, 1)}


def index_path(config: Config, version: str) -> str:
    """Absolute path or URI of the index of a version."""
    path = config.index.path or join(config.embeddings_path, INDEXES, f"{version}-{config.index.kind}")
    if "://" not in path:
        resolve(path)  # refuses what was mistyped
    return placed(path)


def headline(record: dict[str, Any]) -> list[str]:
    """The lines a person reads: build, recall, size."""
    parameters = ", ".join(f"{key} {value:,}" for key, value in record["parameters"].items())
    recall = ", ".join(f"recall@{k} {value:.3f}" for k, value in record["recall"].items()) or "one item: no neighbours"
    size = sum(record["bytes"].values()) / 1e6
    return [
        f"built in {record['build_s']:.1f} s{f' with {parameters}' if parameters else ''}",
        f"{recall} against exact search of {record['num_queries']:,} items; "
        f"{record['query_ms']:.3f} ms a query on one thread (median)",
        f"{size:,.1f} MB, {record['bytes_per_vector']:,.0f} bytes a vector",
    ]
