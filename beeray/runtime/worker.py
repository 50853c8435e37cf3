"""What a Ray Train worker is: its device and threads, what it used; and what scoring runs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import ray.train
import torch
from ray.train.torch import get_device
from torch import Tensor, nn

from beeray.core.encoder import Encoder
from beeray.core.gather import rank, world_size
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.report_sample import ReportSample
from beeray.runtime.scoring import score_splits
from beeray.runtime.task import WorkerTask


def evaluate_worker(task: WorkerTask) -> None:
    """Score one encoder on every split asked for. Every rank runs this."""
    with worker_ready(task) as device:
        encoder = Encoder(task.open_encoder(device), task.config.train.precision)
        store, tokens = Store.open(task.store_path), TokenStore.open(task.tokens_path)
        sample = ReportSample(task.run_dir if task.keep_as else "")
        score(task, encoder, store, tokens, device, "model", keep=partial(sample.keep, task.keep_as))
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
    keep: Callable[[Tensor], None] = lambda catalog: None,
) -> None:
    """Score every split asked for and send the driver this rank's users.

    Args:
        keep: is handed the catalog's embeddings.
    """
    if not task.config.evaluate.splits:
        return
    progress = embedding_progress(task, when)
    scores, timings = score_splits(encode, task.config, store, tokens, device, progress, keep)
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
