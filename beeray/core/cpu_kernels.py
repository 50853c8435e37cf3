"""Where torch is slow while training on a CPU, something faster with the same result: attention and dropout.

They are put in place while a context is entered, whatever the model that runs in it, so no model is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from beeray.core.attention import pays, written_out
from beeray.core.dropout import drop


class CpuKernels(TorchFunctionMode):
    """Within this context torch's `scaled_dot_product_attention` and `dropout` run as beeray's where these pay."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and pays(*args, **kwargs):
            return written_out(*args, **kwargs)
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return input
    if inplace or input.device.type != "cpu" or not 0.0 < p < 1.0:
        return functional.dropout(input, p, training, inplace)
    return drop(input, p)
