"""What `beeray.embed` does: a catalog → published embeddings, encoding only what changed."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from beeray.config import ClusterConfig, Config
from beeray.config.credentials import redact_uri
from beeray.console import Console
from beeray.core.encoder_files import encoder_source
from beeray.data.domains import told_of
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.embeddings import LATEST, Embeddings, open_embeddings
from beeray.data.lease import Lease, leased
from beeray.data.manifest import Manifest
from beeray.data.places import lies_inside
from beeray.data.publishing import JobFolder, check_place, pointed_version, pointer_digest
from beeray.data.sources import open_catalog
from beeray.data.storage import exists, is_local, join, resolve, storage_errors, storage_options
from beeray.data.tokens import bare_tokenizer
from beeray.errors import ConfigError, EmbeddingsError, RunError
from beeray.inputs import located_encoder, open_encoder
from beeray.runtime.embedder import EmbedderTask
from beeray.runtime.embedding_job import EmbeddingJob
from beeray.runtime.embedding_plan import JobPlan, full_run_reasons, layout_of, new_state
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.locks import locked_file
from beeray.runtime.nights import Nights
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.session import check_placement, placeable_actors, ray_session
from beeray.runtime.tracking import Tracker
from beeray.runtime.warm_start import check_model_prefix
from beeray.verbs.evaluate import UNTOUCHED

TOKEN_BUDGET = {"fp32": 2048, "bf16": 4096, "gpu": 65_536}
"""Padded tokens of one call of the encoder unless `embed.token_budget` says otherwise: what a CPU's caches hold
at either precision (with 8,192 tokens MiniLM is a fifth slower), what fills a GPU."""


KEPT_RUN_DIRS = 60


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Embed a catalog and publish it; returns what was published.

    Of several domains each has a publication of its own, `<embed path>/<domain>`, in which ids are what they are.
    """
    check_outlives_job(config, "runs_dir", "embed.path")
    configs = config.by_domain()
    if None in configs:
        return _embed(config, arguments, console)
    records: dict[str, Any] = {}
    for name, one in configs.items():
        with told_of(name):
            records[str(name)] = _embed(one, arguments, console)
    return {"domains": records}


