"""What is wrong with a page of documentation: commands that would be refused, keys, defaults, links and flags.

Each `wrong_…` takes a page and returns a line for every mistake.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import yaml
from doc_pages import PROGRAMS, ROOT, Page, commands
from pydantic import BaseModel

from beeray.config import CONFIGS_DIR, Config, load_config, validate_config
from beeray.errors import BeerayError, ConfigError

MINIMAL: dict[str, Any] = {"name": "minimal", "data": {"source": "shop"}}
FILES = ("py", "html", "json", "jsonl", "yaml", "md", "log", "parquet", "npy", "csv", "db", "txt")
SECTIONS = [name for name, field in Config.model_fields.items() if isinstance(field.annotation, type(BaseModel))]
KEY = re.compile(rf"(?<![\w./<-])(?:{'|'.join(SECTIONS)})(?:\.(?:\w+|<\w+>|\*))+")
SETTING = re.compile(rf"({KEY.pattern}|seed|name|runs_dir)(?:=|: )(.+)")
FOLDERS = ("configs", "jobs", "beeray", "benchmarks", "tests", "docs", "cluster", "core", "runtime", "reporting")
TAGS = ("beeray.status", "beeray.reason")
"""Of MLflow runs; no modules."""
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
THEIRS = re.compile(r"^\| `--.*?\|", re.MULTILINE)
"""First cells of docs/coming-from-beeformer.md: another program's flags."""


def wrong_commands(page: Page, folder: Path) -> list[str]:
    """Commands that would be refused before they do anything."""
    files = {name: text for one in (*linked(page), page) for name, text in one.files.items()}
    typed = [(line, words) for line in page.command_lines() for words in commands(line)]
    typed += [(span, words) for span in page.mentioned for words in commands(span) if not only_named(words)]
    found = [(line, wrong_command(words, files, folder)) for line, words in typed]
    return [f"{line}: {mistake}" for line, mistake in found if mistake] + wrong_names(page)


def only_named(words: list[str]) -> bool:
    """Whether a program is talked about, without arguments."""
    return words[0] == "python" and not arguments_of(words)


def wrong_names(page: Page) -> list[str]:
    """Programs that are talked about and paths of code spans that are not there."""
    named = [words for span in page.mentioned for words in commands(span) if only_named(words)]
    paths = [words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1] for words in named]
    paths += [span for span in page.spans if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+", span)]
    modules = [span for span in page.spans if re.fullmatch(r"beeray\.[a-z_]+", span)]
    paths += [module.replace(".", "/") + ".py" for module in modules if module not in TAGS]
    there = [path for path in paths for root in (ROOT, ROOT / "beeray") if is_there(root / path)]
    return [f"{path}: no such file" for path in paths if path not in there]


def is_there(path: Path) -> bool:
    return path.exists() or path.with_suffix("").is_dir()


def linked(page: Page) -> list[Page]:
    """Pages that a page sends its readers to."""
    paths = [(page.folder / link.partition("#")[0]).resolve() for link in page.links]
    return [Page.of(path) for path in paths if path.suffix == ".md" and path.is_file()]


def wrong_command(words: list[str], files: dict[str, str], folder: Path) -> str:
    program = words[0]
    if program not in PROGRAMS:
        return f"nobody checks {program!r}"
    if program == "make":
        unknown = set(words[1:]) - make_targets()
        return f"no target {', '.join(sorted(unknown))}" if unknown else ""
    if program == "ray":
        return ray_mistake(words)
    if program != "python" or (words[1].startswith(("-", "<")) and words[1] != "-m"):
        return ""
    arguments, refused = parse(words, folder)
    if arguments is None:
        return refused
    reference = getattr(arguments, "config", None)
    return config_mistake(reference, arguments.overrides, files, folder) if reference else ""


def wrong_keys(page: Page) -> list[str]:
    """Dotted keys of code spans that the config tree does not have, and settings with a value that it does not take."""
    wrong = []
    for span in page.spans:
        if span.startswith(("python ", "ray ", "make ")):
            continue
        keys = [key for key in KEY.findall(span) if key.rpartition(".")[2] not in FILES]
        unknown = [key for key in keys if not is_key(re.sub(r"<\w+>", "name", key))]
        wrong += [f"{key}: no such key" for key in unknown]
        pieces = span.split() if re.fullmatch(r"(\S+=\S+ ?)+", span) else [span]
        settings = [SETTING.fullmatch(piece) for piece in pieces if not unknown]
        for setting in settings:
            mistake = (
                "" if not setting or re.search(r"[…|<{]", setting[2]) else yaml_mistake(_nested(*setting.groups()))
            )
            wrong += [f"{span}: {mistake}"] if mistake else []
    return wrong


def _nested(key: str, value: str) -> str:
    tree = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return yaml.safe_dump(tree)


def wrong_defaults(page: Page) -> list[str]:
    """Rows of tables of keys whose last cell is not the default; where the default is null, words explain it."""
    wrong = []
    rows = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in page.prose.splitlines() if line.startswith("| `")]
    tables = re.findall(r"^\| key \|.*\| default \|\n\|.*\n((?:\|.*\n)+)", page.prose, re.MULTILINE)
    inside = "".join(tables)
    for row in rows:
        keys = re.findall(r"`([\w.]+)`", row[0])
        if f"| {row[0]} |" not in inside or not all(is_key(key) for key in keys):
            continue
        cells = row[-1].strip('`" ').split(", ")
        if len(cells) != len(keys):
            cells = [row[-1]] * len(keys)
        for key, cell in zip(keys, cells, strict=True):
            default = default_of(key)
            if default is not None and not _tells(cell.strip('"` '), default):
                wrong.append(f"{key}: the default is {default!r}, the page says {cell!r}")
    return wrong


