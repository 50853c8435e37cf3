"""Where torch's first choice of a kernel is wrong while training on a GPU: cuDNN's attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Within this context attention takes torch's flash or memory-efficient kernel, never cuDNN's.

    torch 2.11 to 2.13 put cuDNN's first on H100 and H200 where a mask has no gradient, as one of padding has none. Its
    backward pass then gives gradients that are no numbers for lengths with length % 128 = 64, where all scores of a
    token are very low (github.com/pytorch/pytorch/issues/196678).
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
