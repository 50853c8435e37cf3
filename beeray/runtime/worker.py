"""What a Ray Train worker is: its device and threads, what it used; and what scoring runs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray.train
import torch
from ray.train.torch import get_device
from torch import nn

from beeray.core.encoder import Encoder
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
        score(task, encoder, store, tokens, device, "model", keep_as=task.keep_as)
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
    keep_as: str = "",
) -> None:
    """Score every split asked for and send the driver this rank's users.

    Args:
        keep_as: under which name the report's items are kept, if any.
    """
    if not task.config.evaluate.splits:
        return
    rank = ray.train.get_context().get_world_rank()
    told = {"items": 0}

    def progress(num_items: int) -> None:
        told["items"] += num_items
        if rank == 0:
            task.send("embed", when=when, items=told["items"] * ray.train.get_context().get_world_size())

    sample = ReportSample(task.run_dir)
    scores, timings = score_splits(
        encode, task.config, store, tokens, device, progress, keep=lambda catalog: sample.keep(keep_as, catalog)
    )
    task.send("scores", when=when, rank=rank, scores=scores, timings=timings)
