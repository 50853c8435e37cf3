"""The sharded step against plain algebra: is the gradient that all workers agree on the exact one, here?

A tiny BERT, made in memory, and a catalog of some texts. Sharded: beeray's own step (texts dealt to ranks, checkpointed
micro-batches, differentiable gather, DeepSpeed's reduction and one optimizer update at the config's ZeRO stage), fp32.
Plain: the loss as the paper writes it, all texts in one batch, dense matrices, float64, one process, none of beeray's
code. The update is SGD's with a large power of two as its rate, so that what a weight moved by *is* the gradient, in
any ZeRO stage, and rounding of the weight itself is nothing beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.models import Pooling
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from beeray.config import TrainConfig
from beeray.core.batching import FlatTokens
from beeray.core.encoder import Encoder
from beeray.core.gather import rank, world_size
from beeray.core.step import StepSettings, TrainingStep
from beeray.core.user_items import UserItems
from beeray.runtime.doctor.finding import FAILED, OK, Finding
from beeray.runtime.engine import build_engine, full_state_dict

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

BOUND = 2e-5
"""Largest relative difference of fp32: sums of some hundred terms in another order, a few layers deep. Two workers on
CPUs differ by 1e-6; a worker whose gradient is lost makes it 1."""
RATE = 2.0**14
NUM_ITEMS, NUM_USERS, VOCABULARY, HIDDEN = 24, 7, 64, 32
MAX_SEQ_LENGTH = 12
NEGLIGIBLE = 1e-6
"""Weights whose gradient is zero in exact arithmetic (key biases of attention) have rounding noise for a gradient."""
FAULTS = ("muted", "detached")


class TinyBert(nn.Module):
    """What sentence-transformers' own module does with a BERT: features in, token embeddings out."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * HIDDEN,
            max_position_embeddings=MAX_SEQ_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Add `token_embeddings`, (texts, tokens, hidden)."""
        output = self.bert(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        return {**features, "token_embeddings": output.last_hidden_state}


def tiny_encoder() -> Encoder:
    """The same weights in every process, whatever its random state; words weigh most, so that texts are unlike."""
    model = nn.Sequential(TinyBert(), Pooling(HIDDEN, pooling_mode="mean"))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            scale = 1.0 if "word_embeddings" in name else 0.02 if parameter.ndim < 2 or "token_type" in name else 0.1
            drawn = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(drawn + 1.0 if name.endswith("LayerNorm.weight") else drawn)
    return Encoder(model)  # type: ignore[arg-type]


def catalog() -> list[NDArray[np.int32]]:
    """Token ids of the texts, 3 to 12 each."""
    generator = np.random.default_rng(5)
    sizes = generator.integers(3, MAX_SEQ_LENGTH + 1, size=NUM_ITEMS)
    return [generator.integers(1, VOCABULARY, size=size).astype(np.int32) for size in sizes]


def all_users() -> list[NDArray[np.int32]]:
    """Items of every user, two to five: few, so that some scores are below zero and cut off."""
    generator = np.random.default_rng(17)
    sizes = generator.integers(2, 6, size=NUM_USERS)
    return [np.sort(generator.choice(NUM_ITEMS, size=size, replace=False)).astype(np.int32) for size in sizes]


def plain_gradient(encoder: Encoder) -> dict[str, Tensor]:
    """Gradient of the mean loss of all users by its definition (beeFormer, Algorithm 1), in float64 on the CPU."""
    model: Any = copy.deepcopy(encoder).double().cpu().eval()
    texts = catalog()
    ids = torch.zeros(NUM_ITEMS, MAX_SEQ_LENGTH, dtype=torch.int64)
    mask = torch.zeros(NUM_ITEMS, MAX_SEQ_LENGTH, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.from_numpy(text.astype(np.int64))
        mask[row, : len(text)] = 1
    hidden = model.model[0].bert(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.double().unsqueeze(-1)
    pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    embeddings = pooled / pooled.norm(dim=1, keepdim=True)
    user_items = torch.zeros(NUM_USERS, NUM_ITEMS, dtype=torch.float64)
    for row, items in enumerate(all_users()):
        user_items[row, torch.from_numpy(items.astype(np.int64))] = 1.0
    scores = (user_items @ embeddings @ embeddings.T - user_items).clamp(min=0.0)
    predicted = scores / scores.norm(dim=1, keepdim=True)
    observed = user_items / user_items.norm(dim=1, keepdim=True)
    (predicted - observed).square().sum(dim=1).mean().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def sharded_gradient(encoder: Encoder, stage: int, device: torch.device, fault: str = "") -> dict[str, Tensor]:
    """Gradient by which one sharded step moves the weights, float64; whole on rank 0, empty elsewhere. Collective.

    Args:
        encoder: on its device; it is trained by the step.
        fault: for tests, of the last rank: `muted` loses the gradient of its users, `detached` that of its texts.
    """
    start = {name: weight.detach().cpu().double().clone() for name, weight in encoder.named_parameters()}
    sgd = torch.optim.SGD(encoder.parameters(), lr=RATE)
    train = TrainConfig(lr=RATE, scheduler="constant", gradient_clipping=0.0)
    engine = build_engine(encoder, train, stage, num_steps=1, optimizer=sgd)
    try:
        engine.train()
        faulty = fault if rank() == world_size() - 1 else ""
        texts = catalog()
        lengths = np.array([len(text) for text in texts], dtype=np.int32)
        step = TrainingStep(
            _detached(engine) if faulty == "detached" else engine,
            FlatTokens(np.concatenate(texts), lengths, pad_token_id=0),
            np.arange(NUM_ITEMS, dtype=np.int32),
            # the first micro-batch is kept, the others are recomputed
            StepSettings(max_output=None, max_seq_length=MAX_SEQ_LENGTH, token_budget=32, activation_budget_bytes=1),
            device,
        )
        loss = step.loss(_users_of_rank(), epoch=0, step=0).loss
        engine.backward(loss * 0.0 if faulty == "muted" else loss)
        engine.step()
        end = full_state_dict(engine)
    finally:
        engine.destroy()
    return {name: (start[name] - end[name].double()) / RATE for name in start if name in end}


def largest_relative_difference(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> tuple[float, str]:
    """Largest difference of any number, relative to the largest of its tensor's gradient; and the tensor's name."""
    largest = max(float(gradient.abs().max()) for gradient in exact.values())
    differences = {
        name: float((found[name] - gradient).abs().max() / gradient.abs().max())
        for name, gradient in exact.items()
        if float(gradient.abs().max()) > NEGLIGIBLE * largest
    }
    finite = {name: value if value == value else float("inf") for name, value in differences.items()}
    name = max(finite, key=lambda one: finite[one])
    return finite[name], name


def check_gradient(stage: int, device: torch.device, fault: str = "") -> Finding:
    """Compare the two; every rank must call, and rank 0 has the finding that counts."""
    exact = plain_gradient(tiny_encoder())
    found = sharded_gradient(tiny_encoder().to(device), stage, device, fault)
    if not found:
        return Finding(OK, "compared on worker 0")
    return judge_gradient(*largest_relative_difference(found, exact), stage=stage, num_workers=world_size())


def judge_gradient(difference: float, tensor: str, *, stage: int, num_workers: int) -> Finding:
    """The finding of a difference."""
    measured = {"largest_relative_difference": difference, "bound": BOUND, "tensor": tensor, "workers": num_workers}
    on = f"{num_workers} worker{'s' if num_workers > 1 else ''} under ZeRO-{stage}"
    if difference <= BOUND:
        return Finding(OK, f"exact on {on}: relative difference {difference:.1e}, bound {BOUND:.0e} (fp32)", measured)
    return Finding(
        FAILED,
        f"the gradient of {on} is not the exact one: it differs by {difference:.1e} of its largest number in {tensor} "
        f"(bound {BOUND:.0e}, fp32); training here would be wrong without saying so: install the versions of "
        "constraints.txt on every node, try deepspeed.stage=0, and check the network between the workers",
        measured,
    )


def _users_of_rank() -> UserItems:
    mine = all_users()[rank() :: world_size()]
    indptr = np.cumsum([0] + [len(items) for items in mine], dtype=np.int64)
    return UserItems(indptr, np.concatenate([np.empty(0, np.int32), *mine]))


def _detached(engine: DeepSpeedEngine) -> Callable[[Tensor, Tensor], Tensor]:
    def encode(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows: Tensor = engine(input_ids, attention_mask)
        return rows.detach() + 0.0 * rows

    return encode
