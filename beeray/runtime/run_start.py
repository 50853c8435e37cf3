"""What a run begins with: its store, its tokens, its users' shares, and the encoder of `train.init_from`."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from beeray.config import Config
from beeray.console import ANEW, Console
from beeray.data.growth import Growth, growth_since, said_of, said_without_note, write_lists
from beeray.data.scored import SEEN_BEFORE
from beeray.data.storage import write_bytes
from beeray.data.store import Store
from beeray.inputs import located_encoder, open_encoder
from beeray.runtime.lineage import learned_validation
from beeray.runtime.opening import Opening
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.steps import UserShare, user_shares
from beeray.runtime.warm_start import WarmStart

FITTED = {"head", "lora", "freeze_layers", "matryoshka_dims"}
"""Of `train`, what may not fit an encoder."""


@dataclass(frozen=True)
class TrainInputs:
    """What a run trains on.

    Attributes:
        store: the prepared store.
        tokens_path: the token store of its encoder.
        shares: what each domain gives to an epoch.
        model: the encoder that is begun with.
        init_from: of what `train.init_from` names, for the record.
        num_shards: into how many its users were cut when it began.
    """

    store: Store
    tokens_path: str
    shares: tuple[UserShare, ...]
    model: str
    num_shards: int
    init_from: dict[str, Any] | None = None


def begin_run(
    config: Config,
    folder: RunFolder,
    store: Store,
    tokens_path: str,
    console: Console,
    *,
    warm: WarmStart | None,
    fingerprint: str | None,
    fresh: bool = False,
) -> TrainInputs:
    """Claim a locked folder for a run, and note what it begins with.

    Args:
        warm: what `train.init_from` names.
        fingerprint: of the encoder there.
        fresh: clear the folder first.

    Raises:
        DataError: too few users for the workers; nothing was written or cleared.
        RunError: the folder is another store's or another encoder's.
    """
    model = located_encoder(config.encoder.name) if warm is None else warm.model
    num_shards = config.cluster.num_workers if fresh else folder.num_shards
    inputs = TrainInputs(store, tokens_path, tuple(user_shares(config, store, num_shards)), model, num_shards)
    if fresh:
        folder.clear()
        console.again = ANEW
    learned = None if warm is None else learned_validation(warm.model)
    folder.claim(store.meta.fingerprint, fingerprint, learned)
    growth = None if warm is None or warm.items is None else growth_since(store, warm.items)
    unknown = warm is not None and warm.items is None
    write_lists(store, config.trains_on_validation, str(folder.items), growth, unknown_start=unknown)
    if warm is None:
        return inputs
    start = {"folder": warm.given, "fingerprint": fingerprint, **_compare(warm, growth, store, folder, console)}
    return replace(inputs, init_from=start)


def open_start(config: Config, warm: WarmStart | None) -> tuple[Any, str | None]:
    """Tokenizer of the encoder that training begins with, and the encoder's fingerprint where a run left it."""
    from beeray.core.fingerprint import model_fingerprint  # both import torch
    from beeray.runtime.adaptation import check_adaptation, check_head

    model = open_encoder(config if warm is None else warm.start_of(config))
    tokenizer, fingerprint = model.tokenizer, None if warm is None else model_fingerprint(model)
    if warm is not None:
        check_head(model, config.train)
    check_adaptation(model, config.train)
    return tokenizer, fingerprint


def opening_of(config: Config, warm: WarmStart | None) -> Opening:
    """`open_start`, unless an earlier command found the same encoder to fit the same adaptation."""
    fitted = config.train.model_dump(mode="json", include=FITTED)
    return Opening(
        config if warm is None else warm.start_of(config),
        lambda: open_start(config, warm),
        {"fitted": fitted, "begun_with": warm is not None},
    )


def _compare(
    warm: WarmStart, growth: Growth | None, store: Store, folder: RunFolder, console: Console
) -> dict[str, Any]:
    """Tell old items from new ones, for scoring; says so where there are held-out items that are not unseen."""
    if growth is None:
        console.line(
            f"train.init_from {warm.given}: it left no list of its items, so old ones are not told from new; what it "
            "was trained on is not known, and may be held out now"
        )
        return {}
    known = io.BytesIO()
    np.save(known, growth.known)
    write_bytes(str(folder.old_items), known.getvalue())
    record = growth.record(store)
    console.line(f"begin with {warm.given}: {record['old_items']:,} items that it knew, {record['new_items']:,} new")
    kind = store.meta.split_kind
    if not record["old_items"]:
        console.line(
            f"warning: it knew none of the store's items: its domains were {', '.join(growth.domains)}, the store has "
            f"{', '.join(store.meta.domains)} (data.domain), and items are told apart by domain and id"
        )
    if growth.strange:
        console.line(growth.said_of_strange(kind))
    counts = record.get(SEEN_BEFORE)
    if counts is None and len(growth.strange) < len(store.meta.domains):
        console.line(f"it {said_without_note(kind)}")
    elif seen := said_of(counts or {}, kind):
        console.line(f"warning: {seen}, which flatters all rankings but new_items")
    return record
