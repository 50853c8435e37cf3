"""Config files and overrides from anybody: one line that says what and where, nothing run, nothing waited for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from beeray.config import Config, load_config
from beeray.config.yaml_text import UnfitYamlError, parse_yaml
from beeray.errors import BeerayError, ConfigError

GOOD = "name: x\ndata: {source: shop}\n"
LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


def refusal(folder: Path, content: str | bytes, *overrides: str) -> str:
    """The one line of a config that is refused, soon."""
    path = folder / "c.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), overrides)
    assert time.process_time() - started < 20
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1500, said
    return said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: !!python/object/apply:os.system ['touch ran']\n", "could not determine a constructor"),
        ("a: !!python/object/new:os.system ['touch ran']\n", "could not determine a constructor"),
        ("a: !!python/name:os.system\n", "could not determine a constructor"),
        ("a: !!python/module:os\n", "could not determine a constructor"),
        ("!!python/tuple [1]\n", "could not determine a constructor"),
        ("a: !own {}\n", "could not determine a constructor"),
        (LAUGHS, "it stands for more than 100,000 values (line "),
        (GOOD + "a: &a [*a]\n", "an alias stands for a value that holds it (line 3"),
        (GOOD + "a: &a {b: {c: *a}}\n", "an alias stands for a value that holds it"),
        (GOOD + "seed: 1\nseed: 2\n", "a key stands twice (line 4, column 1)"),
        ("name: x\ndata: {source: shop, source: tables}\n", "a key stands twice (line 2, column 22)"),
        (GOOD + "a: *nothing\n", "undefined alias"),
        ("[" * 3000, "it is nested too deeply"),
        ("a: " + "{b: " * 3000, "it is nested too deeply"),
        (GOOD + "seed: 2024-13-45\n", "a value looks like a date or a number and is none"),
        (GOOD + "seed: 0b_\n", "a value looks like a date or a number and is none"),
        (GOOD + f"seed: {'9' * 5000}\n", "a value looks like a date or a number and is none"),
        (GOOD + "? [1, 2]\n: 3\n", "found unhashable key"),
        (GOOD + "---\n" + GOOD, "but found another document"),
        ("", "must be a mapping"),
        ("- a\n", "holds list, must be a mapping"),
        ("\x00", "not valid YAML"),
        ("\x07", "not valid YAML"),
        ("{a: b", "not valid YAML"),
        ("\tname: x", "not valid YAML"),
        (b"name: caf\xe9", "it is no UTF-8 text"),
        ("name: x".encode("utf-16"), "it is no UTF-8 text"),
        (GOOD + "1: 2\n", "1"),
        (GOOD + "null: 2\n", "None"),
    ],
)  # fmt: skip
def test_yaml_that_is_no_config_is_refused_in_one_line(
    tmp_path: Path, text: str | bytes, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_what_aliases_and_merges_are_for_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }
    monkeypatch.setattr("beeray.config.yaml_text.MOST_NODES", 7)
    assert parse_yaml("a: &a [1]\nb: *a\n") == {"a": [1], "b": [1]}  # the whole, two keys, two lists, two numbers
    with pytest.raises(UnfitYamlError, match="it stands for more than 7 values"):
        parse_yaml("a: &a [1, 1]\nb: *a\n")
    (tmp_path / "c.yaml").write_text(GOOD, encoding="utf-8-sig")
    assert load_config(str(tmp_path / "c.yaml")).name == "x"


@pytest.mark.parametrize(
    "override", ["seed=&a [*a]", f"seed={{{LAUGHS.replace(chr(10), ', ')}}}", "seed={a: 1, a: 2}", "seed=" + "[" * 3000]
)
def test_overrides_are_held_to_the_same(tmp_path: Path, override: str) -> None:
    assert refusal(tmp_path, GOOD, override).startswith("override of 'seed': ")


@pytest.mark.parametrize(
    "key", ["train.lr", "train.weight_decay", "data.min_value", "evaluate.recall_at", "train.distill_weight"]
)
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, key: str, value: str) -> None:
    said = refusal(tmp_path, GOOD, f"{key}=[{value}]" if key.endswith("_at") else f"{key}={value}")
    assert f"{key} is " in said and "finite" in said


@pytest.mark.parametrize("reference", ["x" * 5000, "\x00", "a\nb", "\ud800", "/dev/null/x", "~"])
def test_a_name_that_no_file_can_have_is_no_such_file(reference: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(reference)
    assert str(caught.value).startswith("--config '") and str(caught.value).isprintable()


def test_a_value_of_megabytes_is_shown_by_its_beginning(tmp_path: Path) -> None:
    assert "…" in refusal(tmp_path, GOOD + f"seed: {'x' * 10_000_000}\n")


def keys(section: Any, before: str = "") -> list[str]:
    """Every dotted key of the config, sections included."""
    found = []
    for name, value in section:
        found.append(f"{before}{name}")
        if hasattr(type(value), "model_fields"):
            found += keys(value, f"{before}{name}.")
    return found


KEYS = keys(Config.model_validate({"name": "x", "data": {"source": "shop"}}))
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "a/b", "s3://b/p", "x\ny", "\x1b[31m", "1e-3", "all", "", " "]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), ANYTHING, min_size=1, max_size=3))
def test_any_value_under_any_key_is_refused_in_one_line_or_valid(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    tree: dict[str, Any] = {"name": "x", "data": {"source": "shop"}}
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        node = tree
        for parent in parents:
            below = node.get(parent)
            node[parent] = below = below if isinstance(below, dict) else {}
            node = below
        node[leaf] = value
    path = Path(str(tmp_path_factory.getbasetemp())) / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        load_config(str(path))
    except BeerayError as error:
        assert str(error).isprintable() and len(str(error)) < 1500, str(error)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(text=st.text(st.sampled_from("a:{}[]&*!|>-? \n\t'\"#%@,0.é\x00"), max_size=40) | st.binary(max_size=30))
def test_any_text_is_yaml_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    path = Path(str(tmp_path_factory.getbasetemp())) / "text.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert str(caught.value).isprintable()
