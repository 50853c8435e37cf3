"""The page of all config keys is what the models and the docstrings of their fields make of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
import yaml
from doc_pages import ROOT
from pydantic import Field

from beeray.config import Config, Dimension, flatten_config, reference, validate_config
from beeray.config.section import Fraction, Section

ROW = re.compile(r"^\| `([^`]+)` \| (.+) \| (.+) \| (.*) \|$", re.MULTILINE)
GIVEN: dict[str, Any] = {
    "name": "shop",
    "data": {"source": "tables", "catalog": {"path": "c.csv"}, "interactions": {"path": "i.csv"}},
    "train": {"head": {}, "lora": {}},
    "embed": {"catalog": {"path": "c.csv"}},
}
"""With every section that may be null."""
OF_DOMAINS: dict[str, Any] = {"name": "shop", "data": {"domains": {"books": {"source": "shop"}}}}


class Inner(Section):
    """Inside."""

    depth: float = Field(1e-5, gt=0, le=2)
    """How deep,
    in metres."""


class Outer(Section):
    """Outside.

    More of it.
    """

    kind: Literal["a|b"] | None = None
    """Of what kind: `a|b`."""
    number: int
    inner: Inner = Inner()
    """The one inside."""
    other: Inner | None = None
    """The other."""


def rows_of(page: str) -> dict[str, tuple[str, ...]]:
    """Type, default and meaning by key."""
    found = [match.groups() for match in ROW.finditer(page)]
    assert len({key for key, *_ in found}) == len(found), "a key stands twice"
    return {key: tuple(cells) for key, *cells in found}


def written() -> dict[str, tuple[str, ...]]:
    return rows_of(reference.PAGE.read_text(encoding="utf-8"))


def leaves() -> Iterator[tuple[str, Any]]:
    """Every key that the model has, and its value, told by configs that give as little as they can."""
    yield from flatten_config(validate_config(GIVEN)).items()
    mixed = flatten_config(validate_config(OF_DOMAINS))
    yield "data.domains.<name>.weight", mixed["data.domains.books.weight"]
    split = {key: value for key, value in mixed.items() if key.startswith("data.domains.books.split.")}
    yield from ((key.replace("books", "<name>"), value) for key, value in split.items())
    yield from ((f"tune.space.<key>.{name}", None) for name in Dimension.model_fields)


def value_of(cell: str) -> Any:
    value = yaml.safe_load(cell.strip("`"))
    if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value):
        return float(value)  # PyYAML reads 1e-5 as a string
    return value


def test_the_page_is_up_to_date() -> None:
    made = reference.page(reference.parts(Config))
    assert reference.PAGE.read_text(encoding="utf-8") == made, "run python -m beeray.config.reference"


def test_every_key_is_on_the_page_once_with_a_meaning() -> None:
    rows, keys = written(), {key for key, _ in leaves()}
    assert len(keys) > 180
    assert keys - rows.keys() == set()
    assert [key for key, (*_, meaning) in rows.items() if not meaning] == []


def test_every_default_is_the_models() -> None:
    rows, given = written(), {f"data.{key}" for key in ("source", "catalog.path", "interactions.path")}
    given |= {"name", "embed.catalog.path"}
    shown = {key: rows[key][1] for key, _ in leaves() if key not in given}
    wrong = [
        (key, shown[key], value)
        for key, value in leaves()
        if key not in given and (None if shown[key] == reference.UNSET else value_of(shown[key])) != value
    ]
    assert wrong == []
    assert {rows[key][1] for key in given} == {
        reference.REQUIRED,
        reference.UNSET,
    }  # data.source is null beside domains


def test_keys_of_domains_and_of_a_search_space_are_told_once_and_sources_where_data_has_them() -> None:
    rows = written()
    assert [key for key in rows if key.startswith("data.domains.<name>.") and ".split." not in key] == [
        "data.domains.<name>.weight"
    ]
    assert "tune.space.<key>.loguniform" in rows
    (domains,) = [part for part in reference.parts(Config) if part.path == "data.domains.<name>"]
    assert all(f"`{key}`" in domains.about[-1] for key in ("source", "min_value", "catalog"))


def test_a_page_follows_its_models() -> None:
    page = reference.page(reference.parts(Outer))
    assert "| `kind` | `a\\|b` | unset | Of what kind: `a\\|b`. |" in page
    assert "| `number` | integer | – |  |" in page
    assert "| `other` | section | unset | The other. |" in page
    assert "| `inner.depth` | number > 0, ≤ 2 | `1e-5` | How deep, in metres. |" in page
    assert "Outside.\n\nMore of it.\n" in page
    assert "## `inner`\n\nThe one inside.\n" in page and "## `other`\n\nInside.\n" in page
    assert [key for key, (*_, meaning) in rows_of(page).items() if not meaning] == ["number"]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "`true` or `false`"),
        (Annotated[int, Field(ge=2)] | Literal["all"], "integer ≥ 2, or `all`"),
        (Fraction | Annotated[int, Field(ge=1)], "number > 0, < 1, or integer ≥ 1"),
        (tuple[Fraction, Fraction], "two numbers > 0, < 1"),
        (tuple[Annotated[int, Field(ge=1)], ...], "list of integers ≥ 1"),
        (Annotated[tuple[str, ...], Field(min_length=1)], "list of texts, not empty"),
        (tuple[Literal["a", "b"], ...], "list of any of `a`, `b`"),
        (Annotated[str, Field(pattern="^[a-z]+$")], "text like `[a-z]+`"),
        (dict[str, Inner], "mapping of names to sections"),
    ],
)
def test_types_and_bounds_are_told_in_words(annotation: Any, words: str) -> None:
    model = type("Made", (Section,), {"__annotations__": {"field": annotation}})
    assert reference.type_of(model.model_fields["field"]) == words


def test_null_is_told_where_it_is_not_the_default() -> None:
    types = {key: told for key, (told, *_) in written().items()}
    assert types["data.min_value"] == "number, or null"
    assert types["tune.asha"] == "section, or null"
    assert types["train.max_steps"] == "integer ≥ 1"


def test_it_is_written_without_torch_or_ray() -> None:
    program = (
        "import sys, beeray.config.reference; print(sorted({'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout == "[]\n", done.stderr
