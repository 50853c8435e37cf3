"""Attention written out is `scaled_dot_product_attention`, forward and backward, and only where it is meant to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from beeray.core import attention
from beeray.core.attention import written_out
from beeray.core.cpu_kernels import CpuKernels

SHAPE = (3, 2, 7, 4)
LENGTHS = torch.tensor([7, 5, 2])
ALLOWED = (torch.arange(7) < LENGTHS[:, None])[:, None, None, :]
ADDED = torch.zeros(ALLOWED.shape).masked_fill(~ALLOWED, float("-inf"))
MASKS = {"none": None, "bool": ALLOWED, "full": ALLOWED.expand(3, 1, 7, 7), "added": ADDED}


def tensors(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("mask", list(MASKS))
def test_written_out_attention_has_torchs_output_and_gradients(mask: str) -> None:
    inputs = tensors(torch.float32)
    ours = with_gradients(written_out(*inputs, attn_mask=MASKS[mask]), inputs)
    theirs = with_gradients(functional.scaled_dot_product_attention(*inputs, attn_mask=MASKS[mask]), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    unmasked = with_gradients(written_out(*inputs), inputs)
    assert (mask == "none") == torch.allclose(unmasked[0], theirs[0], atol=1e-3)


def test_a_scale_is_taken_and_dropout_drops() -> None:
    inputs = tensors(torch.float32)
    ours = written_out(*inputs, scale=0.1)
    torch.testing.assert_close(ours, functional.scaled_dot_product_attention(*inputs, scale=0.1))
    assert not torch.allclose(ours, written_out(*inputs))
    torch.manual_seed(0)
    dropped = torch.stack([written_out(*inputs, dropout_p=0.3) for _ in range(3000)])
    assert not torch.allclose(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), written_out(*inputs), atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "longest", "is_taken"),
    [(torch.bfloat16, 512, True), (torch.bfloat16, 6, False), (torch.float32, 512, False)],
)
def test_only_short_bf16_texts_are_written_out(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, longest: int, is_taken: bool
) -> None:
    monkeypatch.setattr(attention, "LONGEST", longest)
    inputs = tensors(dtype)
    with CpuKernels():
        output = functional.scaled_dot_product_attention(*inputs, attn_mask=ALLOWED)
    assert output.grad_fn is not None
    assert ("Flash" not in output.grad_fn.name()) == is_taken
    plain = functional.scaled_dot_product_attention(*(one.float() for one in inputs), attn_mask=ALLOWED)
    torch.testing.assert_close(output.float(), plain, atol=0.02, rtol=0.02)
