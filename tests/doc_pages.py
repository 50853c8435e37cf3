"""A page of documentation taken apart: commands, config files, dotted keys, links; and what is wrong with them.

Placeholders are told by their look: `…`, `<name>`, and names in capitals (`--config C`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import yaml
from pydantic import BaseModel

from beeray.config import CONFIGS_DIR, Config, load_config, validate_config
from beeray.errors import BeerayError

ROOT = Path(__file__).resolve().parents[1]
MINIMAL: dict[str, Any] = {"name": "minimal", "data": {"source": "shop"}}
SHELL = ("bash", "sh", "shell", "console")
PROGRAMS = ("python", "make", "ray", "docker", "kubectl", "export", "chmod", "mkdir", "cd", "cat", ".")
"""What commands may begin with. `docker` and `kubectl` are checked by tests/cluster/test_cluster_page.py."""
FILES = ("py", "html", "json", "jsonl", "yaml", "md", "log", "parquet", "npy", "csv", "db", "txt")
SECTIONS = [name for name, field in Config.model_fields.items() if isinstance(field.annotation, type(BaseModel))]
KEY = re.compile(rf"(?<![\w./<-])(?:{'|'.join(SECTIONS)})(?:\.(?:\w+|<\w+>|\*))+")
SETTING = re.compile(rf"({KEY.pattern}|seed|name|runs_dir)(?:=|: )(.+)")
HEREDOC = re.compile(r"^(?P<line>.*<<'(?P<end>\w+)'.*)\n(?P<body>(?:.*\n)*?)(?P=end)$", re.MULTILINE)
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """A page: its text, and the folder that its links are relative to."""

    name: str
    text: str
    folder: Path = ROOT / "docs"

    @classmethod
    def of(cls, path: Path) -> Page:
        """The page in a file."""
        return cls(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"), path.parent)

    @property
    def fenced(self) -> list[tuple[str, str]]:
        """Language and content of each fenced block."""
        return [(match[1], match[2]) for match in FENCE.finditer(self.text)]

    @property
    def prose(self) -> str:
        """The page without its blocks."""
        return INDENTED.sub("\n", FENCE.sub("", self.text))

    @property
    def spans(self) -> list[str]:
        """Code spans of the prose, those that go over a line's end in one piece."""
        return [re.sub(r"\s+", " ", match) for match in re.findall(r"(?<!`)`([^`]+)`(?!`)", self.prose)]

    @property
    def links(self) -> list[str]:
        """Where links go that are no web addresses."""
        return [link for link in re.findall(r"\]\(([^)\s]+)\)", self.prose) if "://" not in link]

    @property
    def files(self) -> dict[str, str]:
        """Config files that are shown in full: a YAML block with a name, or one that a shell block writes."""
        found: dict[str, str] = {}
        for language, text in self.fenced:
            if language == "yaml":
                named = re.match(r"# (\S+\.yaml)\n", text) or re.search(r"^name: (\S+)$", text, re.MULTILINE)
                if named:
                    found[named[1].removesuffix(".yaml") + ".yaml"] = text
            for match in HEREDOC.finditer(text) if language in SHELL else ():
                written = re.search(r"> (\S+\.yaml)", match["line"])
                if written:
                    found[written[1]] = match["body"]
        return found

    def command_lines(self) -> Iterator[str]:
        """Whatever is to be typed: lines of blocks that begin with a program, and spans that do."""
        for language, text in FENCE.findall(self.text):
            if language in SHELL:
                yield from _lines(HEREDOC.sub(r"\g<line>", text))
        bare = FENCE.sub("", self.text)
        for block in INDENTED.findall(bare):
            yield from (line for line in _lines(block) if line.startswith(tuple(f"{one} " for one in PROGRAMS)))
        yield from (span for span in self.spans if span.startswith(("python ", "make ", "ray ")))


def _lines(block: str) -> Iterator[str]:
    lines = (line.strip() for line in block.replace("\\\n", " ").splitlines())
    yield from (line for line in lines if line and not line.startswith("#"))


def commands(line: str) -> list[list[str]]:
    """The words of each command on a line, a submitted one as one of its own; the comment is left out."""
    words = [word for word in shlex.split(line, comments=True) if word != "…"]
    found: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|", ";", "--"):
            found.append([])
        else:
            found[-1].append(word)
    return [one for one in found if one]


