"""Which folder an encoder's name means, and what must not be read there; without torch, which takes seconds to
import."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from beeray.errors import EncoderError

PICKLES = ("pytorch_model*.bin", "adapter_model*.bin")
"""Weights in torch's old format, which is Python's pickle."""


def encoder_source(name: str) -> str:
    """Resolve `package:<python package>/<folder>` to a folder; anything else is returned as it is.

    Raises:
        EncoderError: the package is not installed, or a local folder holds no encoder.
    """
    if name.startswith("package:"):
        package, _, folder = name.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # a parent that is not there, or no name at all
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise EncoderError(f"encoder.name {name!r}: Python package {package!r} is not installed; pip install it")
        name = str(Path(next(iter(spec.submodule_search_locations))) / folder)
    if Path(name).is_dir() and not ((Path(name) / "modules.json").is_file() or (Path(name) / "config.json").is_file()):
        raise EncoderError(
            f"encoder.name {name!r}: the folder holds neither modules.json nor config.json, so it is no encoder; "
            "give a folder written by SentenceTransformer.save"
        )
    _refuse_pickles(name)
    return name


def _refuse_pickles(folder: str) -> None:
    """Loading a pickle can run any code; of what each module of a folder offers, safetensors alone are read."""
    for pickled in sorted(path for name in PICKLES for path in Path(folder).glob(f"**/{name}")):
        if pickled.is_file() and not any(pickled.parent.glob("*.safetensors")):
            raise EncoderError(
                f"encoder.name {folder!r}: {pickled.relative_to(folder)} is a pickle, which can run any code, and no "
                "safetensors stand beside it; where you trust it, open it with SentenceTransformer and save it anew"
            )
