"""What an encoder computes, counted once, and what this device could compute: the two sides of MFU.

MFU (model FLOP/s utilisation; Chowdhery et al. 2022, "PaLM", appendix B) is the arithmetic that a step *needs*,
real tokens forward and backward, divided by what the device could have done meanwhile. Padding, recomputation and
waiting are not needed, so they lower it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PROBE_TOKENS = 4
BACKWARD_AND_FORWARD = 3.0
"""A backward pass takes two products of matrices where forward takes one, if all is trained."""
GPU_PRODUCTS, CPU_PRODUCTS = (8192, 12), (512, 40)
"""Rows of the matrix, and products that the best rate is sought among. On a core a product takes milliseconds, in
which it is often left alone: others may be at work during most of them, as when workers start."""


@dataclass(frozen=True)
class EncoderFlops:
    """Floating-point operations of one forward pass; a multiply and an add are two.

    Attributes:
        per_token: of products with weights.
        per_token_pair: of attention, for each pair of tokens of a text.
        passes: what forward and backward take together, in forward passes; fewer where not all is trained.
    """

    per_token: float
    per_token_pair: float
    passes: float = BACKWARD_AND_FORWARD

    def of_step(self, num_tokens: int, num_token_pairs: int) -> float:
        """Operations that a training step needs, forward and backward.

        Args:
            num_tokens: real tokens of all texts.
            num_token_pairs: sum of the squared lengths of all texts.
        """
        return self.passes * (self.per_token * num_tokens + self.per_token_pair * num_token_pairs)


def count_flops(encode: nn.Module, device: torch.device | str = "cpu") -> EncoderFlops:
    """Count an encoder's operations on texts of three lengths, and tell those of tokens from those of pairs.

    Args:
        encode: (input_ids, attention_mask) → embeddings, not sharded.
    """
    training = encode.training
    encode.eval()
    counts = [_count(encode, length * PROBE_TOKENS, device) for length in (1, 2, 3)]
    trained = [parameter for parameter in encode.parameters() if parameter.requires_grad]
    passes = BACKWARD_AND_FORWARD
    if 0 < len(trained) < len(list(encode.parameters())):
        passes = _count(encode, 3 * PROBE_TOKENS, device, trained) / counts[2]
    encode.train(training)
    per_pair = (counts[2] - 2 * counts[1] + counts[0]) / (2 * PROBE_TOKENS**2)
    per_token = (counts[1] - counts[0]) / PROBE_TOKENS - 3 * PROBE_TOKENS * per_pair
    return EncoderFlops(per_token=per_token, per_token_pair=per_pair, passes=passes)


def _count(encode: nn.Module, num_tokens: int, device: torch.device | str, trained: Sequence[nn.Parameter] = ()) -> int:
    """Operations of a forward pass; with what it takes to have the gradient of `trained`, if there are any."""
    ones = torch.ones((1, num_tokens), dtype=torch.int64, device=device)
    with (
        torch.set_grad_enabled(bool(trained)),
        sdpa_kernel(SDPBackend.MATH),  # fused kernels are not all counted
        FlopCounterMode(display=False) as counter,
    ):
        embeddings = encode(ones, ones)
        if trained:
            torch.autograd.grad(embeddings.sum(), trained, allow_unused=True)
    return int(counter.get_total_flops())


def measure_peak_tflops(device: torch.device | str, dtype: torch.dtype) -> float:
    """The best rate of a square matrix product on a device, with the threads that this process has; TFLOP/s."""
    on_gpu = torch.device(device).type == "cuda"
    size, number = GPU_PRODUCTS if on_gpu else CPU_PRODUCTS
    left = torch.randn((size, size), device=device).to(dtype)
    best = float("inf")
    for _ in range(1 + number):
        if on_gpu:
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        torch.mm(left, left)
        if on_gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e12
