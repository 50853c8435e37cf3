"""Low-rank adapters and frozen layers on a real encoder: what moves, and what the exported folder needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_encoder import build_tiny_encoder, build_tiny_mpnet

from beeray.config import TrainConfig, validate_config
from beeray.core.encoder import load_encoder, save_encoder
from beeray.core.head import append_head, head_units
from beeray.errors import ConfigError, EncoderError
from beeray.runtime.adaptation import adapt, check_adaptation, check_head
from beeray.runtime.warm_start import check_peft

TEXTS = ["ba ban bo", "fa fi fus fer fol"]
LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("adapted") / "encoder", dropout=0.0)


def opened(folder: Path) -> SentenceTransformer:
    return load_encoder(str(folder), max_seq_length=32)


def embedded(model: SentenceTransformer) -> torch.Tensor:
    return torch.from_numpy(model.encode(TEXTS, show_progress_bar=False))


def trained(model: SentenceTransformer) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained(folder: Path) -> None:
    model = opened(folder)
    before = embedded(model)
    adapt(model, TrainConfig(lora=LORA), seed=1)
    assert torch.equal(embedded(model), before)
    names = trained(model)
    assert names and all("lora_" in name for name in names)
    assert sum("layer.1.attention.self.query" in name for name in names) == 2


def test_adapters_start_from_the_seed(folder: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        model = opened(folder)
        state = torch.get_rng_state()
        adapt(model, TrainConfig(lora=LORA), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return next(parameter for name, parameter in model.named_parameters() if "lora_A" in name)

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_merged_adapters_are_in_the_exported_weights_and_the_folder_opens_without_peft(
    folder: Path, tmp_path: Path
) -> None:
    model = opened(folder)
    untouched = embedded(model)
    adaptation = adapt(model, TrainConfig(lora=LORA), seed=1)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    moved = embedded(model)
    assert float((moved - untouched).abs().max()) > 0.1
    adaptation.merge()
    assert model.state_dict().keys() == opened(folder).state_dict().keys()
    save_encoder(model, tmp_path / "out")
    assert not list((tmp_path / "out").glob("**/adapter*"))
    program = (
        "import sys; sys.modules['peft'] = None\n"
        "from sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({str(tmp_path / 'out')!r}, device='cpu')\n"
        f"print(model.encode({TEXTS!r}, show_progress_bar=False).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(eval(done.stdout.splitlines()[-1])), moved, atol=1e-5, rtol=0)


def test_frozen_layers_take_their_adapters_with_them(folder: Path) -> None:
    model = opened(folder)
    adaptation = adapt(model, TrainConfig(lora=LORA, freeze_layers=1), seed=1)
    assert adaptation.frozen is not None
    assert {name.split(".")[4] for name in trained(model) if ".layer." in name} == {"1"}


def test_prefixes_of_an_exported_encoder_are_sentence_transformers_own(folder: Path) -> None:
    model = SentenceTransformer(str(folder), device="cpu", truncate_dim=8)
    cut = torch.from_numpy(model.encode(TEXTS, show_progress_bar=False, normalize_embeddings=True))
    whole = embedded(opened(folder))[:, :8]
    torch.testing.assert_close(cut, torch.nn.functional.normalize(whole, dim=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"lora": {"targets": ["nope"]}}, r"train\.lora\.targets \['nope'\]: Target modules .* not found"),
        ({"lora": {"targets": ["LayerNorm"]}}, r"train\.lora\.targets \['LayerNorm'\]: Target module LayerNorm"),
        ({"freeze_layers": 3}, r"train\.freeze_layers is 3: the encoder has 2 layers; lower it"),
        ({"freeze_layers": 2}, r"train\.freeze_layers is 2: that is every layer, and nothing is left to train"),
        ({"matryoshka_dims": [8, 32]}, r"train\.matryoshka_dims has 32: the embeddings have 32 numbers"),
    ],
)
def test_what_does_not_fit_the_encoder_is_refused_in_one_line(
    folder: Path, train: dict[str, Any], expected: str
) -> None:
    with pytest.raises(EncoderError, match=expected) as caught:
        check_adaptation(opened(folder), TrainConfig(**train))
    assert "\n" not in str(caught.value)


def test_a_head_of_another_width_than_the_encoder_has_already_is_refused(folder: Path) -> None:
    model = opened(folder)
    check_head(model, TrainConfig(head={"units": 6}))
    append_head(model, 6)
    assert head_units(model) == 6
    check_head(model, TrainConfig(head={"units": 6}))
    check_head(model, TrainConfig())
    with pytest.raises(EncoderError, match=r"train\.head\.units is 8: .* has a head of 6 units, which is kept; set it"):
        check_head(model, TrainConfig(head={"units": 8}))


def test_every_layer_may_be_frozen_below_a_head(folder: Path) -> None:
    check_adaptation(opened(folder), TrainConfig(freeze_layers=2, head={}))
    headed = opened(folder)
    append_head(headed, 6)  # as an earlier run left it
    check_adaptation(headed, TrainConfig(freeze_layers=2))


def test_adapters_without_peft_are_refused_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate_config({"name": "a", "data": {"source": "shop"}, "train": {"lora": {}}})
    check_peft(config)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"train\.lora needs peft, which is not installed: pip install"):
        check_peft(config)
    check_peft(validate_config({"name": "a", "data": {"source": "shop"}}))


def test_adapters_and_frozen_layers_fit_an_mpnet_and_are_merged_into_it(tmp_path: Path) -> None:
    folder = build_tiny_mpnet(tmp_path / "mpnet", dropout=0.0)
    model = opened(folder)
    before = embedded(model)
    adaptation = adapt(model, TrainConfig(lora={**LORA, "targets": ["q", "v"]}, freeze_layers=1), seed=1)
    assert torch.equal(embedded(model), before)
    names = trained(model)
    assert len(names) == 4 and all(".layer.1.attention.attn." in name and "lora_" in name for name in names)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    moved = embedded(model)
    assert float((moved - before).abs().max()) > 1e-2
    adaptation.merge()
    assert list(model.state_dict()) == list(opened(folder).state_dict())
    save_encoder(model, tmp_path / "out")
    plain = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    torch.testing.assert_close(embedded(plain), moved, atol=1e-5, rtol=0)