def _tells(cell: str, default: object) -> bool:
    told = "" if cell in ("–", "none") else yaml.safe_load(json.dumps(cell)) if isinstance(default, str) else cell
    if isinstance(default, str):
        return told == default or (bool(told) and default.endswith(f"/{told}"))
    return validated(cell) == default


def validated(cell: str) -> object:
    value = yaml.safe_load(cell)
    if isinstance(value, str):
        try:
            return float(value)  # PyYAML reads 1e-5 as a string
        except ValueError:
            return value
    return value


def wrong_links(page: Page) -> list[str]:
    """Links to files or headings that are not there."""
    wrong = []
    for link in page.links:
        target, _, anchor = link.partition("#")
        path = (page.folder / target).resolve() if target else None
        if path is not None and not path.exists():
            wrong.append(f"{link}: no such file")
        elif anchor:
            text = page.text if path is None else path.read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            wrong += [] if anchor in map(slug, headings) else [f"{link}: no such heading"]
    return wrong


def wrong_flags(page: Page) -> list[str]:
    """Flags of code spans and of comments behind commands that no verb has."""
    theirs = set(FLAG.findall(" ".join(THEIRS.findall(page.prose))))
    comments = "\n".join(line.partition(" # ")[2] for line in page.text.splitlines() if line.startswith("    "))
    spans = " ".join(span for span in page.spans if span.startswith("--"))
    return sorted(set(FLAG.findall(f"{spans} {comments}")) - theirs - known_flags())


def known_flags() -> set[str]:
    """All options of beeray's commands, by their sources, and those of Ray's jobs."""
    sources = [*(ROOT / "beeray").glob("*.py"), ROOT / "beeray" / "data" / "download.py"]
    ours = {flag for path in sources for flag in re.findall(r'"(--[a-z][\w-]*)"', path.read_text())}
    return ours | {"--help", "--no-wait", "--working-dir"}


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


def arguments_of(words: list[str]) -> list[str]:
    """What a Python command is given."""
    return words[3:] if words[1] == "-m" else words[2:]


def parse(words: list[str], folder: Path) -> tuple[argparse.Namespace | None, str]:
    """Have a Python command parse its arguments, by its own parser; what it says where it refuses them.

    Args:
        folder: an empty one, in which the runs are made that the arguments name.
    """
    given = [re.sub(r"<(\w+)>", r"\1", word) for word in arguments_of(words)]
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
    """What is wrong with a command's config and overrides, as `named_config` reads them; empty where nothing is."""
    try:
        named_config(reference, overrides, files, folder)
    except BeerayError as error:
        return str(error)
    return ""


def named_config(reference: str, overrides: list[str], files: Mapping[str, str], folder: Path) -> Config:
    """The config that a command names, with its overrides.

    Args:
        files: config files that readers have seen; they go before those of `configs/`.
        folder: where such a file is written to be read.

    Raises:
        BeerayError: there is none of that name, or something in it or in the overrides is wrong.
    """
    name = f"{reference.removesuffix('.yaml')}.yaml"
    path = folder / name
    if reference.startswith("runs/") or re.fullmatch(r"[A-Z]+", reference):  # what a run left; a placeholder
        path = folder / "minimal.yaml"
        path.write_text(yaml.safe_dump(MINIMAL))
    elif name in files:
        path.write_text(yaml.safe_dump(merged(files[name])))
    elif any((CONFIGS_DIR / one).is_file() for one in (reference, name)):
        path = Path(reference)
    else:
        raise ConfigError(f"--config {reference}: neither under configs/ nor shown in full")
    return load_config(str(path), [one for one in overrides if "…" not in one])


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
