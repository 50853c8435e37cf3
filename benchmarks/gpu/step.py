"""The training step alone on one GPU: exactness, tokens per second, share of the bf16 matrix rate, peak memory.

An MPNet-shaped encoder of random weights (110M parameters) encodes texts of the lengths of GoodBooks' descriptions
(`goodbooks_lengths.json`), without Ray or DeepSpeed. Prints a short table and writes the record.

    python benchmarks/gpu/step.py                                  # on a GPU: bf16, 10,000 items, 1,024 users
    python benchmarks/gpu/step.py --layers 2 --hidden 64 --items 64 --users 16 --steps 2 --matrix 512 --dry   # anywhere

A unit of work is one forward pass over the real tokens: two operations a weight outside of the embedding tables, and
attention; backward is two units. `share_of_matrix_rate` counts 3 units (forward and backward, what the result needs)
and 4 (with the forward pass that backward repeats where activations are not kept), both against one large bf16 matrix
product measured in the same run. Padding counts as nothing, so it lowers both.

MPNet adds a trained bias by relative position to its attention scores, and transformers therefore writes its
attention out (`--attention eager`): scores, bias, mask and softmax, each of texts × heads × length², go through memory
in every layer. Flash kernels take no bias. What can be done: give bias and padding to `scaled_dot_product_attention`
as one additive mask, for which torch has its memory-efficient kernel with a gradient for the mask (`--attention
sdpa`, see `mpnet_attention.py`; the mask is still texts × heads × length², in bf16); or FlexAttention, which computes
the bias inside the kernel but must be compiled, and is not tried here. With a BERT-shaped encoder, which has no such
bias, flash kernels serve as they are.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import MPNetConfig, MPNetModel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mpnet_attention import fuse_attention  # noqa: E402

from beeray.core.encoder import Encoder  # noqa: E402
from beeray.core.optimizers import build_optimizer  # noqa: E402
from beeray.core.step import StepLoss, StepSettings, TrainingStep  # noqa: E402
from beeray.core.user_items import UserItems  # noqa: E402

RECORD = ROOT / "benchmarks" / "records" / "gpu_step.json"
LENGTHS = Path(__file__).resolve().parent / "goodbooks_lengths.json"
NUM_CATALOG = 12_000
"""Texts that a step's 10,000 are drawn from."""
VOCABULARY = 30527


