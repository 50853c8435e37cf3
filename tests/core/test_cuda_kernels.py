"""Which of torch's attention kernels an encoder may take while it trains on a GPU."""

from __future__ import annotations

import torch

from beeray.core.encoder import kernels


def test_cudnn_s_attention_is_left_out_on_a_gpu_while_an_encoder_trains_and_allowed_again_after() -> None:
    allowed = torch.backends.cuda.cudnn_sdp_enabled
    before = allowed()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with kernels(torch.device("cpu")):
            assert allowed()
        with kernels(torch.device("cuda", 0)):
            assert not allowed()
            assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
        assert allowed()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
