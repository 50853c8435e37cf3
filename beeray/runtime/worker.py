"""What a Ray Train worker is: its device and threads, what it used; and what scoring runs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import ray.train
import torch
from numpy.typing import NDArray
from ray.train.torch import get_device
from torch import Tensor, nn

from beeray.core.encoder import Encoder
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.original import neighbours_kept, sampled_neighbours
from beeray.runtime.scoring import embed_catalog, score_splits
from beeray.runtime.task import WorkerTask


def evaluate_worker(task: WorkerTask) -> None:
    """Score one encoder on every split asked for. Every rank runs this."""
    with worker_ready(task) as device:
        encoder = Encoder(task.open_encoder(device), task.config.train.precision)
        store, tokens = Store.open(task.store_path), TokenStore.open(task.tokens_path)
        original = None
        if task.original:
            theirs = TokenStore.open(task.original_tokens_path)
            opened = Encoder(task.open_encoder(device, task.original), task.config.train.precision)
            table = embed_catalog(opened, task.config, theirs, device, embedding_progress(task, "original"))
            original = sampled_neighbours(table, task.config)
            del opened, table
        score(task, encoder, store, tokens, device, "model", original=original)
        ray.train.report({})


@contextmanager
def worker_ready(task: WorkerTask) -> Iterator[torch.device]:
    """Threads and device of this worker; tells the driver at the end what the worker used."""
    context = ray.train.get_context()
    cluster = task.config.cluster
    task.send("ready", at=time.time())
    if cluster.use_gpu:
        device = get_device()
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported: it looks for CUDA's compiler otherwise
        device = torch.device("cpu")
        cores = os.cpu_count() or 1
        torch.set_num_threads(cluster.threads_per_worker or max(1, cores // context.get_local_world_size()))
    yield device
    usage = resource.getrusage(resource.RUSAGE_SELF)
    task.send(
        "worker",
        rank=context.get_world_rank(),
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_memory_bytes=usage.ru_maxrss * 1024,
        peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if cluster.use_gpu else 0,
    )


def score(
    task: WorkerTask,
    encode: nn.Module,
    store: Store,
    tokens: TokenStore,
    device: torch.device,
    when: str,
    *,
    embeddings: Tensor | None = None,
    original: NDArray[np.int32] | None = None,
) -> None:
    """Score every split asked for and send the driver this rank's users.

    Args:
        embeddings: of the catalog, row-normalised, if they are there already.
        original: neighbours of the sampled items before training; given, the driver is told how many are kept.
    """
    if not task.config.evaluate.splits and original is None:
        return
    rank = ray.train.get_context().get_world_rank()

    def compare(table: Tensor) -> None:
        if original is not None:
            task.send("neighbours", rank=rank, kept=neighbours_kept(original, table, task.config))

    old_items = np.load(task.old_items) if task.old_items else None
    scores, timings = score_splits(
        encode,
        task.config,
        store,
        tokens,
        device,
        embedding_progress(task, when),
        old_items=old_items,
        embeddings=embeddings,
        embedded=compare,
    )
    task.send("scores", when=when, rank=rank, scores=scores, timings=timings)


def embedding_progress(task: WorkerTask, when: str) -> Callable[[int], None]:
    """Tells the driver, from rank 0, about how many items all ranks have embedded."""
    context = ray.train.get_context()
    told = {"items": 0}

    def progress(num_items: int) -> None:
        told["items"] += num_items
        if context.get_world_rank() == 0:
            task.send("embed", when=when, items=told["items"] * context.get_world_size())

    return progress
