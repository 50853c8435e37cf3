"""What the driver hands every worker, and how a worker tells the driver something.

Imports no torch, so that the driver and Ray's own actors need not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from beeray.config import Config
from beeray.data.store import Store
from beeray.runtime.monitor import Outbox
from beeray.runtime.steps import UserShare

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

MUST_ARRIVE = ("scores", "failed", "refused", "stopped", "worker", "profile", "head_done", "neighbours", "not_finite")
"""Events that are large, or after which a worker may end or be silent for long; those before have come, too."""


@dataclass(frozen=True)
class WorkerTask:
    """What the driver hands every worker.

    Attributes:
        config: the resolved config.
        store: the prepared one, as the driver opened it.
        tokens_path: the token store of this encoder.
        shares: training users of one shard, domain by domain.
        num_shards: into how many the users were cut when the run began.
        run_dir: absolute folder of the run, which every node can write to; empty where nothing is left in it.
        marker: file in it by which a worker knows that its `run_dir` is the driver's.
        monitor: actor that takes progress events.
        model: the encoder to open: a hub name, `package:…`, or a folder as an absolute path.
        keep_as: under which name `evaluate` keeps embeddings for the run's report; empty: it keeps none.
        old_items: file that tells the items an earlier run knew, bool (items,); empty where there was none.
        original: the encoder whose neighbours `beeray.evaluate` compares with; empty where it does not.
        original_revision: at which it is opened.
        original_tokens_path: the token store of that.
    """

    config: Config
    store: Store
    tokens_path: str
    monitor: Any
    model: str
    shares: tuple[UserShare, ...] = ()
    num_shards: int = 1
    run_dir: str = ""
    marker: str = ""
    keep_as: str = ""
    old_items: str = ""
    original: str = ""
    original_revision: str | None = None
    original_tokens_path: str = ""

    def open_store(self) -> Store:
        """The store; StoreError where another one has taken its place."""
        self.store.check_unchanged()
        return self.store

    def known_items(self) -> NDArray[np.bool_] | None:
        """Which items the run that this one began with knew, (items,); None where it began with none."""
        return np.load(self.old_items) if self.old_items else None

    def send(self, kind: str, **event: Any) -> None:
        """Tell the driver something; waits for what must arrive."""
        self._outbox.send({"kind": kind, **event})
        if kind in MUST_ARRIVE:
            self.settle()

    def settle(self, patience_s: float = math.inf) -> None:
        """Wait until the driver has all that it was told, or takes longer than `patience_s`."""
        self._outbox.wait(patience_s)

    @cached_property
    def _outbox(self) -> Outbox:
        return Outbox(self.monitor)

    def open_model(self, device: torch.device | str = "cpu") -> SentenceTransformer:
        """A model of the shape that training exports: the encoder, with a head that changes nothing if there is one."""
        model = self.open_encoder(device)
        if self.config.train.head is not None and self.needs_head(model):
            from beeray.core.head import append_head

            append_head(model, self.config.train.head.units)
        return model

    def needs_head(self, model: SentenceTransformer) -> bool:
        """See `needs_head`."""
        return needs_head(self.config, model)

    def open_encoder(self, device: torch.device | str = "cpu") -> SentenceTransformer:
        """The encoder before training."""
        return open_encoder(self.config, self.model, self.config.served_seq_length, device)

    def open_original(self, device: torch.device | str) -> SentenceTransformer:
        """The encoder whose neighbours are compared with."""
        config = self.config
        encoder = config.encoder.model_copy(update={"name": self.original, "revision": self.original_revision})
        named = config.model_copy(update={"encoder": encoder})
        return open_encoder(named, self.original, config.served_seq_length, device)


def needs_head(config: Config, model: SentenceTransformer) -> bool:
    """Whether the encoder before training is to get a head: one that an earlier run gave it is kept."""
    from beeray.core.head import head_units

    train = config.train
    return train.head is not None and not (train.init_from is not None and head_units(model) is not None)


def open_encoder(config: Config, name: str, max_seq_length: int, device: torch.device | str) -> SentenceTransformer:
    """An encoder as workers train and score it: with the prefix, dropout and attention of a config."""
    from beeray.core.encoder import load_encoder

    return load_encoder(
        name,
        max_seq_length=max_seq_length,
        prefix=config.encoder.prefix,
        dropout=config.encoder.dropout,
        attention=config.encoder.attention,
        device=device,
        trust_remote_code=config.encoder.trust_remote_code,
        revision=config.encoder.revision_of(name),
    )
