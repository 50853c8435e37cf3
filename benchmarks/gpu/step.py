"""The training step alone on one GPU: exactness, tokens/s, share of the bf16 matrix rate, memory, minutes of 5 epochs.

An MPNet-shaped encoder of random weights (110M parameters) encodes texts of the lengths of GoodBooks' descriptions
(`goodbooks_lengths.json`), without Ray or DeepSpeed. Prints a short table and writes the record.

    python benchmarks/gpu/step.py                                  # on a GPU: bf16, 10,000 items, 1,024 users
    python benchmarks/gpu/step.py --layers 2 --hidden 64 --items 64 --users 16 --steps 2 --matrix 512 \
        --epochs 1 --training-users 64 --dry                       # anywhere

A unit of work is one forward pass over the real tokens: two operations a weight outside of the embedding tables, and
attention; backward is two units. `share_of_matrix_rate` counts 3 units (forward and backward, what the result needs)
and 4 (with the forward pass that backward repeats where activations are not kept), both against one large bf16 matrix
product measured in the same run. Padding counts as nothing, so it lowers both.

Then whole epochs of GoodBooks' full size are trained (`epochs.py`): 53,365 users, 53 steps an epoch, the next step
planned in a thread while one runs, and a step's seconds include the optimizer. After `--limit-s` they stop, and
`epochs_minutes` is what all of them would have taken at that rate; `epochs_steps_timed` says how many were done.

Attention is that of beeray's MPNet encoders (`--attention sdpa`, see `beeray/core/mpnet_attention.py`) or
transformers' own, written out (`--attention eager`). FlexAttention, which could compute MPNet's position bias inside
the kernel but must be compiled, is not tried here. With a BERT-shaped encoder, which has no such bias, flash kernels
serve as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import MPNetConfig, MPNetModel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from device import device_name, first_device, matrix_rate, peak_memory_gib, publish, versions, wait_for  # noqa: E402
from epochs import NUM_USERS, draw_users, plans, steps_an_epoch, time_epochs  # noqa: E402

from beeray.core.encoder import Encoder  # noqa: E402
from beeray.core.mpnet_attention import fuse_attention  # noqa: E402
from beeray.core.optimizers import build_optimizer  # noqa: E402
from beeray.core.step import StepLoss, StepSettings, TrainingStep  # noqa: E402
from beeray.core.user_items import UserItems  # noqa: E402

RECORD = ROOT / "benchmarks" / "records" / "gpu_step.json"
LENGTHS = Path(__file__).resolve().parent / "goodbooks_lengths.json"
NUM_CATALOG = 12_000
"""Texts that a step's 10,000 are drawn from."""
VOCABULARY = 30527


