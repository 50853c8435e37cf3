"""Baselines of an encoder that is not trained: as it is, and with a head trained alone behind it.

The catalog is encoded once for both. The head is trained under the loss of training, on what training may see
(`core.head`, `runtime.head_start`), so its figure is what fine-tuning the encoder itself must beat.
"""

from __future__ import annotations

import time
from typing import Any

import ray.train
import torch
from torch import Tensor

from beeray.core.elsa import normalize_rows_in_place
from beeray.core.encoder import Encoder
from beeray.core.gather import rank
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.finite_embeddings import check_finite
from beeray.runtime.head_start import head_items, train_alone, whitened_head
from beeray.runtime.scoring import embed_as_served, score_embeddings
from beeray.runtime.task import WorkerTask
from beeray.runtime.worker import embedding_progress, worker_ready

ROWS_AT_ONCE = 16_384
UNTOUCHED, FROZEN_HEAD = "untouched", "frozen_head"


def frozen_worker(task: WorkerTask) -> None:
    """Score what `baselines.which` names of the two. Every rank runs this."""
    with worker_ready(task) as device:
        store, which = task.open_store(), task.config.baselines.which
        encoder = Encoder(task.open_encoder(device), task.config.train.precision).eval()
        started = time.perf_counter()
        tokens, progress = TokenStore.open(task.tokens_path), embedding_progress(task, UNTOUCHED)
        features = embed_as_served(encoder, task.config, tokens, device, progress=progress)
        check_finite(features, store)
        embed_s = time.perf_counter() - started
        if UNTOUCHED in which:
            _score(task, store, features.clone(), UNTOUCHED, {"embed_s": embed_s})
        if FROZEN_HEAD in which:
            started = time.perf_counter()
            _put_through_head(task, store, encoder, features)
            check_finite(features, store, whose="baselines.frozen_head", remedy="lower baselines.frozen_head.lr")
            timings = {"embed_s": embed_s, "fit_s": time.perf_counter() - started}
            _score(task, store, features, FROZEN_HEAD, timings)
        ray.train.report({})


def _put_through_head(task: WorkerTask, store: Store, encoder: Encoder, features: Tensor) -> None:
    """Train the head and replace the features by what it makes of them, in place. Collective."""
    config = task.config
    settings = config.baselines.frozen_head
    items = head_items(store, config)
    rows = features[torch.from_numpy(items).long().to(features.device)]
    head = whitened_head(encoder.model, rows, settings)
    train_alone(head, rows, items, settings, config, store, task.send)
    head.eval()
    with torch.no_grad():
        for block in features.split(ROWS_AT_ONCE):
            block.copy_(head(block))


def _score(task: WorkerTask, store: Store, embeddings: Tensor, when: str, timings: dict[str, Any]) -> None:
    started = time.perf_counter()
    normalize_rows_in_place(embeddings)
    scores = score_embeddings(embeddings, task.config, store, task.known_items())
    timings = {**timings, "rank_s": time.perf_counter() - started}
    task.send("scores", when=when, rank=rank(), scores=scores, timings=timings)
