"""MPNet's attention through torch's kernels is transformers' written-out one, forward, backward and on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_encoder import HIDDEN, ListTokens, build_tiny_mpnet
from torch import Tensor
from torch.nn import functional
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from beeray.core.encoder import Encoder, cast_to_bf16, load_encoder, save_encoder, set_dropout
from beeray.core.flops import count_flops
from beeray.core.frozen_layers import freeze_lower_layers
from beeray.core.mpnet_attention import ALIGNED, FusedEncoder, FusedSelfAttention, fuse_attention
from beeray.core.step import StepSettings, TrainingStep
from beeray.core.user_items import UserItems

BIAS = "encoder.relative_attention_bias.weight"
TEXTS = ["ba ban bo", "dy", " ".join(["ta", "gus", "mer"] * 8)]
LENGTHS = (11, 8, 3)
USERS = UserItems(np.array([0, 5, 9, 12]), np.array([0, 3, 5, 7, 9, 1, 3, 11, 15, 2, 8, 14], dtype=np.int32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_mpnet(tmp_path_factory.mktemp("mpnet") / "encoder", dropout=0.1)


def opened(folder: Path, attention: str = "auto", dropout: float | None = 0.0) -> SentenceTransformer:
    return load_encoder(str(folder), max_seq_length=32, attention=attention, dropout=dropout)


def batch(lengths: Sequence[int] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Padded token ids and their mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 150, mask.shape, generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(~mask, 1), mask.long()


def run(
    model: SentenceTransformer, lengths: Sequence[int] = LENGTHS, precision: str = "fp32"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Embeddings and the gradients of a weighted sum of them."""
    model.zero_grad()
    embeddings = Encoder(model, precision).train()(*batch(lengths))
    (embeddings * torch.linspace(-1, 1, embeddings.numel()).view(embeddings.shape)).sum().backward()
    network = model[0].model
    return embeddings.detach(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lengths", [(11, 8, 3), (16, 9), (7, 7), (1,)], ids=str)
def test_it_has_the_embeddings_and_gradients_of_transformers(folder: Path, lengths: tuple[int, ...]) -> None:
    expected, gradients = run(opened(folder, "eager"), lengths)
    embeddings, found = run(opened(folder), lengths)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    assert found.keys() == gradients.keys() and BIAS in found
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: name + text)
    assert len(lengths) == 1 or float(found[BIAS].abs().max()) > 1e-3


def test_without_its_bias_it_embeds_otherwise(folder: Path) -> None:
    model = opened(folder)
    before = run(model)[0]
    with torch.no_grad():
        model[0].model.get_parameter(BIAS).zero_()
    assert float((run(model)[0] - before).abs().max()) > 1e-2


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_an_mpnet_gets_it_and_keeps_its_parameters_and_their_names(folder: Path, attention: str) -> None:
    plain, fused = opened(folder, "eager"), opened(folder, attention)
    assert {type(module) for module in plain.modules()} >= {MPNetEncoder, MPNetSelfAttention}
    assert not {type(module) for module in plain.modules()} & {FusedEncoder, FusedSelfAttention}
    assert sum(type(module) is FusedSelfAttention for module in fused.modules()) == 2
    assert fuse_attention(fused) == 0
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_what_is_saved_opens_in_plain_sentence_transformers_and_embeds_the_same(folder: Path, tmp_path: Path) -> None:
    for name in ("eager", "auto"):
        save_encoder(opened(folder, name), tmp_path / name)
    files = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
             for n in ("eager", "auto")]  # fmt: skip
    assert files[0] == files[1]
    plain = SentenceTransformer(str(tmp_path / "auto"), device="cpu")
    assert type(plain[0].model.encoder) is MPNetEncoder
    np.testing.assert_allclose(plain.encode(TEXTS), opened(folder).encode(TEXTS), atol=1e-5)


