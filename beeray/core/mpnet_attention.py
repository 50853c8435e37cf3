"""MPNet's attention through torch's `scaled_dot_product_attention`, where transformers writes it out.

transformers has no such path for MPNet: scores, bias, mask, softmax and dropout of every layer, each of texts × heads ×
length², go through memory and are kept for backward. The reason is a trained bias, added to the scores by the distance
of two tokens and the same in all layers. Flash kernels take none, but torch's memory-efficient kernel does, as an
additive mask with a gradient. Bias and padding are put into one such mask once for all layers, in the type of the
queries, and that is then the only tensor of that size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

PADDED = -(2.0**15)
"""Added to scores of padding: far below any score, so that its probability is 0, and yet no number that overflows.
The smallest that its type has does: cast from fp32 to bf16, or multiplied by log₂e in a kernel, it is -inf, and the
probabilities of a text that is all padding are no numbers then."""
ALIGNED = 8
"""The kernel wants rows of a mask that begin at multiples of so many numbers, else torch copies it in every layer."""


class FusedSelfAttention(MPNetSelfAttention):
    """`MPNetSelfAttention`, its scores never written out unless attention probabilities are asked for."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        """As of `MPNetSelfAttention`.

        Args:
            hidden_states: (texts, tokens, hidden).
            attention_mask: added to the scores, bias included, in the type of the queries; broadcast to (texts, heads,
                tokens, tokens).
            position_bias: none but None; it is in the mask.
        """
        assert position_bias is None
        if output_attentions:
            return super().forward(hidden_states, attention_mask, None, output_attentions=True)  # type: ignore[no-any-return]
        heads = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (linear(hidden_states).view(heads).transpose(1, 2) for linear in (self.q, self.k, self.v))
        dropout = self.dropout.p if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout)
        return (self.o(mixed.transpose(1, 2).flatten(2)),)


class FusedEncoder(MPNetEncoder):
    """`MPNetEncoder` that makes bias and padding one mask, once for all layers."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *arguments: Any, **options: Any
    ) -> Any:
        """As of `MPNetEncoder`.

        Args:
            hidden_states: (texts, tokens, hidden).
            attention_mask: negative where a token is padding, else 0; (texts, 1, tokens, tokens).
        """
        mask = self._scores_mask(hidden_states, attention_mask)
        return super().forward(hidden_states, mask, *arguments, **options)

    def compute_position_bias(self, *arguments: Any, **options: Any) -> None:
        """None: what layers are given beside the mask."""

    def _scores_mask(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What is added to the scores: (texts, heads, tokens, tokens), rows of the storage padded to `ALIGNED`."""
        num_texts, length = hidden_states.shape[:2]
        missing = -length % ALIGNED
        bias = super().compute_position_bias(hidden_states[:1]).to(_type_of_queries(hidden_states))
        mask = functional.pad(bias, (0, missing))
        if attention_mask is not None:  # there is none where no text of the batch is padded
            mask = mask.masked_fill(functional.pad(attention_mask < 0, (0, missing)), PADDED)
        return mask[..., :length].expand(num_texts, -1, -1, -1)


def fuse_attention(model: nn.Module) -> int:
    """Give every MPNet in a model this attention, in place; returns how many attention layers there were to change.

    Modules change their class and nothing else, so parameters, their names, hooks and what is saved stay as they were.
    """
    changed = 0
    for module in model.modules():
        if type(module) is MPNetEncoder:
            module.__class__ = FusedEncoder
            attentions = [one for one in module.modules() if type(one) is MPNetSelfAttention]
            for attention in attentions:
                attention.__class__ = FusedSelfAttention
            changed += len(attentions)
    return changed


def _type_of_queries(hidden_states: Tensor) -> torch.dtype:
    device = hidden_states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
