"""What a Ray Train worker is: its task, its device and threads, what it tells the driver; and what scoring runs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device
from sentence_transformers import SentenceTransformer
from torch import nn

from beeray.config import Config
from beeray.core.encoder import Encoder, load_encoder
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.scoring import score_splits

MUST_ARRIVE = ("scores", "failed", "worker", "profile")


@dataclass(frozen=True)
class WorkerTask:
    """What the driver hands every worker.

    Attributes:
        config: the resolved config.
        store_path: the prepared store.
        tokens_path: the token store of this encoder.
        num_users: training users of one rank in an epoch.
        run_dir: absolute folder of the run, which every node can write to; empty where nothing is trained.
        monitor: actor that takes progress events.
        model: the encoder to open: a hub name, `package:…`, or a folder as an absolute path.
    """

    config: Config
    store_path: str
    tokens_path: str
    monitor: Any
    model: str
    num_users: int = 0
    run_dir: str = ""

    def send(self, kind: str, **event: Any) -> None:
        """Tell the driver something; waits only for what must not be lost."""
        sent = self.monitor.send.remote({"kind": kind, **event})
        if kind in MUST_ARRIVE:
            ray.get(sent)

    def open_encoder(self, device: torch.device | str = "cpu") -> SentenceTransformer:
        """The encoder before training."""
        encoder = self.config.encoder
        return load_encoder(
            self.model,
            max_seq_length=self.config.served_seq_length,
            prefix=encoder.prefix,
            dropout=encoder.dropout,
            attention=encoder.attention,
            device=device,
        )


def evaluate_worker(task: WorkerTask) -> None:
    """Score one encoder on every split asked for. Every rank runs this."""
    with worker_ready(task) as device:
        encoder = Encoder(task.open_encoder(device), task.config.train.precision)
        store, tokens = Store.open(task.store_path), TokenStore.open(task.tokens_path)
        score(task, encoder, store, tokens, device, "model")
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
    task: WorkerTask, encode: nn.Module, store: Store, tokens: TokenStore, device: torch.device, when: str
) -> None:
    """Score every split asked for and send the driver this rank's users."""
    if not task.config.evaluate.splits:
        return
    rank = ray.train.get_context().get_world_rank()
    told = {"items": 0}

    def progress(num_items: int) -> None:
        told["items"] += num_items
        if rank == 0:
            task.send("embed", when=when, items=told["items"] * ray.train.get_context().get_world_size())

    scores, timings = score_splits(encode, task.config, store, tokens, device, progress)
    task.send("scores", when=when, rank=rank, scores=scores, timings=timings)