class Words(nn.Module):
    """An MPNet of random weights, called as the first of a SentenceTransformer's modules is."""

    def __init__(self, layers: int, hidden: int, positions: int) -> None:
        super().__init__()
        config = MPNetConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(1, hidden // 64),
            intermediate_size=4 * hidden,
            max_position_embeddings=positions + 2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.mpnet = MPNetModel(config, add_pooling_layer=False)

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds `token_embeddings`, (items, tokens, hidden)."""
        return {**features, "token_embeddings": self.mpnet(**features).last_hidden_state}


class MeanPooling(nn.Module):
    """The second of them."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds `sentence_embedding`, (items, hidden)."""
        words = features["token_embeddings"]
        mask = features["attention_mask"].unsqueeze(-1).to(words.dtype)
        return {**features, "sentence_embedding": (words * mask).sum(1) / mask.sum(1)}


class RandomTokens:
    """Random ids with the lengths of GoodBooks' descriptions, drawn anew."""

    pad_token_id = 1

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        counts = {int(length): number for length, number in json.loads(LENGTHS.read_text()).items()}
        real = np.repeat(list(counts), list(counts.values()))
        lengths = generator.choice(real, size=NUM_CATALOG)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.ids = generator.integers(5, VOCABULARY, self.offsets[-1])

    def lengths(self, max_seq_length: int) -> NDArray[np.int32]:
        """As `beeray.core.batching.Tokens`."""
        return np.minimum(np.diff(self.offsets), max_seq_length).astype(np.int32)

    def gather(self, items: NDArray[np.int32], max_seq_length: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """As `beeray.core.batching.Tokens`."""
        lengths = self.lengths(max_seq_length)[items]
        pieces = [self.ids[self.offsets[i] : self.offsets[i] + n] for i, n in zip(items, lengths, strict=True)]
        return np.concatenate(pieces), lengths


def build_step(
    model: nn.Module, tokens: RandomTokens, precision: str, num_items: int, gib: float, arguments: argparse.Namespace
) -> TrainingStep:
    """A step of so many items, keeping activations of so many GiB."""
    settings = StepSettings(
        max_output=num_items,
        max_seq_length=arguments.max_seq_length,
        token_budget=arguments.token_budget,
        activation_budget_bytes=int(gib * 2**30),
    )
    device = next(model.parameters()).device
    return TrainingStep(Encoder(model, precision), tokens, np.arange(NUM_CATALOG, dtype=np.int32), settings, device)


def kept_against_recomputed(
    model: nn.Module, tokens: RandomTokens, users: UserItems, arguments: argparse.Namespace
) -> float:
    """Largest difference of a small step's gradient in fp32 with and without activations kept, relative to it."""
    kept, recomputed = (
        gradient(build_step(model, tokens, "fp32", 48, gib, arguments), users, model) for gib in (1000.0, 0.0)
    )
    return float((kept - recomputed).abs().max() / kept.abs().max())


def gradient(step: TrainingStep, users: UserItems, encoder: nn.Module) -> torch.Tensor:
    """All gradients of one step as one vector."""
    encoder.zero_grad()
    step.loss(users, epoch=0, step=0).loss.backward()
    return torch.cat([p.grad.flatten().double() for p in encoder.parameters() if p.grad is not None])


def main() -> None:
    """Check exactness on a small step, then time the large one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {"layers": 12, "hidden": 768, "items": 10_000, "users": 1024, "steps": 5, "epochs": 5}
    for name, default in {**numbers, "training-users": NUM_USERS}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limit-s", type=float, default=440.0, help="seconds after which the epochs stop")
    parser.add_argument("--token-budget", type=int, default=65_536)
    parser.add_argument("--activation-gib", type=float, default=40.0)
    parser.add_argument("--max-seq-length", type=int, default=384)
    parser.add_argument("--matrix", type=int, default=8192, help="rows of the matrix product that sets the rate")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="sdpa")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="bf16 on a GPU, fp32 elsewhere unless given")
    parser.add_argument("--dry", action="store_true", help="write no record")
    arguments = parser.parse_args()
    record = measure(arguments)
    publish(record, RECORD, dry=arguments.dry)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one device."""
    device = first_device()
    torch.manual_seed(0)
    words = Words(arguments.layers, arguments.hidden, arguments.max_seq_length)
    model = nn.Sequential(words, MeanPooling()).to(device)
    if arguments.attention == "sdpa":
        assert fuse_attention(model) == arguments.layers
    tokens, generator = RandomTokens(0), np.random.default_rng(0)
    exactness = kept_against_recomputed(model, tokens, draw_users(32, NUM_CATALOG, generator), arguments)

    precision = arguments.precision or ("bf16" if device.type == "cuda" else "fp32")
    num_items = min(arguments.items, NUM_CATALOG)
    step = build_step(model, tokens, precision, num_items, arguments.activation_gib, arguments)
    batches = [draw_users(arguments.users, NUM_CATALOG, generator) for _ in range(arguments.steps + 1)]
    optimizer = build_optimizer(model, "adamw", lr=1e-5, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, work = timed_steps(step, optimizer, batches, device)
    epochs = whole_epochs(step, optimizer, generator, arguments) if arguments.epochs else {}
    peak_gib = peak_memory_gib(device)
    rate = matrix_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32, arguments.matrix)
    unit = unit_of_work(words.mpnet, tokens.lengths(arguments.max_seq_length))
    figures = summarise(seconds, work, rate, unit, peak_gib)
    if epochs:
        timed = "" if not epochs["epochs_extrapolated"] else f", from {epochs['epochs_steps_timed']} steps"
        figures["headline"][f"{arguments.epochs} epochs, min"] = f"{epochs['epochs_minutes']:.3g}{timed}"
    return {
        **figures,
        **epochs,
        "device": device_name(device),
        "precision": precision,
        "parameters": sum(p.numel() for p in model.parameters()),
        "kept_against_recomputed": exactness,
        "command": "python benchmarks/gpu/step.py",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "arguments": vars(arguments),
    }


def summarise(seconds: list[float], work: StepLoss, rate: float, unit: float, peak_gib: float | None) -> dict[str, Any]:
    """The figures of the timed steps.

    Args:
        seconds: of every step, the first being warm-up.
        rate: of matrix products, multiplications and additions a second.
        unit: multiplications and additions of one token's forward pass.
    """
    median = float(np.median(seconds[1:]))
    shares = {f"{units} units": units * unit * work.num_tokens / median / rate for units in (3, 4)}
    headline = {
        "tokens/s": work.num_tokens / median,
        "step, s": median,
        **{f"share of the matrix rate, {units}": f"{share:.1%}" for units, share in shares.items()},
        "peak GPU memory, GiB": peak_gib or "not on a GPU",
    }
    return {
        "benchmark": "gpu_step",
        "items": work.num_items,
        "users": work.num_users,
        "tokens": work.num_tokens,
        "padded_tokens": work.num_padded_tokens,
        "recomputed_tokens": work.num_recomputed_tokens,
        "step_s_median": median,
        "step_s": {"all": seconds},
        "tokens_per_s": work.num_tokens / median,
        "padding_waste": work.num_padded_tokens / work.num_tokens - 1,
        "step_s_spread": max(seconds[1:]) - min(seconds[1:]),
        "matrix_rate": rate,
        "operations_per_token_and_unit": unit,
        "share_of_matrix_rate": shares,
        "peak_memory_gib": peak_gib,
        "headline": headline,
    }


def unit_of_work(model: MPNetModel, lengths: NDArray[np.int32]) -> float:
    """Multiplications and additions of one real token's forward pass; its attention reaches over its own text."""
    weights = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name and p.ndim == 2)
    weights -= model.encoder.relative_attention_bias.weight.numel()
    config = model.config
    reach = float(np.square(lengths, dtype=np.float64).sum() / lengths.sum())
    return 2.0 * weights + 4.0 * config.num_hidden_layers * config.hidden_size * reach


def whole_epochs(
    step: TrainingStep,
    optimizer: torch.optim.Optimizer,
    generator: np.random.Generator,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Minutes of training on all users; drawing them is no part of it."""
    users = draw_users(arguments.training_users, NUM_CATALOG, generator)
    planned = plans(step.planner, users, arguments.users, arguments.epochs, generator)
    num_steps = arguments.epochs * steps_an_epoch(users.num_users, arguments.users)
    return time_epochs(step, optimizer, planned, num_steps, arguments.limit_s)


def timed_steps(
    step: TrainingStep, optimizer: torch.optim.Optimizer, batches: list[UserItems], device: torch.device
) -> tuple[list[float], StepLoss]:
    """Seconds of every optimizer step, the first being warm-up, and what the last one was."""
    seconds: list[float] = []
    for number, users in enumerate(batches):
        wait_for(device)
        started = time.perf_counter()
        work = step.loss(users, epoch=0, step=number)
        optimizer.zero_grad()
        work.loss.backward()
        optimizer.step()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return seconds, work


if __name__ == "__main__":
    main()
