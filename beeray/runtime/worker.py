"""What a Ray Train worker is: its device and threads, what it used; and what scoring runs."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import ray.train
import torch
from numpy.typing import NDArray
from ray.train.torch import get_device
from torch import Tensor, nn

from beeray.core.encoder import Encoder
from beeray.core.gather import rank, sum_over_ranks, world_size
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.errors import DivergedError, NotFiniteError
from beeray.runtime.cores import keep_deepspeed_on_cpu, share_cores
from beeray.runtime.original import neighbours_kept, sampled_neighbours
from beeray.runtime.report_sample import ReportSample
from beeray.runtime.scoring import embed_catalog, score_splits
from beeray.runtime.shared_folder import PATIENCE_S, what_is_not_shared
from beeray.runtime.task import WorkerTask


def evaluate_worker(task: WorkerTask) -> None:
    """Score one encoder on every split asked for. Every rank runs this."""
    with worker_ready(task) as device:
        encoder = Encoder(task.open_encoder(device), task.config.train.precision)
        store, tokens = task.open_store(), TokenStore.open(task.tokens_path)
        original = None
        if task.original:
            theirs = TokenStore.open(task.original_tokens_path)
            opened = Encoder(task.open_original(device), task.config.train.precision)
            progress = embedding_progress(task, "original")
            table = embed_catalog(opened, task.config, store, theirs, device, progress, whose=task.original)
            original = sampled_neighbours(table, task.config)
            del opened, table
        sample = ReportSample(task.run_dir if task.keep_as else "")
        keep = partial(sample.keep, task.keep_as) if sample.items is not None else None
        score(task, encoder, store, tokens, device, "model", keep=keep, original=original)
        ray.train.report({})


@contextmanager
def worker_ready(task: WorkerTask) -> Iterator[torch.device]:
    """Threads and device of this worker; tells the driver at the end what the worker used.

    What all ranks raise at once, and would again on every retry, is told the driver, too, and is the end.
    """
    context = ray.train.get_context()
    cluster = task.config.cluster
    task.send("ready", rank=context.get_world_rank(), at=time.time())
    if cluster.use_gpu:
        device = get_device()
        torch.cuda.set_device(device)
    else:
        keep_deepspeed_on_cpu()
        device = torch.device("cpu")
        share_cores(cluster.threads_per_worker, context.get_local_world_size())
    try:
        yield device
    except (DivergedError, NotFiniteError) as error:
        if context.get_world_rank() == 0:
            task.send("failed", message=str(error), diverged=isinstance(error, DivergedError))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    task.send(
        "worker",
        rank=context.get_world_rank(),
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_memory_bytes=usage.ru_maxrss * 1024,
        peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if cluster.use_gpu else 0,
    )


def folder_is_shared(task: WorkerTask, device: torch.device, patience_s: float = PATIENCE_S) -> bool:
    """Whether every rank sees the driver's run folder; the driver is told who does not. Every rank must call."""
    trouble = what_is_not_shared(task.config.runs_dir, Path(task.run_dir), task.marker, patience_s)
    if trouble:
        task.send("refused", message=trouble)
    return not sum_over_ranks([1.0 if trouble else 0.0], device)[0]


def score(
    task: WorkerTask,
    encode: nn.Module,
    store: Store,
    tokens: TokenStore,
    device: torch.device,
    when: str,
    *,
    keep: Callable[[Tensor], None] | None = None,
    embeddings: Tensor | None = None,
    embed_s: float = 0.0,
    original: NDArray[np.int32] | None = None,
) -> None:
    """Score every split asked for and send the driver this rank's users.

    Args:
        keep: is handed the whole catalog's embeddings, also where not all domains are scored.
        embeddings: of the whole catalog, row-normalised, if they are there already.
        embed_s: seconds that those took.
        original: neighbours of the sampled items before training; given, the driver is told how many are kept.
    """
    if not task.config.evaluate.splits and original is None:
        return

    def take(catalog: Tensor) -> None:
        if keep is not None:
            keep(catalog)
        if original is not None:
            task.send("neighbours", rank=rank(), kept=neighbours_kept(original, catalog, task.config))

    scores, timings = score_splits(
        encode,
        task.config,
        store,
        tokens,
        device,
        embedding_progress(task, when),
        take,
        embeddings=embeddings,
        embed_s=embed_s,
        old_items=task.known_items(),
        whole=original is not None or keep is not None,
    )
    task.send("scores", when=when, rank=rank(), scores=scores, timings=timings)


def embedding_progress(task: WorkerTask, when: str) -> Callable[[int], None]:
    """Takes numbers of items embedded here, and has rank 0 tell the driver about how many all ranks have."""
    told = 0

    def progress(num_items: int) -> None:
        nonlocal told
        told += num_items
        if rank() == 0:
            task.send("embed", when=when, items=told * world_size())

    return progress
