"""YAML from anybody: plain values only, every key once, and no more of them than a config can need.

PyYAML's safe loader builds no objects, but takes the last of two equal keys without a word, and lets a few lines of
aliases stand for billions of values, or for themselves.
"""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 100_000


class UnfitYamlError(ValueError):
    """YAML that does not parse or is no config; what is wrong, without the piece of text (it may hold a password)."""


class UnparsedYamlError(UnfitYamlError):
    """Text that is no YAML at all."""


def parse_yaml(text: str) -> Any:
    """The value that a YAML document holds.

    Raises:
        UnparsedYamlError: it is no YAML.
        UnfitYamlError: a key stands twice, aliases stand for too much or for themselves, or it is nested too deeply.
    """
    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise UnparsedYamlError(_what_is_wrong(error)) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UnparsedYamlError(_what_is_wrong(error)) from None
    except RecursionError:
        raise UnfitYamlError("it is nested too deeply") from None
    except UnfitYamlError:
        raise
    except (ValueError, OverflowError):  # e.g. month 13, or more digits than Python reads
        raise UnparsedYamlError("a value looks like a date or a number and is none; put it in quotes") from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, those behind aliases every time."""
    size = known.get(id(node))
    if size == 0:
        raise UnfitYamlError(f"an alias stands for a value that holds it {_place(node.start_mark)}")
    if size is not None:
        return size
    known[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node)
    for below in node.value if isinstance(node, yaml.CollectionNode) else ():
        for one in below if isinstance(below, tuple) else (below,):
            size += _size(one, known)
            if size > MOST_NODES:
                raise UnfitYamlError(f"it stands for more than {MOST_NODES:,} values {_place(node.start_mark)}")
    known[id(node)] = size
    return size


def _refuse_twice(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        if (key.tag, key.value) in seen:
            raise UnfitYamlError(f"a key stands twice {_place(key.start_mark)}; leave one of them out")
        seen.add((key.tag, key.value))


def _what_is_wrong(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return "it cannot be parsed"
    return f"{getattr(error, 'problem', None) or 'it cannot be parsed'} {_place(mark)}"


def _place(mark: yaml.Mark) -> str:
    return f"(line {mark.line + 1}, column {mark.column + 1})"
