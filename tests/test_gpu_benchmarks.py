"""What the GPU benchmarks put in place of transformers' code computes the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from own_process import run_python
from transformers import MPNetConfig, MPNetModel

GPU = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
sys.path.insert(0, str(GPU))
from mpnet_attention import fuse_attention  # noqa: E402


def build() -> MPNetModel:
    config = MPNetConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return MPNetModel(config, add_pooling_layer=False).eval()


def run(model: MPNetModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(4, 60, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(11) < torch.tensor([11, 7, 3])[:, None]).long()
    output = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
    model.zero_grad()
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return output.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_fused_mpnet_attention_has_the_output_and_gradients_of_transformers() -> None:
    plain, fused = build(), build()
    assert fuse_attention(fused) == 2
    assert fuse_attention(fused) == 0
    expected, gradients = run(plain)
    output, found = run(fused)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)
    bias = "encoder.relative_attention_bias.weight"
    assert float(found[bias].abs().max()) > 1e-3  # the bias is trained through the mask
    with torch.no_grad():
        fused.get_parameter(bias).add_(torch.linspace(0, 5, found[bias].numel()).view_as(found[bias]))
    assert float((run(fused)[0] - expected).abs().max()) > 1e-2
    with pytest.raises(AssertionError):
        fused.encoder.layer[0].attention.attn(expected, output_attentions=True)


@pytest.mark.long
def test_both_benchmarks_run_without_a_gpu(tmp_path: Path) -> None:
    small = ("--layers", "2", "--hidden", "64", "--matrix", "256", "--dry")
    sizes = {"step": ("--items", "48", "--users", "16", "--steps", "2"), "embed": ("--texts", "60", "--repeats", "1")}
    for name, size in sizes.items():
        done = run_python(str(GPU / f"{name}.py"), *small, *size, cwd=tmp_path, limit_s=600)
        assert done.returncode == 0, done.stderr[-2000:]
        record = json.loads(done.stdout.splitlines()[-1])
        assert record["benchmark"] == f"gpu_{name}" and record["tokens_per_s"] > 0
        if name == "step":
            assert record["kept_against_recomputed"] < 1e-5
            assert record["items"] == 48 and record["recomputed_tokens"] == 0
