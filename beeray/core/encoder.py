"""The encoder: a SentenceTransformer seen as one function from padded token ids to embeddings.

The training step, evaluation and the nightly job all call this one module, so what is trained is
what is exported. Tokenising is not done here: it happens once per catalog (see `data/tokens.py`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from beeray.core.cpu_kernels import CpuKernels
from beeray.core.cuda_kernels import without_cudnn_attention
from beeray.core.encoder_files import encoder_source
from beeray.errors import EncoderError

PROMPT_NAME = "document"


class Encoder(nn.Module):
    """Padded token ids → embeddings, in fp32 or under bf16 autocast.

    Args:
        model: the sentence transformer whose modules are trained in place.
        precision: `fp32`, or `bf16` for autocast of the transformer; pooling and what follows stay in fp32.
    """

    def __init__(self, model: SentenceTransformer, precision: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed one micro-batch.

        Args:
            input_ids: int64 (num_items, num_tokens), special tokens included.
            attention_mask: int64 (num_items, num_tokens), 1 on tokens and 0 on padding.

        Returns:
            float32 (num_items, dim); rows are as the model's own modules leave them (not always unit length).
        """
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        transformer, *others = self.model.children()
        halved = self.precision == "bf16"
        with (
            torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=halved),
            kernels(input_ids.device) if torch.is_grad_enabled() else nullcontext(),
        ):
            features = transformer(features)
        features = _in_fp32(features)  # a head evens out variances, and so would blow up what bf16 rounds off
        for module in others:
            features = module(features)
        return features["sentence_embedding"].float()


def kernels(device: torch.device) -> AbstractContextManager[object]:
    """What torch's attention and dropout are to be while an encoder trains on a device."""
    return CpuKernels() if device.type == "cpu" else without_cudnn_attention()


