"""Before the training steps: a head behind the encoder, trained alone on features that are encoded once.

A kill during this stage repeats it; after it the head is in every checkpoint. Cost and memory are bounded,
however large the catalog: the head sees at most `MAX_ITEMS` items and `MAX_USERS` users.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from beeray.config import Config
from beeray.core.batching import Tokens
from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder
from beeray.core.gather import rank
from beeray.core.head import Head, HeadSettings, append_head, train_head, whiten
from beeray.core.user_items import UserItems
from beeray.data.parts import read_part
from beeray.data.store import Store, list_column, training_rows
from beeray.runtime.step_settings import step_settings

MAX_ITEMS = 200_000
MAX_USERS = 65_536


def start_with_head(
    model: SentenceTransformer,
    config: Config,
    store: Store,
    tokens: Tokens,
    send: Callable[..., None],
) -> None:
    """Append the head that `train.head` describes and train it. Every rank must call.

    Args:
        model: the encoder before training; the head is appended to it.
        send: tells the driver an event, kind first.
    """
    head_config = config.train.head
    assert head_config is not None
    started = time.perf_counter()
    items = _items(store, config)
    features = embed_items(
        Encoder(model, config.train.precision).eval(),
        tokens,
        items,
        max_seq_length=config.encoder.max_seq_length,
        token_budget=config.train.micro_batch_tokens(use_gpu=config.cluster.use_gpu),
        device=model.device,
        shared=True,
    )
    append_head(model, head_config.units)
    head = Head(model)
    if head_config.whiten:
        whiten(head, features)
    embedded = time.perf_counter()
    losses: list[float] = []

    def progress(step: int, loss: float) -> None:
        losses.append(loss)
        if rank() == 0:
            send("head", step=step, num_steps=head_config.steps, loss=loss)

    users = training_users(store, config, items)
    if users.num_users and head_config.steps:
        train_head(head, features, users, _settings(config), progress)
    if rank() == 0:
        send("head_done", **_summary(len(items), losses, embedded - started, time.perf_counter() - embedded))


def _settings(config: Config) -> HeadSettings:
    head = config.train.head
    assert head is not None
    return HeadSettings(
        steps=head.steps,
        batch_size=head.batch_size,
        max_output=head.max_output,
        lr=head.lr,
        dropout=head.dropout,
        seed=config.seed,
        objective=step_settings(config),
    )


def _summary(num_items: int, losses: list[float], embed_s: float, train_s: float) -> dict[str, Any]:
    shown = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
    return {"encoded_items": num_items, "steps": len(losses), "embed_s": embed_s, "train_s": train_s, **shown}


def _items(store: Store, config: Config) -> NDArray[np.int32]:
    """The items whose features are made: what may be trained on, or a sample of it; sorted."""
    trainable = store.trainable_items(config.trains_on_validation)
    if len(trainable) <= MAX_ITEMS:
        return trainable
    drawn = np.random.default_rng(config.seed).choice(trainable, size=MAX_ITEMS, replace=False, shuffle=False)
    return np.sort(drawn)


def training_users(store: Store, config: Config, items: NDArray[np.int32]) -> UserItems:
    """The first users of the store, the same on every rank, with their items as rows of `items`."""
    parts: list[pa.Table] = []
    for path in store.user_paths():
        if sum(len(part) for part in parts) >= MAX_USERS:
            break
        rows = read_part(path, ["user_index", "split", "item_indices", "splits"])
        parts.append(training_rows(rows, config.trains_on_validation))
    indptr, indices = list_column(pa.concat_tables(parts)["item_indices"])
    places = np.minimum(np.searchsorted(items, indices), len(items) - 1)
    kept = items[places] == indices  # all of them, unless items are a sample
    indptr = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[indptr]
    users = UserItems(indptr, places[kept].astype(np.int32))
    return users.take(np.flatnonzero(np.diff(indptr) >= 2)[:MAX_USERS])
