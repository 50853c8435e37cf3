"""A head behind an encoder: nothing at first, whitening with a known answer, training that helps, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from tiny_encoder import HIDDEN, ListTokens

from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder, save_encoder
from beeray.core.head import Head, HeadSettings, append_head, train_head, whiten
from beeray.core.user_items import UserItems

OpenEncoder = Callable[..., Encoder]
FEW = HeadSettings(steps=40, batch_size=8, max_output=30, lr=3e-3, seed=1)


def embedded(encoder: Encoder, tokens: ListTokens) -> torch.Tensor:
    items = np.arange(len(tokens.texts), dtype=np.int32)
    return embed_items(encoder.eval(), tokens, items, max_seq_length=32, token_budget=512)


def a_head(num_units: int = 16) -> Head:
    model = SentenceTransformer(modules=[_Sized(8)], device="cpu")
    append_head(model, num_units)
    return Head(model)


class _Sized(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def get_embedding_dimension(self) -> int:
        return self.dim


def two_tastes() -> tuple[torch.Tensor, UserItems]:
    """40 items of two kinds that a single weak direction tells apart; each user likes ten of one kind."""
    generator = np.random.default_rng(3)
    features = torch.from_numpy(generator.normal(size=(40, 8)).astype(np.float32))
    features[:, 0] = 0.1 * torch.where(torch.arange(40) < 20, 1.0, -1.0)
    liked = [generator.choice(20, size=10, replace=False) + 20 * (user % 2) for user in range(24)]
    return features, UserItems(np.arange(25, dtype=np.int64) * 10, np.concatenate(liked).astype(np.int32))


def test_a_new_head_changes_no_bit_of_an_embedding(open_encoder: OpenEncoder, tokens: ListTokens) -> None:
    encoder = open_encoder()
    before = embedded(encoder, tokens)
    append_head(encoder.model, 16)
    assert torch.equal(embedded(encoder, tokens), before)
    with torch.no_grad():
        Head(encoder.model).narrow.linear.weight[0, -1] += 1.0  # a unit that counted nothing
    assert not torch.equal(embedded(encoder, tokens), before)


def test_a_model_that_normalised_at_its_end_does_so_behind_the_head(open_encoder: OpenEncoder) -> None:
    plain, normalised = open_encoder().model, open_encoder().model
    normalised.append(Normalize())
    for model in (plain, normalised):
        append_head(model, 4)
    assert not isinstance(plain[-1], Normalize)
    assert isinstance(normalised[-1], Normalize)


def test_whitening_takes_away_the_mean_and_evens_out_variances() -> None:
    generator = torch.Generator().manual_seed(2)
    scales = torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    features = 5.0 + torch.randn(4000, 8, generator=generator) * scales
    head = a_head()
    whiten(head, features)
    white = head(features).detach()
    assert white.mean(dim=0).abs().max() < 1e-4
    assert float(white.square().sum(dim=1).mean()) == pytest.approx(1.0, abs=1e-3)
    # the floor is 0.1 × mean variance = 0.1 × (81 + 7) / 8 = 1.1, so variances become 81 / 82.1 and 1 / 2.1
    variances = white.var(dim=0)
    assert float(variances[0] / variances[1:].mean()) == pytest.approx((81 / 82.1) / (1 / 2.1), rel=0.1)


def test_whitening_of_fewer_texts_than_dimensions_stays_finite() -> None:
    head = a_head()
    whiten(head, torch.randn(3, 8))
    assert torch.isfinite(head(torch.randn(5, 8))).all()


def test_texts_that_are_all_alike_are_left_as_they_are() -> None:
    head, alike = a_head(), torch.randn(1, 8).repeat(5, 1) * 3
    whiten(head, alike)
    assert torch.equal(head.whitening.linear.weight, torch.eye(8))
    torch.testing.assert_close(head(alike), alike)


def test_whitening_in_blocks_is_whitening_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, heads = torch.randn(50, 8), [a_head(), a_head()]
    whiten(heads[0], features)
    monkeypatch.setattr("beeray.core.head.WHITENING_ROWS", 7)
    whiten(heads[1], features)
    torch.testing.assert_close(heads[0](features), heads[1](features))


def test_training_lowers_the_loss_leaves_the_whitening_and_repeats_itself() -> None:
    features, users = two_tastes()
    losses: list[list[float]] = []
    weights: list[dict[str, torch.Tensor]] = []
    for seed in (1, 1, 2):
        head = a_head()
        whiten(head, features)
        whitening = head.whitening.linear.weight.clone()
        losses.append([])
        settings = HeadSettings(steps=40, batch_size=8, max_output=30, lr=3e-3, seed=seed)
        train_head(head, features, users, settings, lambda step, loss: losses[-1].append(loss))
        assert torch.equal(head.whitening.linear.weight, whitening)
        assert all(parameter.requires_grad for parameter in head.parameters())
        weights.append(head.state_dict())
    assert len(losses[0]) == FEW.steps
    assert np.mean(losses[0][-5:]) < 0.8 * np.mean(losses[0][:5])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["narrow.linear.weight"], weights[2]["narrow.linear.weight"])


def test_an_exported_folder_gives_the_same_embeddings_without_beeray(
    open_encoder: OpenEncoder, tokens: ListTokens, texts: list[str], tmp_path: Path
) -> None:
    encoder = open_encoder()
    features = embedded(encoder, tokens)
    append_head(encoder.model, 16)
    head = Head(encoder.model)
    whiten(head, features)
    users = UserItems(np.arange(11, dtype=np.int64) * 5, np.arange(50, dtype=np.int32))
    train_head(head, features, users, FEW)
    trained = embedded(encoder, tokens)
    save_encoder(encoder.model, tmp_path / "model")
    opened = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    served = torch.from_numpy(opened.encode(texts, batch_size=7))
    assert served.shape == (len(texts), HIDDEN)
    assert (served - trained).abs().max() < 1e-5
    assert (served - features).abs().max() > 1e-2


def test_bf16_leaves_the_head_in_fp32(open_encoder: OpenEncoder, tokens: ListTokens) -> None:
    encoder = open_encoder()
    features = embedded(encoder, tokens)
    append_head(encoder.model, 4)
    seen: list[torch.dtype] = []
    Head(encoder.model).narrow.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    encoder.precision = "bf16"
    halved = embedded(encoder, tokens)
    assert set(seen) == {torch.float32}
    assert 0.0 < float((halved - features).abs().max()) < 0.1
