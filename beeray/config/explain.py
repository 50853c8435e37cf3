"""pydantic's validation errors as the one line that a user reads."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

SHOWN = 200


def explain(error: ValidationError, tree: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line; an unknown key with the nearest valid one.

    Args:
        tree: the model that was validated.
    """
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        valid = _keys_beside(path, tree)
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])!r}?" if near else f"valid keys here: {', '.join(valid)}"
        return f"unknown key {'.'.join(path)!r}; {hint}{more}"
    if first["type"] == "missing":
        return f"{'.'.join(path)}: required key is missing{more}"
    path = [
        part
        for part, before in zip(path, ["", *path], strict=False)  # a dotted key of tune.space is one part
        if part.replace(".", "").isidentifier() or before == "domains"  # names of domains may hold more
    ]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{message}{more}"
    shown = repr(first["input"])
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
    return f"{'.'.join(path)} is {shown}: {message[0].lower()}{message[1:]}{more}"


def _keys_beside(path: Sequence[str], tree: type[BaseModel]) -> list[str]:
    reached: list[Any] = [tree]
    for part in path[:-1]:
        reached = [inside for one in reached for inside in _below(one, part)]
    return list(reached[0].model_fields) if reached and hasattr(reached[0], "model_fields") else []


def _below(kind: Any, key: str) -> list[Any]:
    """The models and mappings that a model's or a mapping's key may hold."""
    if get_origin(kind) is dict:
        annotation = get_args(kind)[1]
    elif isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
        annotation = kind.model_fields[key].annotation
    else:
        return []
    options = [annotation, *get_args(annotation)]
    return [
        one
        for one in options
        if get_origin(one) is dict or (isinstance(one, type) and not get_origin(one) and issubclass(one, BaseModel))
    ]
