"""Opening, setting up and exporting an encoder: errors in one line, prompt, dropout, safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_encoder import HIDDEN, MAX_POSITIONS, ListTokens
from torch import nn
from transformers import BertTokenizer, ModernBertConfig, ModernBertModel, T5Config, T5EncoderModel

from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder, embedding_dim, load_encoder, save_encoder, set_dropout
from beeray.core.encoder_files import encoder_source
from beeray.errors import EncoderError

OpenEncoder = Callable[..., Encoder]
TEXTS = ["ban fer kol", "dy", " ".join(["ta", "gus", "mer"] * 20)]


def refused(name: str, max_seq_length: int = 16) -> str:
    """The one line that a user reads."""
    with pytest.raises(EncoderError) as caught:
        load_encoder(name, max_seq_length=max_seq_length)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_that_holds_no_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model here")
    message = refused(str(tmp_path))
    assert str(tmp_path) in message
    assert "neither modules.json nor config.json" in message
    assert "SentenceTransformer.save" in message


def test_a_folder_with_broken_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("not json\n{")
    message = refused(str(tmp_path))
    assert str(tmp_path) in message
    assert "no sentence transformer could be loaded" in message


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    message = refused(str(tmp_path / "nowhere"))
    assert "no sentence transformer could be loaded" in message


@pytest.mark.parametrize("package", ["no_such_package_at_all", "no_such_package_at_all.part"])
def test_a_package_that_is_not_installed_is_refused(package: str) -> None:
    message = refused(f"package:{package}/model")
    assert f"Python package '{package}' is not installed" in message


def test_a_folder_missing_in_an_installed_package_is_refused() -> None:
    assert "no sentence transformer could be loaded" in refused("package:numpy/no_model_here")


def test_an_encoder_inside_a_package_is_found(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    monkeypatch.syspath_prepend(tiny_folder.parent.parent)
    name = f"package:{tiny_folder.parent.name}/{tiny_folder.name}"
    assert Path(encoder_source(name)).resolve() == tiny_folder.resolve()


def test_texts_longer_than_the_positions_are_refused(tiny_folder: Path) -> None:
    message = refused(str(tiny_folder), MAX_POSITIONS + 1)
    assert f"encoder.max_seq_length {MAX_POSITIONS + 1}" in message
    assert f"positions for {MAX_POSITIONS} tokens" in message
    assert load_encoder(str(tiny_folder), max_seq_length=MAX_POSITIONS).max_seq_length == MAX_POSITIONS


def embed(encoder: Encoder, folder: Path, texts: list[str], max_seq_length: int) -> np.ndarray:
    """Tokenise, gather, pad and encode as training does."""
    tokens = ListTokens.of_texts(folder, texts)
    return embed_items(
        encoder.eval(),
        tokens,
        np.arange(len(texts), dtype=np.int32),
        max_seq_length=max_seq_length,
        token_budget=64,
    ).numpy()


def test_the_prefix_is_exported_so_that_plain_encode_gives_what_was_trained(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_encoder(str(tiny_folder), max_seq_length=24, prefix="mer tan ")
    save_encoder(model, tmp_path / "model")
    exported = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    trained = embed(Encoder(model), tiny_folder, [f"mer tan {text}" for text in TEXTS], 24)
    np.testing.assert_allclose(exported.encode(TEXTS), trained, atol=1e-5)
    without_prefix = embed(Encoder(model), tiny_folder, TEXTS, 24)
    assert np.abs(exported.encode(TEXTS) - without_prefix).max() > 1e-2
    np.testing.assert_allclose(exported.encode(TEXTS, prompt=""), without_prefix, atol=1e-5)


def test_an_encoder_with_a_prompt_of_its_own_is_not_opened_without_it(tiny_folder: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    save_encoder(load_encoder(str(tiny_folder), max_seq_length=24, prefix="mer tan "), tmp_path / "model")
    with pytest.raises(EncoderError, match=r"encoder.prefix is '': .* itself puts 'mer tan ' before every text"):
        load_encoder(folder, max_seq_length=24)
    assert load_encoder(folder, max_seq_length=24, prefix="mer tan ").prompts["document"] == "mer tan "


def test_a_prefix_whose_tokens_would_not_be_pooled_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_encoder(str(tiny_folder), max_seq_length=24)
    model.set_pooling_include_prompt(False)
    model.save(str(tmp_path / "model"))
    with pytest.raises(EncoderError, match="leaves a prompt's tokens out of its pooling"):
        load_encoder(str(tmp_path / "model"), max_seq_length=24, prefix="mer tan ")
    load_encoder(str(tmp_path / "model"), max_seq_length=24)


def test_the_text_length_is_exported(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_encoder(str(tiny_folder), max_seq_length=10)
    save_encoder(model, tmp_path / "model")
    exported = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert exported.max_seq_length == 10
    np.testing.assert_allclose(exported.encode(TEXTS), embed(Encoder(model), tiny_folder, TEXTS, 10), atol=1e-5)
    assert np.abs(exported.encode(TEXTS[2]) - embed(Encoder(model), tiny_folder, TEXTS, 24)[2]).max() > 1e-3


def test_an_export_holds_weights_as_safetensors_only(tiny_folder: Path, tmp_path: Path) -> None:
    save_encoder(load_encoder(str(tiny_folder), max_seq_length=16), tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert "model.safetensors" in files
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))}


def test_padding_changes_no_embedding(open_encoder: OpenEncoder, tiny_folder: Path) -> None:
    encoder = open_encoder()
    together = embed(encoder, tiny_folder, TEXTS, 32)
    alone = np.concatenate([embed(encoder, tiny_folder, [text], 32) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_bf16_returns_float32_near_the_fp32_embeddings(open_encoder: OpenEncoder, tiny_folder: Path) -> None:
    full = embed(open_encoder(), tiny_folder, TEXTS, 32)
    half = embed(Encoder(open_encoder().model, precision="bf16"), tiny_folder, TEXTS, 32)
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(full - half).max() < 0.1


def test_the_width_of_embeddings_is_told(open_encoder: OpenEncoder) -> None:
    assert embedding_dim(open_encoder().model) == HIDDEN


def test_dropout_is_the_models_own_unless_given(open_encoder: OpenEncoder, tiny_folder: Path) -> None:
    encoded = BertTokenizer.from_pretrained(tiny_folder)(TEXTS[:1], return_tensors="pt")
    inputs = encoded["input_ids"], encoded["attention_mask"]

    def noise(encoder: Encoder) -> float:
        """How far training mode is from eval mode."""
        with torch.no_grad():
            return float((encoder.train()(*inputs) - encoder.eval()(*inputs)).abs().max())

    assert noise(open_encoder()) > 1e-2
    assert noise(open_encoder(dropout=0.3)) > 1e-2
    assert noise(open_encoder(dropout=0.0)) == 0.0


@pytest.mark.parametrize("kind", ["modernbert", "t5"])
def test_dropout_reaches_attention_layers_that_keep_it_as_a_number(kind: str) -> None:
    model: nn.Module
    if kind == "modernbert":
        model = ModernBertModel(
            ModernBertConfig(
                vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                attention_dropout=0.4, mlp_dropout=0.4, embedding_dropout=0.4, max_position_embeddings=32,
                pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
            )
        )  # fmt: skip
    else:
        model = T5EncoderModel(
            T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.4)
        )
    ids = torch.arange(5, 15)[None]

    def noise() -> float:
        with torch.no_grad():
            noisy = model.train()(input_ids=ids).last_hidden_state
            return float((noisy - model.eval()(input_ids=ids).last_hidden_state).abs().max())

    assert noise() > 1e-3
    set_dropout(model, 0.0)
    assert noise() == 0.0
