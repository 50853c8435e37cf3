"""Baselines of an encoder that is not trained: as it is, and with a head trained alone behind it.

The catalog is encoded once for both. The head is trained under the loss of training, on what training may see
(`core.head`, `runtime.head_start`), so its figure is what fine-tuning the encoder itself must beat.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray.train
import torch
from torch import Tensor

from beeray.core.elsa import normalize_rows_in_place
from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder
from beeray.core.gather import rank, world_size
from beeray.core.head import Head, append_head, train_head, whiten
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.head_start import head_items, head_settings, training_users
from beeray.runtime.scoring import score_split, summarise_exposure
from beeray.runtime.task import WorkerTask
from beeray.runtime.worker import worker_ready

ROWS_AT_ONCE = 16_384
UNTOUCHED, FROZEN_HEAD = "untouched", "frozen_head"


def frozen_worker(task: WorkerTask) -> None:
    """Score what `baselines.which` names of the two. Every rank runs this."""
    with worker_ready(task) as device:
        store, which = Store.open(task.store_path), task.config.baselines.which
        encoder = Encoder(task.open_encoder(device), task.config.train.precision).eval()
        started = time.perf_counter()
        features = _features(task, encoder, device)
        embed_s = time.perf_counter() - started
        if UNTOUCHED in which:
            _score(task, store, features.clone(), UNTOUCHED, {"embed_s": embed_s})
        if FROZEN_HEAD in which:
            started = time.perf_counter()
            _put_through_head(task, store, encoder, features)
            timings = {"embed_s": embed_s, "fit_s": time.perf_counter() - started}
            _score(task, store, features, FROZEN_HEAD, timings)
        ray.train.report({})


def _features(task: WorkerTask, encoder: Encoder, device: torch.device) -> Tensor:
    tokens = TokenStore.open(task.tokens_path)
    told = 0

    def progress(num_items: int) -> None:
        nonlocal told
        told += num_items
        if rank() == 0:
            task.send("embed", when=UNTOUCHED, items=told * world_size())

    return embed_items(
        encoder,
        tokens,
        np.arange(tokens.num_items, dtype=np.int32),
        max_seq_length=task.config.served_seq_length,
        token_budget=task.config.train.micro_batch_tokens(use_gpu=device.type == "cuda"),
        device=device,
        shared=True,
        progress=progress,
    )


def _put_through_head(task: WorkerTask, store: Store, encoder: Encoder, features: Tensor) -> None:
    """Train the head and replace the features by what it makes of them, in place. Collective."""
    config = task.config
    settings = config.baselines.frozen_head
    items = head_items(store, config)
    rows = features[torch.from_numpy(items).long().to(features.device)]
    append_head(encoder.model, settings.units)
    head = Head(encoder.model)
    if settings.whiten:
        whiten(head, rows)

    def progress(step: int, loss: float) -> None:
        if rank() == 0:
            task.send("head", step=step, num_steps=settings.steps, loss=loss)

    users = training_users(store, config, items)
    if users.num_users and settings.steps:
        train_head(head, rows, users, head_settings(settings, config.seed), progress)
    head.eval()
    with torch.no_grad():
        for block in features.split(ROWS_AT_ONCE):
            block.copy_(head(block))


def _score(task: WorkerTask, store: Store, embeddings: Tensor, when: str, timings: dict[str, Any]) -> None:
    started = time.perf_counter()
    normalize_rows_in_place(embeddings)
    scores = [
        summarise_exposure(one, embeddings.device)
        for split in task.config.evaluate.splits
        for one in score_split(embeddings, task.config, store, split)
    ]
    timings = {**timings, "rank_s": time.perf_counter() - started}
    task.send("scores", when=when, rank=rank(), scores=scores, timings=timings)
