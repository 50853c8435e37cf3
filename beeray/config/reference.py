"""Writes `docs/keys.md`, the page of all config keys, from the models and the docstrings of their fields.

    python -m beeray.config.reference

pydantic can read such docstrings by itself, but from the sources and whenever a class is made: that is, in every
command and every worker. Here they are read when the page is written, and at no other time.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from beeray.config.section import Section
from beeray.config.tree import Config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "keys.md"
REQUIRED, UNSET, BELOW = "–", "unset", "as below"
NAMED_BY = {"data.domains": "name", "tune.space": "key"}
"""What the keys of a mapping to sections stand for."""
COUNTS = {2: "two", 3: "three", 4: "four"}
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
ROOT_HEADING = "At the top"
NOUNS = {int: ("integer", "integers"), float: ("number", "numbers"), str: ("text", "texts"), Any: ("value", "values")}
INTRODUCTION = f"""\
# Configuration keys

Every key of a config, with its type, its default and what it means. Keys stand in the config file, section by section,
or behind a command as `key.sub=value`; an unknown one is refused with the nearest that exists. This page is written by
`python -m beeray.config.reference`.

Default `{REQUIRED}`: there is none. *{UNSET}*: null, and the meaning says what that comes to. *{BELOW}*: the section
with the defaults of its keys, which have a table of their own.
"""


@dataclass(frozen=True)
class Key:
    """A row of the page; `default` as it stands in YAML, or in words."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Part:
    """A section of the tree: where it is (empty for the root), what it says of itself, and its own keys."""

    path: str
    about: tuple[str, ...]
    keys: tuple[Key, ...]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(parts(Config)), encoding="utf-8")


