"""Which of an encoder's weights training moves: all, low-rank adapters in their place, or none of the lowest layers.

Adapters are peft's (Hu et al., "LoRA", arXiv 2106.09685). They are merged into the weights at export, so that the
folder opens without peft.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from beeray.config import LoraConfig, TrainConfig
from beeray.core.encoder import embedding_dim
from beeray.core.frozen_layers import FrozenLayers, freeze_lower_layers
from beeray.core.head import head_units
from beeray.errors import EncoderError

ADAPTER = "default"


class Adaptation:
    """What was done to a model by `adapt`.

    Attributes:
        frozen: its lowest layers, if they are held fixed.
    """

    def __init__(self, frozen: FrozenLayers | None, merge: Callable[[], Any]) -> None:
        self.frozen = frozen
        self._merge = merge

    def merge(self) -> None:
        """Put adapters into the weights that they stand for; the model is then of the shape that it was opened with."""
        self._merge()


def adapt(model: SentenceTransformer, train: TrainConfig, seed: int) -> Adaptation:
    """Set a model up for training what the config says, in place; the same on every rank.

    Raises:
        EncoderError: layers or adapted modules that the encoder does not have, or nothing is left to train.
    """
    merge: Callable[[], Any] = lambda: None  # noqa: E731
    if train.lora is not None:
        merge = _with_adapters(model, train.lora, seed)
    frozen = freeze_lower_layers(model, train.freeze_layers) if train.freeze_layers else None
    return Adaptation(frozen, merge)


def check_adaptation(model: SentenceTransformer, train: TrainConfig) -> None:
    """Refuse what does not fit the encoder; changes the model.

    Raises:
        EncoderError: as `adapt`, or a prefix is wider than the embedding.
    """
    width = embedding_dim(model)
    if train.matryoshka_dims and train.matryoshka_dims[-1] >= width:
        raise EncoderError(
            f"train.matryoshka_dims has {train.matryoshka_dims[-1]}: the embeddings have {width} numbers, and "
            "the whole of them is trained beside the prefixes anyway; leave out what is not below that"
        )
    adapt(model, train, seed=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if train.head is None and all("pooler" in name for name in trained):
        raise EncoderError(
            f"train.freeze_layers is {train.freeze_layers}: that is every layer, and nothing is left to train; lower "
            "it, or append a head (train.head)"
        )


def check_head(model: SentenceTransformer, train: TrainConfig) -> None:
    """Refuse a `train.head` of another width than the head that an encoder of an earlier run has already.

    Raises:
        EncoderError: that.
    """
    units = head_units(model)
    if train.head is not None and units is not None and train.head.units != units:
        raise EncoderError(
            f"train.head.units is {train.head.units}: the encoder that train.init_from names has a head of {units} "
            "units, which is kept; set it to that, or leave train.head out"
        )


def _with_adapters(model: SentenceTransformer, lora: LoraConfig, seed: int) -> Callable[[], Any]:
    """Put adapters in; returns what merges them."""
    from peft import LoraConfig as PeftConfig
    from peft import LoraModel

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)  # type: ignore[arg-type]
    network = model[0].model
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            adapters = LoraModel(network, {ADAPTER: config}, ADAPTER)
        except ValueError as error:  # peft's answer to names that it finds nowhere, or that are no linear layers
            raise EncoderError(f"train.lora.targets {targets!r}: {str(error).splitlines()[0][:300]}") from error
    return adapters.merge_and_unload  # in place: the layers that were wrapped are back, moved