def _embed(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    started = time.monotonic()
    with storage_options(config.storage), publishing_alone(config, console) as lease:
        check_place(config.embeddings_path)
        plan, embedder, tokenizer = plan_job(config, arguments.model, console)
        unchanged = unchanged_publication(plan)
        if unchanged is not None:
            console.line(f"up to date: {unchanged.version} was made from this catalog by this encoder")
            return _record(config, unchanged.manifest, {}, started, published=False)
        digest = plan.digest()
        folder = JobFolder(config.embeddings_path, digest)
        unfinished = folder.unfinished()
        with Tracker(config, _run_dir(config, digest)) as tracker, ray_session(config.cluster, config.storage):
            tracker.check()
            embedder = dataclasses.replace(embedder, num_actors=config.embed.num_actors or placeable_actors(config))
            needs = actor_needs(config, embedder.num_actors)
            check_placement(needs, keys=("embed.num_actors", "embed.cpus_per_actor"))
            state = folder.state() or new_state(config, plan, digest, unfinished, embedder.num_actors)
            job = EmbeddingJob(config, plan, embedder, tokenizer, console, tracker, folder, state, unfinished, lease)
            manifest = job.run()
            record = _record(config, manifest, job.summary, started, published=True)
            _track(tracker, manifest, record)
    for line in _headline(manifest):
        console.line(line)
    if tracker.trouble:
        console.line(f"warning: {tracker.trouble}")
    return {**record, "mlflow_run": tracker.run_id}


def _run_dir(config: Config, digest: str) -> Path:
    """Folder that keeps the id of a job's MLflow run; those of the last weeks' jobs stay."""
    folder = config.run_dir / "embed"
    with storage_errors(str(folder)):
        (folder / digest).mkdir(parents=True, exist_ok=True)
        others = [one for one in folder.iterdir() if one.name != digest]  # which may be dated after this one
        for old in sorted(others, key=lambda one: one.stat().st_mtime)[: 1 - KEPT_RUN_DIRS]:
            shutil.rmtree(old, ignore_errors=True)
    return folder / digest


def plan_job(config: Config, asked: str | None, console: Console) -> tuple[JobPlan, EmbedderTask, str]:
    """What is computed from what: opens the encoder, the catalog and the current publication.

    Returns:
        the plan, what actors load, and the tokenizer as JSON.
    """
    from beeray.core.encoder import embedding_dim  # both import torch
    from beeray.core.fingerprint import model_fingerprint

    name = published_model(config, asked or config.embed.model)
    check_model_prefix(config, name, f"embed.model {name!r}")
    encoder = config.encoder
    model = open_encoder(config, name, config.published_seq_length)
    tokenizer = bare_tokenizer(model.tokenizer, f"encoder {name!r}")
    dim = embedding_dim(model)
    embed = config.embed
    if embed.dims is not None and embed.dims > dim:
        raise ConfigError(f"embed.dims is {embed.dims}: the encoder has {dim} dimensions; lower it, or leave it out")
    form = EmbeddingFormat(embed.dtype, embed.dims or dim, embed.normalize)
    identity = {"name": name, "fingerprint": model_fingerprint(model)}
    catalog, template = open_catalog(config.data, embed.catalog, by_time=config.split.kind == "time")
    catalog.check()
    refuse_reading_itself(config, catalog.source)
    encoding = {
        "template": template,
        "prefix": encoder.prefix,
        "max_seq_length": config.published_seq_length,
        "precision": embed.precision,
        "dtype": embed.dtype,
        "dims": form.dim,
        "normalize": embed.normalize,
    }
    follows, pointed = pointer_digest(config.embeddings_path), pointed_version(config.embeddings_path)
    previous, missing = current_publication(config)
    reasons = full_run_reasons(previous, identity, encoding, missing)
    if not embed.incremental:
        reasons.append("embed.incremental is false")
    console.line(f"embed {config.name}: {name} ({identity['fingerprint']}) → {config.embeddings_path}")
    if reasons:
        console.line(f"full run: {'; '.join(reasons)}")
    else:
        assert previous is not None
        console.line(f"incremental: {previous.version} has {previous.num_rows:,} items of the same encoder")
    where = redact_uri(catalog.source) if isinstance(catalog.source, str) else "generated"
    source = {"path": where, "fingerprint": catalog.fingerprint()}
    layout = layout_of(embed)
    plan = JobPlan(identity, encoding, catalog, source, template, previous, reasons, form, layout, pointed, follows)
    return plan, embedder_task(config, identity, form), tokenizer


def embedder_task(config: Config, identity: dict[str, str], form: EmbeddingFormat) -> EmbedderTask:
    """What an actor loads and how it computes.

    Args:
        identity: `name` and `fingerprint` of the encoder.
    """
    embed, encoder, use_gpu = config.embed, config.encoder, config.cluster.use_gpu
    return EmbedderTask(
        model=identity["name"],
        fingerprint=identity["fingerprint"],
        max_seq_length=config.published_seq_length,
        prefix=encoder.prefix,
        attention=encoder.attention,
        precision=embed.precision,
        token_budget=embed.token_budget or TOKEN_BUDGET["gpu" if use_gpu else embed.precision],
        use_gpu=use_gpu,
        num_actors=embed.num_actors or 1,
        threads=embed.threads_per_actor,
        format=form,
        trust_remote_code=encoder.trust_remote_code,
        revision=encoder.revision_of(identity["name"]),
    )


def refuse_reading_itself(config: Config, source: Any) -> None:
    """Refuse to publish into the folder that the catalog is read from: the next night would read it as catalog.

    Raises:
        ConfigError: the one is inside the other.
    """
    if not isinstance(source, str):
        return
    if lies_inside(config.embeddings_path, source):
        raise ConfigError(
            f"embed.path {config.embeddings_path!r} lies inside the catalog {redact_uri(source)!r}, which is read "
            "with it the next night; publish beside it, or name the catalog's files with a glob"
        )


def published_model(config: Config, asked: str | None) -> str:
    """Name of the encoder as any worker understands it.

    Args:
        asked: a folder or hub name; `untouched` for the config's own encoder; None for what the run trained, or, where
            nightly training has published models, for the last of them.

    Raises:
        RunError: the run has no model yet, or the night's is gone.
    """
    if asked == UNTOUCHED:
        return located_encoder(config.encoder.name)
    if asked is not None:
        return located_encoder(encoder_source(asked))
    folder = RunFolder(config)
    model = Nights(config).published_model()
    if model is not None:
        if not model.is_dir():
            raise RunError(
                f"run {config.name!r}: {model}, the last model that nightly training published, is gone; bring it "
                f"back, or give embed.model=PATH ({folder.model} is what the run itself trained)"
            )
        return str(model)
    if not folder.model.is_dir():
        raise RunError(
            f"run {config.name!r}: {folder.model} is not there, so the run is not finished; train it, or give "
            "embed.model=PATH (embed.model=untouched for the encoder before training)"
        )
    return str(folder.model)


def current_publication(config: Config) -> tuple[Embeddings | None, str]:
    """What is published now, or None and why: a damaged publication is passed over, since the night must go on."""
    path = config.embeddings_path
    if not exists(join(path, LATEST)):
        return None, "nothing is published yet"
    try:
        return open_embeddings(path, verify="sizes"), ""
    except EmbeddingsError as error:
        return None, f"the current publication is damaged ({error})"


@contextmanager
def publishing_alone(config: Config, console: Console) -> Iterator[Lease | None]:
    """Keep other jobs away from a publication until the context ends, whatever they are called.

    By a lock on a disk. On an object store by a lease, which the context gives, since it may be lost; there a lock only
    spares commands of one user and machine the watching. A folder that the lock made, and nothing came into, goes.
    """
    path = config.embeddings_path
    local = is_local(path)
    folder = Path(resolve(path)[1] if local else tempfile.gettempdir())
    name = ".lock" if local else f"beeray-embed-{os.getuid()}-{hashlib.sha256(path.encode()).hexdigest()[:16]}.lock"
    lock, was_there = folder / name, folder.exists()
    try:
        with (
            locked_file(lock, f"{path} is being worked on by another command", "wait for it, or stop it"),
            nullcontext() if local else leased(path, console.line) as lease,
        ):
            yield lease
    finally:
        if not was_there and folder.is_dir() and [one.name for one in folder.iterdir()] == [name]:
            lock.unlink()
            folder.rmdir()


def actor_needs(config: Config, num_actors: int) -> ClusterConfig:
    """What the encoder actors ask of the cluster, in the words of workers."""
    embed = config.embed
    asked = {
        "num_workers": num_actors,
        "cpus_per_worker": embed.cpus_per_actor,
        "gpus_per_worker": embed.gpus_per_actor,
    }
    return config.cluster.model_copy(update=asked)


def unchanged_publication(plan: JobPlan) -> Embeddings | None:
    """The current publication, if this job would publish the same again.

    The same model elsewhere is published again, with all vectors reused: a manifest names where the model is.
    """
    previous = plan.previous
    if previous is None or plan.full_run or previous.manifest.catalog != plan.catalog_source:
        return None
    if previous.manifest.model["name"] != plan.model["name"]:
        return None
    layout = previous.manifest.layout
    if any(layout.get(key) != plan.layout[key] for key in ("max_text_chars", "reading_rules")):  # other rows or ids
        return None
    return previous


def _record(
    config: Config, manifest: Manifest, summary: dict[str, float], started: float, *, published: bool
) -> dict[str, Any]:
    return {
        "path": config.embeddings_path,
        "version": manifest.version,
        "published": published,
        "rows": manifest.rows,
        "counts": manifest.counts,
        "errors": manifest.errors,
        "bytes": sum(file.bytes for file in manifest.files),
        "files": len(manifest.files),
        "model": manifest.model,
        "full_run": manifest.full_run,
        "drift": manifest.drift,
        **{name: round(value, 3) for name, value in summary.items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def _track(tracker: Tracker, manifest: Manifest, record: dict[str, Any]) -> None:
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "published"}
    drift = {f"drift_{name}": value for name, value in (manifest.drift or {}).items() if value is not None}
    tracker.log_metrics({**numbers, **drift})
    tracker.log_tags(
        {
            "version": manifest.version,
            "model_fingerprint": manifest.model["fingerprint"],
            "catalog_fingerprint": manifest.catalog["fingerprint"],
            "previous": manifest.previous or "none",
            "full_run": "; ".join(manifest.full_run) or "no",
        }
    )
    tracker.log_dict(json.loads(manifest.to_json()), "manifest.json")


def _headline(manifest: Manifest) -> list[str]:
    counts = manifest.counts
    size = sum(file.bytes for file in manifest.files) / 2**20
    recovered = f", {counts['recovered']:,} recovered from a stopped job" if counts["recovered"] else ""
    lines = [
        f"published {manifest.version}: {manifest.rows:,} items ({counts['encoded']:,} encoded, "
        f"{counts['reused']:,} reused{recovered}, {counts['deleted']:,} deleted), {size:,.1f} MiB in "
        f"{len(manifest.files)} files"
    ]
    if manifest.errors:
        refused = ", ".join(f"{reason} {number:,}" for reason, number in manifest.errors.items())
        lines.append(f"refused {counts['errors']:,} of {counts['read']:,} rows ({refused}): see errors/ of the version")
    drift = manifest.drift
    if drift is not None:
        measured = []
        if drift["cosine_median"] is not None:
            measured.append(f"cosine median {drift['cosine_median']:.4f}, p1 {drift['cosine_p1']:.4f}")
        if drift["neighbours_kept"] is not None:
            measured.append(f"neighbours kept {drift['neighbours_kept']:.1%}")
        if measured:
            lines.append(f"drift over {drift['rows']:,} unchanged items: {', '.join(measured)}")
    return lines
