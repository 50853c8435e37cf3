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
from torch import Tensor

from beeray.config import Config, HeadConfig
from beeray.core.batching import Tokens
from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder
from beeray.core.gather import rank
from beeray.core.head import Head, HeadSettings, append_head, train_head, whiten
from beeray.core.user_items import UserItems, concatenate_users
from beeray.data.parts import read_part
from beeray.data.store import INTERACTION_COLUMNS, Store, list_column, training_rows
from beeray.errors import DivergedError
from beeray.runtime.finite_embeddings import check_finite
from beeray.runtime.step_settings import step_settings
from beeray.runtime.steps import scored_within, user_shares

MAX_ITEMS = 200_000
MAX_USERS = 65_536


def start_with_head(
    model: SentenceTransformer,
    config: Config,
    store: Store,
    tokens: Tokens,
    send: Callable[..., None],
    *,
    num_shards: int | None = None,
) -> None:
    """Append the head that `train.head` describes and train it. Every rank must call.

    Args:
        model: the encoder before training; the head is appended to it.
        send: tells the driver an event, kind first.
        num_shards: as `training_users`.

    Raises:
        NotFiniteError: embeddings of trainable items are no finite numbers; on every rank.
        DivergedError: what the head has become is none; on every rank.
    """
    head_config = config.train.head
    assert head_config is not None
    started = time.perf_counter()
    items = head_items(store, config)
    features = embed_items(
        Encoder(model, config.train.precision).eval(),
        tokens,
        items,
        max_seq_length=config.encoder.max_seq_length,
        token_budget=config.train.micro_batch_tokens(use_gpu=config.cluster.use_gpu),
        device=model.device,
        shared=True,
    )
    check_finite(features, store, items, whose=config.begins_with)
    head = whitened_head(model, features, head_config)
    embedded = time.perf_counter()
    losses = train_alone(head, features, items, head_config, config, store, send, num_shards=num_shards)
    if not all(weights.isfinite().all() for weights in head.parameters()):
        steps = f"after {len(losses)} steps the head's weights are no finite numbers"
        raise DivergedError(f"train.head.lr {head_config.lr:g}: {steps}; lower it")
    if rank() == 0:
        send("head_done", **_summary(len(items), losses, embedded - started, time.perf_counter() - embedded))


def whitened_head(model: SentenceTransformer, features: Tensor, settings: HeadConfig) -> Head:
    """Append a head to an encoder, whitened if it is to be.

    Args:
        features: the encoder's embeddings, (items, d).
    """
    append_head(model, settings.units)
    head = Head(model)
    if settings.whiten:
        whiten(head, features)
    return head


def train_alone(
    head: Head,
    features: Tensor,
    items: NDArray[np.int32],
    settings: HeadConfig,
    config: Config,
    store: Store,
    send: Callable[..., None],
    *,
    num_shards: int | None = None,
) -> list[float]:
    """Train a head on features of the frozen encoder, under the loss of training. Every rank must call.

    Args:
        features: of `items`, (items, d).
        send: tells the driver an event, kind first.
        num_shards: as `training_users`.

    Returns:
        loss of every step.
    """
    losses: list[float] = []

    def progress(step: int, loss: float) -> None:
        losses.append(loss)
        if rank() == 0:
            send("head", step=step, num_steps=settings.steps, loss=loss)

    users = training_users(store, config, items, num_shards)
    if users.num_users and settings.steps:
        within = scored_within(config, store)
        domains = None if within is None else within[items]
        train_head(head, features, users, _settings(settings, config), progress, domains=domains)
    return losses


def _settings(head: HeadConfig, config: Config) -> HeadSettings:
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


def head_items(store: Store, config: Config) -> NDArray[np.int32]:
    """The items whose features are made: what may be trained on, or a sample of it; sorted."""
    trainable = store.trainable_items(config.trains_on_validation)
    if len(trainable) <= MAX_ITEMS:
        return trainable
    drawn = np.random.default_rng(config.seed).choice(trainable, size=MAX_ITEMS, replace=False, shuffle=False)
    return np.sort(drawn)


def training_users(store: Store, config: Config, items: NDArray[np.int32], num_shards: int | None = None) -> UserItems:
    """Users of the store, the same on every rank, with their items as rows of `items`.

    The first of each domain, as many of each as its share in an epoch says; some twice, where that is more than it has.

    Args:
        num_shards: into how many the run's users were cut when it began; `cluster.num_workers` unless given.
    """
    num_shards = num_shards or config.cluster.num_workers
    shares = user_shares(config, store, num_shards)
    num_drawn = np.array([share.num_drawn * num_shards for share in shares], dtype=np.int64)
    if num_drawn.sum() > MAX_USERS:
        num_drawn = np.maximum(1, num_drawn * MAX_USERS // num_drawn.sum())
    weighted = [share.num_drawn != share.num_users for share in shares]
    users = [_first_users(store, config, items, share.domain, MAX_USERS) for share in shares]
    if len(shares) == 1 and not any(weighted):
        return users[0]
    return concatenate_users(
        [
            one.take(np.arange(number) % one.num_users)
            for one, number in zip(users, num_drawn, strict=True)
            if one.num_users
        ]
    )


def _first_users(store: Store, config: Config, items: NDArray[np.int32], domain: int, most: int) -> UserItems:
    """The first users of a domain that have two of the items."""
    parts: list[UserItems] = []
    for path in store.user_paths(store.meta.domains[domain]):
        if sum(part.num_users for part in parts) >= most:
            break
        rows = read_part(path, ["user_index", *INTERACTION_COLUMNS])
        parts.append(_users_of(training_rows(rows, config.trains_on_validation), items))
    users = concatenate_users(parts)
    return users.take(np.arange(min(users.num_users, most)))


def _users_of(rows: pa.Table, items: NDArray[np.int32]) -> UserItems:
    """Users with the items that are in `items`, as rows of it; those who have two."""
    indptr, indices = list_column(rows["item_indices"])
    places = np.minimum(np.searchsorted(items, indices), len(items) - 1)
    kept = items[places] == indices  # all of them, unless items are a sample
    indptr = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[indptr]
    users = UserItems(indptr, places[kept].astype(np.int32))
    return users.take(np.flatnonzero(np.diff(indptr) >= 2))
