"""From a YAML file and dotted overrides to a validated tree."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from beeray.config.credentials import redact_uri
from beeray.config.explain import explain
from beeray.config.paths import root
from beeray.config.tree import Config
from beeray.config.tune import Dimension
from beeray.config.yaml_text import UnfitYamlError, UnparsedYamlError, parse_yaml
from beeray.errors import ConfigError

SPACE = ["tune", "space"]
CONFIGS_DIR = Path(__file__).resolve().parents[2] / "configs"


def load_config(reference: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key.sub=value` overrides, validate once.

    Args:
        reference: path as given, or a name looked up under `configs/`.
        overrides: dotted `key=value` strings; values are parsed as YAML.

    Raises:
        ConfigError: file not found, YAML that does not parse, unknown key (the nearest valid one is
            named), a value of the wrong type or range, or `BEERAY_ROOT` is no absolute path.
    """
    root()
    path = _find(reference)
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not valid YAML: it is no UTF-8 text") from None
    except UnfitYamlError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a file that this user may read") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}, must be a mapping of config keys")
    for override in overrides:
        _apply(tree, override)
    tree.setdefault("name", path.stem)
    return validate_config(tree, where=str(path))


def validate_config(tree: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a plain mapping into a `Config`, with one clear line on the first error."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, Config)}") from None


def _find(reference: str) -> Path:
    names = (reference, f"{reference}.yaml")
    tried = [Path(reference), *(folder / name for folder in (Path("configs"), CONFIGS_DIR) for name in names)]
    for path in tried:
        with contextlib.suppress(OSError):  # a name that no file can have
            if path.is_file():
                return path
    known = sorted(p.name for p in CONFIGS_DIR.glob("*.yaml"))
    raise ConfigError(
        f"--config {reference!r}: no such file, here or under configs/ (there are: {', '.join(known) or 'none'})"
    )


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {redact_uri(override)!r}: must be of the form key.sub=value, e.g. train.lr=2e-5")
    try:
        value = parse_yaml(text)
    except UnparsedYamlError:
        value = text
    except UnfitYamlError as error:
        raise ConfigError(f"override of {redact_uri(key)!r}: {error}") from None
    if _is_text(value, text):
        value = text
    *parents, leaf = _path(key)
    if parents[:2] == SPACE and len(parents) == 3:  # a form takes the place of the one that the key has
        parents, leaf, value = SPACE, parents[2], {leaf: value}
    node = tree
    for parent in parents:
        below = node.get(parent)
        node[parent] = below = dict(below) if isinstance(below, dict) else {}
        node = below
    node[leaf] = value


def _is_text(value: Any, text: str) -> bool:
    """Whether an override is text as it was typed, though as YAML it would be less, or something else.

    YAML takes blanks off its ends, a ` #` and what is behind it for a comment, `query: ` for a mapping, and `{title}`,
    a template, for one of a key without a value. What is quoted is as YAML says.
    """
    if isinstance(value, str):
        return text.strip()[:1] not in ("'", '"')
    if isinstance(value, dict):
        return not text.lstrip().startswith("{") or (bool(value) and ":" not in text)
    return False


def _path(key: str) -> list[str]:
    """The parts of a key; what is searched in `tune.space` is one, dots and all, and then perhaps its form."""
    parts = key.split(".")
    if parts[:2] != SPACE or len(parts) < 4:
        return parts
    formed = parts[-1] in Dimension.model_fields
    searched = ".".join(parts[2:-1] if formed else parts[2:])
    return [*SPACE, searched, *(parts[-1:] if formed else ())]
