"""MPNet's attention through torch's fused kernels instead of transformers' written-out one.

transformers writes out scores, bias, mask, softmax and dropout of every layer, each of texts × heads × length². MPNet
adds a trained bias to the scores, by the distance of two tokens; flash kernels take no such bias, but torch's
memory-efficient kernel does, as an additive mask with a gradient. Bias and mask are the only tensor of that size left.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention


class FusedSelfAttention(nn.Module):
    """The same weights as an `MPNetSelfAttention`, called in the same way.

    Args:
        attention: taken over; its parameters are this module's.
    """

    def __init__(self, attention: MPNetSelfAttention) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = attention.q, attention.k, attention.v, attention.o
        self.dropout = attention.dropout
        self.width = attention.attention_head_size
        self.train(attention.training)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **options: Any,
    ) -> tuple[Tensor]:
        """As `MPNetSelfAttention.forward`; probabilities are never there, so they cannot be asked for."""
        assert not output_attentions
        heads = (*hidden_states.shape[:-1], -1, self.width)
        query, key, value = (linear(hidden_states).view(heads).transpose(1, 2) for linear in (self.q, self.k, self.v))
        added = position_bias if attention_mask is None else attention_mask
        if attention_mask is not None and position_bias is not None:
            added = position_bias + attention_mask
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if added is None else added.to(query.dtype),
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return (self.o(mixed.transpose(1, 2).flatten(2)),)


def fuse_attention(model: nn.Module) -> int:
    """Exchange every `MPNetSelfAttention` of a model in place; returns how many there were."""
    found = [module for module in model.modules() if isinstance(getattr(module, "attn", None), MPNetSelfAttention)]
    for module in found:
        module.attn = FusedSelfAttention(module.attn)
    return len(found)
