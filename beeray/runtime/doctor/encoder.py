"""The encoder that a run begins with: loads on a worker, embeds texts as it should, and takes what trains it."""

from __future__ import annotations

import torch
from torch import nn

from beeray.config import Config
from beeray.core.encoder import Encoder, embedding_dim
from beeray.core.head import append_head
from beeray.runtime.adaptation import check_adaptation, check_head
from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding
from beeray.runtime.task import needs_head, open_encoder
from beeray.runtime.warm_start import check_peft

TEXTS = ("A studded winter tyre for bicycles", "A dock that charges phones without a cable")


def check_encoder(config: Config, name: str, device: torch.device) -> Finding:
    """Load the encoder as training does, embed two texts, and set it up for training.

    Args:
        name: of the encoder, as any worker understands it.

    Raises:
        EncoderError: it does not load, or not take the config's head, adapters, frozen layers or prefixes.
        ConfigError: a library that the config needs is missing here.
    """
    model = open_encoder(config, name, config.longest_seq_length, device)
    encoder = Encoder(model, config.train.precision).eval()
    tokenizer = model.tokenizer
    rows = [tokenizer(text, truncation=True, max_length=config.longest_seq_length)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        first, second, again = (
            encoder(ids, torch.ones_like(ids))[0]
            for ids in (torch.tensor([row], device=device) for row in (rows[0], rows[1], rows[0]))
        )
    similarity = float(torch.nn.functional.cosine_similarity(first, second, dim=0))
    measured = {"dim": embedding_dim(model), "similarity": round(similarity, 4)}
    trouble = judge_embeddings(first, second, again)
    if trouble:
        key = "encoder.name" if config.train.init_from is None else "train.init_from"
        return Finding(FAILED, f"{key} {config.begins_with!r}: {trouble}", measured)
    check_peft(config)
    if config.train.init_from is not None:
        check_head(model, config.train)
    if config.train.head is not None and needs_head(config, model):
        append_head(model, config.train.head.units)
    check_adaptation(model, config.train)
    held, trained = num_parameters(model)
    measured |= {"parameters": held, "trained_parameters": trained}
    counted = f"{held:,} parameters" + (f" ({trained:,} of them trained)" if trained < held else "")
    said = (
        f"{config.begins_with}: {counted}, {measured['dim']} dimensions, "
        f"{config.longest_seq_length} tokens, {config.train.precision} on {device.type}"
    )
    if config.train.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        slow = "train.precision is bf16, which this GPU computes slowly; set train.precision=fp32"
        return Finding(WARNING, f"{slow} ({said})", measured)
    return Finding(OK, said, measured)


def num_parameters(model: nn.Module) -> tuple[int, int]:
    """How many a model has, and how many of them training moves; both once it is set up for training."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def judge_embeddings(first: torch.Tensor, second: torch.Tensor, again: torch.Tensor) -> str:
    """What is wrong with the embeddings of a text, of another, and of the first again; empty when nothing is."""
    if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        return (
            "it embeds a text as numbers that are not finite; its weights are damaged or too large for "
            "train.precision: download it again, or set train.precision=fp32"
        )
    if bool(torch.equal(first, second)):
        return "it embeds two unlike texts alike; its tokenizer or weights are not its own: download it again"
    if not bool(torch.allclose(first, again, rtol=1e-3, atol=1e-4)):
        return "it embeds a text differently the second time; its dropout stays on: give an encoder that turns it off"
    return ""