def page(found: Iterable[Part]) -> str:
    """The page of a tree's parts."""
    sections = list(found)
    tops = [part.path for part in sections if part.path and "." not in part.path]
    linked = ", ".join(f"[`{name}`](#{name})" for name in tops)
    contents = textwrap.fill(f"Sections: {linked}.", 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([INTRODUCTION, f"{contents}\n", *map(_told, sections)])


def parts(model: type[Section], path: str = "", about: str = "", of_holder: Sequence[str] = ()) -> Iterator[Part]:
    """A section and, behind it, those that it holds, in the order of the tree.

    Args:
        path: dotted key of the section; empty for the root.
        about: what is said of it; the model's docstring unless given.
        of_holder: keys that it has in common with the section which holds it; they are named, and not shown again.
    """
    said, keys, below = meanings(model), [], []
    paragraphs = [about] if about else _paragraphs(inspect.getdoc(model) or "")
    if of_holder:
        named = ", ".join(f"`{name}`" for name in of_holder)
        paragraphs.append(
            f"Beside the keys here it takes those of one source, as `{path.split('.')[0]}` does: {named}."
        )
    for name, field in model.model_fields.items():
        if name in of_holder:
            continue
        key, inside, meaning = f"{path}.{name}" if path else name, _section(field.annotation), said.get(name, "")
        has_row = inside is None or _is_mapping(field.annotation) or _takes_null(field.annotation)
        if has_row:
            keys.append(Key(key, type_of(field), default_of(field), meaning))
        if inside is not None and _is_mapping(field.annotation):
            shared = tuple(one for one in inside.model_fields if one in model.model_fields)
            below.append(parts(inside, f"{key}.<{NAMED_BY[key]}>", of_holder=shared))
        elif inside is not None:
            below.append(parts(inside, key, "" if has_row else meaning))
    yield Part(path, tuple(paragraphs), tuple(keys))
    yield from chain.from_iterable(below)


def meanings(model: type[Section]) -> dict[str, str]:
    """The docstrings of a model's fields, inherited ones too, each on one line."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not issubclass(kind, Section):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(body, ast.ClassDef)
        for field, behind in pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = _docstring(behind)
                found |= {field.target.id: text} if text else {}
    return found


def type_of(field: FieldInfo) -> str:
    """A field's type with its bounds, in words; null is told where it is not the default."""
    words = _words(field.annotation, field.metadata)
    return f"{words}, or null" if _takes_null(field.annotation) and field.default is not None else words


def default_of(field: FieldInfo) -> str:
    """A field's default as YAML has it."""
    if field.is_required():
        return REQUIRED
    default = field.get_default(call_default_factory=True)
    if default is None:
        return UNSET
    return BELOW if isinstance(default, Section) else f"`{_yaml(default)}`"


def _words(annotation: Any, bounds: Sequence[Any] = (), *, several: bool = False) -> str:
    """A type in words: of one value, or (`several`) of those in a list."""
    kind, inside = get_origin(annotation), [one for one in get_args(annotation) if one is not NoneType]
    if kind is Annotated:
        further = [one for given in inside[1:] for one in (given.metadata if isinstance(given, FieldInfo) else [given])]
        return _words(inside[0], [*bounds, *further], several=several)
    if kind in (Union, UnionType):
        return ", or ".join(_words(one, bounds, several=several) for one in inside)
    if kind is Literal:
        choices = ", ".join(f"`{_yaml(one)}`" for one in inside)
        return choices if len(inside) == 1 else f"any of {choices}" if several else f"one of {choices}"
    if kind is dict:
        return f"mapping of names to {_words(inside[1], several=True)}"
    if kind is tuple and inside[-1] is not Ellipsis:
        (alike,) = set(inside)
        return f"{COUNTS[len(inside)]} {_words(alike, several=True)}"
    if kind is tuple:
        return f"list of {_words(inside[0], several=True)}{_bounds(bounds)}"
    if annotation is bool:
        return "`true` or `false`"
    if _section(annotation) is not None:
        return "sections" if several else "section"
    return NOUNS[annotation][several] + _bounds(bounds)


def _bounds(bounds: Sequence[Any]) -> str:
    told = []
    for bound in bounds:
        signs = [(sign, getattr(bound, name)) for name, sign in SIGNS.items() if hasattr(bound, name)]
        told += [f" {sign} {_yaml(limit)}" for sign, limit in signs]
        if getattr(bound, "min_length", 0):
            told.append(" not empty")
        if getattr(bound, "pattern", None):
            told.append(f" like `{bound.pattern.strip('^$')}`")
    text = ",".join(told)
    return f",{text}" if text.startswith(" not") else text


def _yaml(value: Any) -> str:
    """A value on one line, as it may be written in a config."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda sign: f"e{sign[1].strip('+')}", repr(value))
    if isinstance(value, str) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, may hold, or holds by name."""
    options = (annotation, *get_args(annotation))
    found = (one if get_origin(one) is not dict else get_args(one)[1] for one in options)
    return next((one for one in found if isinstance(one, type) and issubclass(one, Section)), None)


def _takes_null(annotation: Any) -> bool:
    return NoneType in get_args(annotation)


def _is_mapping(annotation: Any) -> bool:
    return any(get_origin(one) is dict for one in (annotation, *get_args(annotation)))


def _told(part: Part) -> str:
    """A part as Markdown: heading, what it says of itself, and the table of its keys."""
    heading = f"{'###' if '.' in part.path else '##'} `{part.path}`" if part.path else f"## {ROOT_HEADING}"
    rows = [f"| `{key.name}` | {_cell(key.type)} | {_cell(key.default)} | {_cell(key.meaning)} |" for key in part.keys]
    table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
    return "\n\n".join([heading, *part.about, *([table] if rows else [])]) + "\n"


def _docstring(node: ast.stmt) -> str:
    """A string that stands by itself, on one line; empty where a node is none."""
    value = node.value if isinstance(node, ast.Expr) else None
    text = value.value if isinstance(value, ast.Constant) else None
    return " ".join(text.split()) if isinstance(text, str) else ""


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