def mask_of_a_layer(model: SentenceTransformer, lengths: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the kernel is given as its mask."""
    masks: list[Tensor] = []
    plain = functional.scaled_dot_product_attention

    def noted(*arguments: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
        masks.append(attn_mask)
        return plain(*arguments, attn_mask=attn_mask, dropout_p=dropout_p)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noted)
    model(dict(zip(("input_ids", "attention_mask"), batch(lengths), strict=True)))
    assert len(masks) == 2 and masks[0] is masks[1], "it is made once for all layers"
    return masks[0]


@pytest.mark.parametrize("lengths", [(11, 8, 3), (16, 9), (5, 5)], ids=str)
def test_rows_of_the_mask_begin_where_the_kernel_wants_them(
    folder: Path, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = mask_of_a_layer(opened(folder), lengths, monkeypatch)
    assert mask.shape == (len(lengths), 2, max(lengths), max(lengths)) and mask.requires_grad
    assert mask.stride(-1) == 1 and all(stride % ALIGNED == 0 for stride in mask.stride()[:-1])


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
def test_a_text_that_is_all_padding_has_numbers_forward_and_backward(folder: Path, precision: str) -> None:
    model = opened(folder)
    if precision == "bf16":
        cast_to_bf16(model)
    embeddings, gradients = run(model, (9, 4, 0), "bf16" if precision == "autocast" else "fp32")
    assert torch.isfinite(embeddings).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_in_bf16_it_is_as_near_to_fp32_as_transformers_is(folder: Path) -> None:
    exact, gradients = run(opened(folder, "eager"))
    for attention in ("eager", "auto"):
        embeddings, found = run(opened(folder, attention), precision="bf16")
        assert 1e-5 < float((embeddings - exact).abs().max()) < 0.05
        likeness = torch.cosine_similarity(found[BIAS].flatten(), gradients[BIAS].flatten(), dim=0)
        assert float(likeness) > 0.99


def step_gradient(model: SentenceTransformer, budget: int, seed: int = 0) -> tuple[Tensor, int]:
    """All gradients of a training step with dropout, and the tokens that it recomputed."""
    generator = np.random.default_rng(3)
    tokens = ListTokens([[0, *generator.integers(5, 150, generator.integers(2, 14)).tolist(), 2] for _ in range(16)])
    tokens.pad_token_id = 1
    settings = StepSettings(
        max_output=16, max_seq_length=32, token_budget=48, activation_budget_bytes=budget, seed=seed
    )
    model.zero_grad()
    step = TrainingStep(Encoder(model).train(), tokens, np.arange(16, dtype=np.int32), settings)
    result = step.loss(USERS, epoch=0, step=0)
    result.loss.backward()
    found = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(found), result.num_recomputed_tokens


def test_recomputed_steps_have_the_gradient_of_kept_ones_with_dropout_on(folder: Path) -> None:
    model = opened(folder, dropout=0.3)
    kept, none = step_gradient(model, 2**40)
    recomputed, some = step_gradient(model, 0)
    assert none == 0 and some > 0
    assert float((recomputed - kept).abs().max()) <= 1e-6 < 1e-3 < float(kept.abs().max())
    assert float((step_gradient(model, 2**40, seed=1)[0] - kept).abs().max()) > 1e-3


def test_dropout_is_set_in_it_and_draws_probabilities_away(folder: Path) -> None:
    model = opened(folder, dropout=None).train()
    attention = model[0].model.encoder.layer[0].attention.attn
    hidden = torch.randn(1, 6, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert attention.dropout.p == 0.1
    assert not torch.equal(attention(hidden)[0], attention(hidden)[0])
    set_dropout(model, 0.0)
    assert torch.equal(attention(hidden)[0], attention(hidden)[0])


def test_a_bias_that_is_frozen_with_the_lowest_layers_has_no_gradient_and_changes_nothing(folder: Path) -> None:
    expected, gradients = run(opened(folder, "eager"))
    model = opened(folder)
    freeze_lower_layers(model, 1)
    embeddings, found = run(model)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    assert BIAS not in found and found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[name], atol=2e-5, rtol=1e-4)


def test_probabilities_that_are_asked_for_are_those_of_transformers(folder: Path) -> None:
    ids, mask = batch()
    theirs, ours = (
        opened(folder, name)[0].model.eval()(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
        for name in ("eager", "auto")
    )
    assert len(ours) == 2
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_its_operations_are_counted_as_those_of_transformers(folder: Path) -> None:
    assert count_flops(Encoder(opened(folder))) == count_flops(Encoder(opened(folder, "eager")))
