"""What an encoder is, whatever it is called and wherever it lies: one digest."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers.dynamic_module_utils import get_relative_import_files

IDLE_SETTINGS = {
    "_name_or_path",
    "architectures",
    "dtype",  # of the file; weights are digested as they were loaded
    "initializer_range",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Settings of a network that move no vector, beside those of dropout."""
OWN_CODE = "transformers_modules"
"""Package in which transformers puts the code that an encoder brings along."""


def model_fingerprint(model: SentenceTransformer) -> str:
    """Digest of an encoder's weights, modules, settings of its network, tokenizer and own code: 16 hex digits.

    Two folders with the same content have the same one; a changed weight, activation, pooling or vocabulary
    changes it.
    Text length and prefix are not part of it, they are settings of whoever encodes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for module in model.children():
        describe = getattr(module, "get_config_dict", None)
        settings = dict(describe()) if callable(describe) else {}
        settings.pop("max_seq_length", None)
        settings["network"] = _network_settings(getattr(module, "config", None))
        digest.update(f"{type(module).__name__}|{json.dumps(settings, sort_keys=True, default=str)}|".encode())
    for name, source in _own_code(model):
        digest.update(f"{name}|{hashlib.sha256(source).hexdigest()}|".encode())
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if tokenizer is not None:
        rules = json.loads(tokenizer.to_str())
        rules.pop("padding", None)  # its own padding and truncation are never used
        rules.pop("truncation", None)
        digest.update(json.dumps(rules, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _own_code(model: SentenceTransformer) -> list[tuple[str, bytes]]:
    """Name and content of the Python files that an encoder brought along (`trust_remote_code`) and uses, sorted.

    Others of the same repository may lie beside them on one machine and not on the next.
    """
    classes = {type(module) for module in model.modules()}
    brought = {inspect.getsourcefile(one) for one in classes if one.__module__.partition(".")[0] == OWN_CODE}
    files = {Path(one) for file in brought if file for one in (file, *get_relative_import_files(file))}
    return sorted((file.name, file.read_bytes()) for file in files)


def _network_settings(config: Any) -> Any:
    """What a Hugging Face config says beyond its defaults: the same weights make another network with more heads."""
    if not hasattr(config, "to_json_string"):
        return None
    return json.loads(
        config.to_json_string(use_diff=True),
        object_hook=lambda found: {
            key: value for key, value in found.items() if key not in IDLE_SETTINGS and "dropout" not in key
        },
    )