class MeanPooled(nn.Module):
    """An MPNet of random weights with mean pooling, called as a SentenceTransformer's modules are."""

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
        self.words = MPNetModel(config, add_pooling_layer=False)

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds `sentence_embedding`, (items, hidden)."""
        words = self.words(**features).last_hidden_state
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


def draw_users(number: int, generator: np.random.Generator) -> UserItems:
    """Users with about 50 items each, popular items more often."""
    weights = 1.0 / np.arange(1, NUM_CATALOG + 1) ** 0.6
    counts = np.clip(generator.poisson(50, number), 2, None)
    drawn = [generator.choice(NUM_CATALOG, size=n, replace=False, p=weights / weights.sum()) for n in counts]
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return UserItems(indptr, np.concatenate(drawn).astype(np.int32))


def gradient(step: TrainingStep, users: UserItems, encoder: nn.Module) -> torch.Tensor:
    """All gradients of one step as one vector."""
    encoder.zero_grad()
    step.loss(users, epoch=0, step=0).loss.backward()
    return torch.cat([p.grad.flatten().double() for p in encoder.parameters() if p.grad is not None])


def main() -> None:
    """Check exactness on a small step, then time the large one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"layers": 12, "hidden": 768, "items": 10_000, "users": 1024, "steps": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--token-budget", type=int, default=65_536)
    parser.add_argument("--activation-gib", type=float, default=40.0)
    parser.add_argument("--max-seq-length", type=int, default=384)
    parser.add_argument("--matrix", type=int, default=8192, help="rows of the matrix product that sets the rate")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="sdpa")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="bf16 on a GPU, fp32 elsewhere unless given")
    parser.add_argument("--dry", action="store_true", help="write no record")
    arguments = parser.parse_args()
    record = measure(arguments)
    print("\n".join(f"{name:<28}{value}" for name, value in record.items() if not isinstance(value, dict)))
    if not arguments.dry:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model: Any = MeanPooled(arguments.layers, arguments.hidden, arguments.max_seq_length).to(device)
    if arguments.attention == "sdpa":
        assert fuse_attention(model) == arguments.layers
    tokens, generator = RandomTokens(0), np.random.default_rng(0)
    trainable = np.arange(NUM_CATALOG, dtype=np.int32)

    def step_of(precision: str, num_items: int, gib: float) -> tuple[TrainingStep, Encoder]:
        encoder = Encoder(model, precision)
        settings = StepSettings(
            max_output=num_items,
            max_seq_length=arguments.max_seq_length,
            token_budget=arguments.token_budget,
            activation_budget_bytes=int(gib * 2**30),
        )
        return TrainingStep(encoder, tokens, trainable, settings, device), encoder

    few = draw_users(32, generator)
    kept, recomputed = (gradient(*_pair(step_of("fp32", 48, gib), few)) for gib in (1000.0, 0.0))
    exactness = float((kept - recomputed).abs().max() / kept.abs().max())

    precision = arguments.precision or ("bf16" if device.type == "cuda" else "fp32")
    step, encoder = step_of(precision, min(arguments.items, NUM_CATALOG), arguments.activation_gib)
    batches = [draw_users(arguments.users, generator) for _ in range(arguments.steps + 1)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, work = timed_steps(step, encoder, batches, device)
    median = float(np.median(seconds[1:]))
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    rate = matrix_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32, arguments.matrix)
    unit = unit_of_work(model, tokens.lengths(arguments.max_seq_length))
    shares = {f"{units} units": units * unit * work.num_tokens / median / rate for units in (3, 4)}
    headline = {
        "tokens/s": work.num_tokens / median,
        "step, s": median,
        **{f"share of the matrix rate, {units}": f"{share:.1%}" for units, share in shares.items()},
        "peak GPU memory, GiB": peak_gib or "not on a GPU",
    }
    return {
        "benchmark": "gpu_step",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "precision": precision,
        "parameters": sum(p.numel() for p in model.parameters()),
        "items": work.num_items,
        "users": work.num_users,
        "tokens": work.num_tokens,
        "padded_tokens": work.num_padded_tokens,
        "recomputed_tokens": work.num_recomputed_tokens,
        "kept_against_recomputed": exactness,
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
        "command": "python benchmarks/gpu/step.py",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
        "arguments": vars(arguments),
    }


def unit_of_work(model: nn.Module, lengths: NDArray[np.int32]) -> float:
    """Multiplications and additions of one real token's forward pass; its attention reaches over its own text."""
    weights = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name and p.ndim == 2)
    weights -= model.words.encoder.relative_attention_bias.weight.numel()
    config = model.words.config
    reach = float(np.square(lengths, dtype=np.float64).sum() / lengths.sum())
    return 2.0 * weights + 4.0 * config.num_hidden_layers * config.hidden_size * reach


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Multiplications and additions per second of one large product of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    _wait(device)
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    _wait(device)
    return 10 * 2 * size**3 / (time.perf_counter() - started)


def timed_steps(
    step: TrainingStep, encoder: Encoder, batches: list[UserItems], device: torch.device
) -> tuple[list[float], StepLoss]:
    """Seconds of every optimizer step, the first being warm-up, and what the last one was."""
    optimizer = build_optimizer(encoder, "adamw", lr=1e-5, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0)
    seconds: list[float] = []
    for number, users in enumerate(batches):
        _wait(device)
        started = time.perf_counter()
        work = step.loss(users, epoch=0, step=number)
        optimizer.zero_grad()
        work.loss.backward()
        optimizer.step()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return seconds, work


def _pair(built: tuple[TrainingStep, Encoder], users: UserItems) -> tuple[TrainingStep, UserItems, Encoder]:
    step, encoder = built
    return step, users, encoder


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
