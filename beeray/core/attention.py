"""Attention in bf16 on CPUs, written out: torch's own kernel takes ten times as long backward.

Per layer of 4,096 tokens in texts of 134, one core with AMX: forward 16 ms and backward 155 ms in torch's kernel
(2.13), 11 ms and 11 ms as two batched matrix products around a softmax. What is paid for it is memory, texts ×
heads × length² probabilities a layer, and so longer texts stay with torch's kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from beeray.core.dropout import drop

LONGEST = 512
"""Tokens up to which probabilities are kept: at 512, 12 KiB per token and layer with 12 heads."""


def pays(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> bool:
    """Whether writing it out is faster: in bf16, and with dropout, for which torch has no kernel anyway."""
    return (
        query.device.type == "cpu"
        and (query.dtype == torch.bfloat16 or dropout_p > 0.0)
        and query.ndim == 4
        and key.shape[-2] <= LONGEST
        and not is_causal
        and not enable_gqa
    )


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale · Q Kᵀ + mask) V, as `scaled_dot_product_attention` has it.

    Args:
        query: (texts, heads, tokens, d), as `key` and `value`.
        attn_mask: bool, True where attention is allowed, or added to the scores; broadcast to (texts, heads,
            tokens, tokens).
        dropout_p: of the probabilities.

    Returns:
        as `query`.
    """
    assert not is_causal and not enable_gqa
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):
        scores = (query * scale) @ key.transpose(-2, -1)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill_(attn_mask.logical_not(), torch.finfo(scores.dtype).min)
        elif attn_mask is not None:
            scores = scores.add_(attn_mask.to(scores.dtype).clamp(min=torch.finfo(scores.dtype).min))
        probabilities = scores.softmax(dim=-1)
        if dropout_p:
            probabilities = drop(probabilities, dropout_p)
        return probabilities @ value
