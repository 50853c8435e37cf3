"""Encoders of strangers: pickles and code are not run unless asked for, and damage is one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_encoder import build_tiny_encoder

from beeray.core.encoder import load_encoder, save_encoder
from beeray.core.head import append_head
from beeray.errors import EncoderError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel
Path({ran!r}).touch()
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a head, so that there are weights in several modules."""
    folder = tmp_path_factory.mktemp("encoders")
    model = load_encoder(str(build_tiny_encoder(folder / "bare")), max_seq_length=16)
    append_head(model, 4)
    save_encoder(model, folder / "whole")
    return folder / "whole"


@pytest.fixture
def encoder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "encoder"))


def refused(encoder: Path, *expected: str, **asked: Any) -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder(str(encoder), max_seq_length=16, **asked)
    said = str(caught.value)
    assert said.startswith(f"encoder.name {str(encoder)!r}: ") and said.isprintable() and len(said) < 1000
    for piece in expected:
        assert piece in said


def change_json(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("module", [".", "2_Dense", "4_Dense"])
@pytest.mark.parametrize("harmless", [True, False])
def test_weights_that_are_a_pickle_are_refused_unread(
    encoder: Path, tmp_path: Path, module: str, harmless: bool
) -> None:
    weights = encoder / module / "model.safetensors"
    pickled = weights.with_name("pytorch_model.bin")
    if harmless:
        torch.save(safetensors.torch.load_file(weights), pickled)
    else:
        pickled.write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    load_encoder(str(encoder), max_seq_length=16)  # beside safetensors nobody opens it
    weights.unlink()
    name = pickled.relative_to(encoder)
    refused(encoder, f"{name} is a pickle, which can run any code", "open it with SentenceTransformer and save it anew")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_folder_is_not_run_unless_asked_for_with_a_commit(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (encoder / "own_code.py").write_text(CODE.format(ran=str(ran)))
    classes = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    change_json(encoder / "config.json", auto_map=classes, model_type="own")
    refused(encoder, "custom code", "it brings code of its own", "encoder.trust_remote_code and encoder.revision")
    assert not ran.exists()
    model = load_encoder(str(encoder), max_seq_length=16, trust_remote_code=True, revision=COMMIT)
    assert ran.exists() and type(model[0].model).__name__ == "OwnModel"


def test_a_module_of_another_package_is_not_imported(encoder: Path, tmp_path: Path) -> None:
    modules = json.loads((encoder / "modules.json").read_text())
    modules[-1]["type"] = "own_module.Own"
    (encoder / "modules.json").write_text(json.dumps(modules))
    (encoder / "own_module.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    refused(encoder, "own_module.Own", "encoder.trust_remote_code")
    assert not (tmp_path / "ran").exists()


def test_code_of_another_repository_is_asked_for_at_the_pinned_commit(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def cached_file(repository: Any, *names: Any, revision: Any = None, **more: Any) -> None:
        if str(repository) == "someone/elses":
            asked.append(revision)
            raise OSError("there is no network here")

    import transformers.dynamic_module_utils as dynamic

    real = dynamic.cached_file
    monkeypatch.setattr(dynamic, "cached_file", lambda *args, **more: cached_file(*args, **more) or real(*args, **more))
    classes = {"AutoConfig": "someone/elses--code.Config", "AutoModel": "someone/elses--code.Model"}
    change_json(encoder / "config.json", auto_map=classes, model_type="own")
    refused(encoder, "there is no network here", trust_remote_code=True, revision=COMMIT)
    assert asked == [COMMIT]


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "modules.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"),
        *("2_Dense/config.json", "2_Dense/model.safetensors"),
    ],
)
@pytest.mark.parametrize("left", [0, 1, 40, -3])
def test_a_file_that_is_cut_off_is_one_line(encoder: Path, name: str, left: int) -> None:
    path = encoder / name
    path.write_bytes(path.read_bytes()[:left])
    refused(encoder, "no sentence transformer could be loaded (")


def test_a_head_of_another_width_is_refused_before_anything_is_embedded(encoder: Path, tmp_path: Path) -> None:
    change_json(encoder / "3_Dense" / "config.json", in_features=31, out_features=68)
    weights = encoder / "3_Dense" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["linear.weight"] = tensors["linear.weight"][:, :31].contiguous()
    safetensors.torch.save_file(tensors, weights)
    refused(encoder, "its module Dense takes 31 dimensions and gets 32")


@pytest.mark.parametrize("name", ["linear.weight", "linear.bias"])
def test_a_head_without_some_of_its_weights_is_refused(encoder: Path, name: str) -> None:
    weights = encoder / "4_Dense" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    del tensors[name]
    safetensors.torch.save_file(tensors, weights)
    refused(encoder, "Error(s) in loading state_dict for Dense")