class Parsed(Exception):
    """A command has taken its arguments apart; nothing else was done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.arguments = arguments


def entry_point(words: list[str]) -> Callable[[], object]:
    """`main` of `python -m MODULE` or `python FILE`.

    Raises:
        FileNotFoundError: there is none.
    """
    module = words[1] == "-m"
    path = ROOT / (Path(*words[2].split(".")).with_suffix(".py") if module else words[1])
    spec = importlib.util.spec_from_file_location(f"entry_of_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look there
    with _in_path(str(ROOT), str(path.parent)):
        spec.loader.exec_module(loaded)
    main: Callable[[], object] = loaded.main
    return main


@contextlib.contextmanager
def _in_path(*folders: str) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = before


def parse(words: list[str], folder: Path) -> tuple[argparse.Namespace | None, str]:
    """Have a Python command parse its arguments, by its own parser; what it says where it refuses them.

    Args:
        folder: an empty one, in which the runs are made that the arguments name.
    """
    given = words[3:] if words[1] == "-m" else words[2:]
    for run in (word for word in given if word.startswith("runs/") and ":" not in word):
        (folder / run).mkdir(parents=True, exist_ok=True)
        if not run.endswith(".yaml"):
            (folder / run / "config.yaml").write_text(yaml.safe_dump(MINIMAL))
    said, argv, plain = io.StringIO(), sys.argv, argparse.ArgumentParser.parse_args
    mixed = argparse.ArgumentParser.parse_intermixed_args

    def caught(original: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
        def parse_and_stop(self: argparse.ArgumentParser, *arguments: Any, **named: Any) -> argparse.Namespace:
            argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_intermixed_args = plain, mixed
            raise Parsed(original(self, *arguments, **named))

        return parse_and_stop

    try:
        main = entry_point(words)
        sys.argv = [words[1], *given]
        argparse.ArgumentParser.parse_args = caught(plain)  # type: ignore[method-assign]
        argparse.ArgumentParser.parse_intermixed_args = caught(mixed)  # type: ignore[method-assign]
        with contextlib.redirect_stderr(said), contextlib.chdir(folder):
            main()
    except Parsed as parsed:
        return parsed.arguments, ""
    except FileNotFoundError:
        return None, "there is no such verb or file"
    except SystemExit:
        return None, (said.getvalue().splitlines() or ["it ends"])[-1]
    finally:
        sys.argv = argv
        argparse.ArgumentParser.parse_args = plain  # type: ignore[method-assign]
        argparse.ArgumentParser.parse_intermixed_args = mixed  # type: ignore[method-assign]
    raise AssertionError(f"{words}: parses no arguments")


def ray_mistake(words: list[str]) -> str:
    """An option that Ray's own command does not have; empty where there is none."""
    from ray.dashboard.modules.job.cli import job_cli_group
    from ray.scripts.scripts import cli

    group, rest = (job_cli_group, words[2:]) if words[1] == "job" else (cli, words[1:])
    assert isinstance(group, click.Group)
    command = group.commands.get(rest[0])
    if command is None:
        return f"ray has no {rest[0]!r}"
    known = {option for parameter in command.params for option in parameter.opts}
    unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - known
    return f"ray has no {', '.join(sorted(unknown))}" if unknown else ""


def make_targets() -> set[str]:
    """Targets of the Makefile that are no files."""
    return set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())  # type: ignore[index]


def config_mistake(reference: str, overrides: list[str], files: Mapping[str, str], folder: Path) -> str:
    """What is wrong with a command's config and overrides; empty where nothing is.

    Args:
        files: config files that readers have seen.
    """
    if reference.startswith("runs/") or re.fullmatch(r"[A-Z]+", reference):  # what a run left; a placeholder
        (folder / "minimal.yaml").write_text(yaml.safe_dump(MINIMAL))
        reference = str(folder / "minimal.yaml")
    elif f"{reference.removesuffix('.yaml')}.yaml" in files:
        path = folder / f"{reference.removesuffix('.yaml')}.yaml"
        path.write_text(yaml.safe_dump(merged(files[path.name])))
        reference = str(path)
    elif not any((CONFIGS_DIR / name).is_file() for name in (reference, f"{reference}.yaml")):
        return f"--config {reference}: neither under configs/ nor shown in full"
    try:
        load_config(reference, [one for one in overrides if "…" not in one])
    except BeerayError as error:
        return str(error)
    return ""


def merged(text: str) -> dict[str, Any]:
    """A piece of a config over the least that a config must have."""
    tree = yaml.safe_load(text)
    least = dict(MINIMAL)
    if {"source", "domains"} & set(tree.get("data") or {}):
        del least["data"]
    return _over(least, tree)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _over(below[key], value) if isinstance(value, Mapping) and isinstance(below.get(key), Mapping) else value
        for key, value in above.items()
    }
    return {**below, **both}


def yaml_mistake(text: str) -> str:
    """What is wrong with a YAML block; empty where nothing is."""
    try:
        validate_config(merged(text))
    except (BeerayError, yaml.YAMLError) as error:
        return str(error).splitlines()[0]
    return ""


def is_key(key: str) -> bool:
    """Whether a dotted key is one of the config tree: a value, or a section where it ends in `.*`."""
    kinds: list[Any] = [Config]
    for part in key.split("."):
        if part == "*":
            return bool(kinds)
        kinds = [below for kind in kinds for below in _below(kind, part)]
    return bool(kinds)


def _below(kind: Any, key: str) -> list[Any]:
    if get_origin(kind) is dict:
        inside = get_args(kind)[1]
    elif isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
        inside = kind.model_fields[key].annotation
    else:
        return []
    return [inside, *(get_args(inside) if get_origin(inside) is not dict else ())]


def default_of(key: str) -> Any:
    """The default of a dotted key; None also where the section that it is in is not there."""
    node: Any = Config
    for part in key.split("."):
        options = [node, *get_args(node)]
        model = next(one for one in options if isinstance(one, type) and issubclass(one, BaseModel))
        field = model.model_fields[part]
        if field.is_required():
            node, default = field.annotation, "required"
        else:
            node, default = field.annotation, field.get_default(call_default_factory=True)
    return default


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
