"""pydantic's validation errors as the one line that a user reads."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError


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
    path = [part for part in path if part.replace(".", "").isidentifier()]  # a dotted key of tune.space is one part
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{message}{more}"
    return f"{'.'.join(path)} is {first['input']!r}: {message[0].lower()}{message[1:]}{more}"


def _keys_beside(path: Sequence[str], tree: type[BaseModel]) -> list[str]:
    model: Any = tree
    for part in path[:-1]:
        if part not in model.model_fields:  # a key of a mapping of sections
            continue
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