def load_encoder(
    name: str,
    *,
    max_seq_length: int,
    prefix: str = "",
    dropout: float | None = None,
    attention: str = "auto",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> SentenceTransformer:
    """Open a sentence transformer and set it up for training or embedding.

    Args:
        name: a folder, `package:<python package>/<folder>`, or a hub name.
        max_seq_length: tokens of a text, special tokens included; the rest is cut off.
        prefix: put before every text; kept as the model's default prompt so that `encode` uses it too.
        dropout: probability of every dropout layer while training; None keeps the model's own.
        attention: attention implementation asked of transformers, or `auto`. MPNet, for which transformers has none
            but `eager`, gets that of `core.mpnet_attention` with `auto` and `sdpa`.
        trust_remote_code: run code that comes with the encoder; that from the hub only of the commit `revision`.
        revision: commit, tag or branch of a hub name.

    Raises:
        EncoderError: nothing loadable there, weights that are pickles, modules that do not fit together,
            `max_seq_length` beyond what its positions allow, or a prompt of the model's own that `prefix` is not.
    """
    source = encoder_source(name)
    try:
        model = _open_with_attention(attention, source, str(device), trust_remote_code, revision)
    except Exception as error:  # the hub and transformers raise a dozen unrelated types here
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        remedy = "give a folder written by SentenceTransformer.save, a hub name, or package:<package>/<folder>"
        if "trust_remote_code" in str(error):
            remedy = "it brings code of its own: give another, or set encoder.trust_remote_code and encoder.revision"
        raise EncoderError(
            f"encoder.name {name!r}: no sentence transformer could be loaded ({reason.strip()[:300]}); {remedy}"
        ) from error
    _check_widths(model, name)
    longest = _longest_sequence(model)
    if longest is not None and max_seq_length > longest:
        raise EncoderError(
            f"encoder.max_seq_length {max_seq_length}: {name!r} has positions for {longest} tokens; lower it to that"
        )
    model.float()  # an encoder published in half precision is trained in fp32 weights all the same
    model.max_seq_length = max_seq_length
    _check_prompt(model, name, prefix)
    if prefix:
        model.prompts[PROMPT_NAME] = prefix
        model.default_prompt_name = PROMPT_NAME
    if dropout is not None:
        set_dropout(model, dropout)
    return model


def _check_prompt(model: SentenceTransformer, name: str, prefix: str) -> None:
    """Refuse a prompt that plain `encode` would treat otherwise than training and embedding do."""
    own = model.prompts.get(model.default_prompt_name, "") if model.default_prompt_name else ""
    if own and not prefix:
        raise EncoderError(
            f"encoder.prefix is '': {name!r} itself puts {own!r} before every text (its default prompt); set "
            "encoder.prefix to that, or save the encoder without a default prompt"
        )
    if prefix and not all(getattr(module, "include_prompt", True) for module in model.children()):
        raise EncoderError(
            f"encoder.prefix {prefix!r}: {name!r} leaves a prompt's tokens out of its pooling (include_prompt), which "
            "training does not; leave the prefix out, or give another encoder"
        )


def _open_with_attention(attention: str, source: str, *arguments: Any) -> SentenceTransformer:
    """Open an encoder with an attention implementation; for MPNet `sdpa` is beeray's, and so is `auto`."""
    model_kwargs = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        model = _open(model_kwargs, source, *arguments)
    except ValueError as error:
        if attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        model = _open({}, source, *arguments)
        if not _fuse_mpnet(model):
            raise
    if attention == "auto":
        _fuse_mpnet(model)
    return model


def _fuse_mpnet(model: SentenceTransformer) -> bool:
    config = _network_config(model)
    if config is None or config.model_type != "mpnet":
        return False
    from beeray.core.mpnet_attention import fuse_attention  # here: no other encoder needs transformers' MPNet

    return fuse_attention(model) > 0


def _open(
    model_kwargs: dict[str, Any], source: str, device: str, trust_remote_code: bool, revision: str | None
) -> SentenceTransformer:
    pinned = {"code_revision": revision} if trust_remote_code else {}  # code that lies in other repositories, too
    return SentenceTransformer(
        source,
        device=device,
        model_kwargs={"use_safetensors": True, **pinned, **model_kwargs},
        config_kwargs=dict(pinned) or None,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )


def _check_widths(model: SentenceTransformer, name: str) -> None:
    """A head or another linear module takes what the module before it gives."""
    width: int | None = None
    for module in model.children():
        taken = getattr(module, "in_features", None)
        if taken is not None and width is not None and taken != width:
            raise EncoderError(
                f"encoder.name {name!r}: its module {type(module).__name__} takes {taken} dimensions and gets {width}: "
                "the folder is damaged or put together of several; save the encoder again"
            )
        given = getattr(module, "get_embedding_dimension", None)
        width = given() if callable(given) else width


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout probability of a model, those kept as plain numbers in attention layers too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for attribute in ("dropout_prob", "attention_dropout", "dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, probability)


def cast_to_bf16(model: SentenceTransformer) -> None:
    """Cast the transformer's weights to bf16, for inference; pooling and what follows stay in fp32.

    Twice as fast as autocast, which casts the weights anew in every call. Embeddings differ from fp32's by
    less than 5e-3 in any dimension where they have unit length.
    """
    transformer = next(iter(model.children()))
    transformer.to(torch.bfloat16)
    transformer.register_forward_hook(_outputs_in_fp32)


def _outputs_in_fp32(module: nn.Module, inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    return _in_fp32(features)


def _in_fp32(features: dict[str, Any]) -> dict[str, Any]:
    halves = {
        name: value for name, value in features.items() if isinstance(value, Tensor) and value.is_floating_point()
    }
    return {**features, **{name: value.float() for name, value in halves.items()}}


def save_encoder(model: SentenceTransformer, folder: Path) -> None:
    """Write a folder that `SentenceTransformer(folder)` opens, weights as safetensors only."""
    model.save(str(folder), create_model_card=False, safe_serialization=True)


def embedding_dim(model: SentenceTransformer) -> int:
    """Width of the embeddings."""
    dim = model.get_embedding_dimension()
    assert dim is not None
    return dim


def _network_config(model: SentenceTransformer) -> Any:
    """transformers' config of the network, or None."""
    return getattr(getattr(model[0], "model", None), "config", None)


def _longest_sequence(model: SentenceTransformer) -> int | None:
    config = _network_config(model)
    positions = getattr(config, "max_position_embeddings", None)
    if config is None or positions is None:
        return None
    # RoBERTa's and MPNet's position ids start after the padding index
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return int(positions) - offset
