"""What README.md and docs/*.md tell readers to type and to set is there: verbs, flags, configs, keys, links.

Lines quoted from beeray are checked by test_troubleshooting_doc.py, Python blocks on embeddings by
data/test_reading_embeddings.py, docker's and kubectl's files by cluster/test_cluster_page.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doc_pages import (
    FILES,
    KEY,
    PROGRAMS,
    ROOT,
    SETTING,
    Page,
    commands,
    config_mistake,
    default_of,
    is_key,
    make_targets,
    merged,
    parse,
    ray_mistake,
    slug,
    yaml_mistake,
)
from test_troubleshooting_doc import is_said, quoted, said
from tiny_encoder import build_tiny_encoder

from beeray.config import load_config, validate_config
from beeray.errors import BeerayError

PAGES = [Page.of(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
OWN_DATA = Page.of(ROOT / "docs" / "own-data.md")
THEIRS = re.compile(r"^\| `--.*?\|", re.MULTILINE)
"""First cells of docs/coming-from-beeformer.md: another program's flags."""


def by_name(page: Page) -> str:
    return page.name


def wrong_commands(page: Page, folder: Path) -> list[str]:
    """Commands that would be refused before they do anything."""
    files = {name: text for one in (*linked(page), page) for name, text in one.files.items()}
    wrong = []
    for line in page.command_lines():
        for words in commands(line):
            mistake = wrong_command(words, files, folder)
            wrong += [f"{line}: {mistake}"] if mistake else []
    return wrong


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
    if program != "python" or words[1].startswith(("-", "<")) and words[1] != "-m":
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
        wrong += [f"{key}: no such key" for key in keys if not is_key(re.sub(r"<\w+>", "name", key))]
        setting = SETTING.fullmatch(span)
        if setting and keys and not wrong and not re.search(r"[…|<{]", setting[2]):
            mistake = yaml_mistake(_nested(setting[1], setting[2]))
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
        cells = row[-1].strip("`\" ").split(", ")
        if len(cells) != len(keys):
            cells = [row[-1]] * len(keys)
        for key, cell in zip(keys, cells, strict=True):
            default = default_of(key)
            if default is not None and not _tells(cell.strip("\"` "), default):
                wrong.append(f"{key}: the default is {default!r}, the page says {cell!r}")
    return wrong


def _tells(cell: str, default: object) -> bool:
    told = "" if cell in ("–", "none") else yaml.safe_load(json.dumps(cell)) if isinstance(default, str) else cell
    if isinstance(default, str):
        return told == default or bool(told) and default.endswith(f"/{told}")
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
    text = THEIRS.sub("|", page.prose)
    comments = "\n".join(line.partition(" # ")[2] for line in page.text.splitlines() if line.startswith("    "))
    spans = " ".join(re.findall(r"`(--[^`]+)`", text))
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", f"{spans} {comments}")) - known_flags())


def known_flags() -> set[str]:
    """All options of beeray's commands, by their sources, and those of Ray's jobs."""
    sources = [*(ROOT / "beeray").glob("*.py"), ROOT / "beeray" / "data" / "download.py"]
    ours = {flag for path in sources for flag in re.findall(r'"(--[a-z][\w-]*)"', path.read_text())}
    return ours | {"--no-wait", "--working-dir"}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_name_what_is_there_and_are_accepted(page: Page, tmp_path: Path) -> None:
    assert wrong_commands(page, tmp_path) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_keys_and_their_values_are_the_config_trees(page: Page) -> None:
    assert wrong_keys(page) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_defaults_in_tables_are_those_of_the_config(page: Page) -> None:
    assert wrong_defaults(page) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_configs_that_are_shown_are_valid(page: Page) -> None:
    shown = [text for language, text in page.fenced if language == "yaml"] + list(page.files.values())
    assert [mistake for text in shown if (mistake := yaml_mistake(text))] == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page: Page) -> None:
    assert wrong_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_flags_belong_to_a_verb(page: Page) -> None:
    assert wrong_flags(page) == []


def test_every_page_is_linked_from_the_readme() -> None:
    readme = PAGES[0]
    assert {f"docs/{page.name.rpartition('/')[2]}" for page in PAGES[1:]} - set(readme.links) == set()


def test_what_the_pages_have_is_found() -> None:
    """Otherwise nothing would be checked."""
    lines = [line for page in PAGES for line in page.command_lines()]
    assert len(lines) > 80
    assert {"tiny-shop.yaml"} == set(OWN_DATA.files)
    assert "shop.yaml" in PAGES[0].files
    assert len([span for page in PAGES for span in page.spans if KEY.search(span)]) > 150
    assert sum(len(page.links) for page in PAGES) > 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    python -m beeray.trian --config goodbooks\n", "no such verb"),
        ("    python jobs/trian.py --config goodbooks\n", "no such verb"),
        ("    python -m beeray.train --config goodbooks --frsh\n", "--frsh"),
        ("    python -m beeray.train --config shop.yaml\n", "neither under configs/ nor shown"),
        ("    python -m beeray.train --config goodbooks train.lt=1\n", "train.lt"),
        ("    python -m beeray.train --config goodbooks \\\n        train.lr=-1\n", "train.lr"),
        ("    ray job submit --workingdir . -- python -m beeray.train --config goodbooks\n", "--workingdir"),
        ("    ray job submit --working-dir . -- python -m beeray.trian --config goodbooks\n", "no such verb"),
        ("    make demmo\n", "demmo"),
        ("Type `python -m beeray.train\n--config goodbuks` now.\n", "goodbuks"),
        ("```bash\npithon -m beeray.train\n```\n", "nobody checks"),
        ("    python benchmarks/scaling_model.py --mfuu 0.3\n", "--mfuu"),
    ],
)
def test_a_wrong_command_is_found(text: str, expected: str, tmp_path: Path) -> None:
    (found,) = wrong_commands(Page("a page", text), tmp_path)
    assert expected in found


def test_a_config_may_be_shown_on_the_page_or_written_by_it(tmp_path: Path) -> None:
    command = "    python -m beeray.train --config shop train.lr=1\n"
    shown = "```yaml\n# shop.yaml\nsplit: {kind: item}\n```\n"
    written = "```bash\ncat > shop.yaml <<'EOF'\nsplit: {kind: item}\nEOF\n```\n"
    for block in (shown, written):
        assert wrong_commands(Page("a page", block + command), tmp_path) == []
        assert wrong_commands(Page("a page", block.replace("item", "itm") + command), tmp_path) != []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`train.lt`", "train.lt"),
        ("`cluster.num_workers.x`", "cluster.num_workers.x"),
        ("`data.domains.<name>.wait`", "data.domains.<name>.wait"),
        ("`{train.lt: {choice: [1]}}`", "train.lt"),
        ("`split.kind: itm`", "split.kind"),
        ("`train.lr=-1`", "train.lr"),
    ],
)
def test_a_wrong_key_is_found(text: str, expected: str) -> None:
    (found,) = wrong_keys(Page("a page", f"Set {text}.\n"))
    assert expected in found


def test_keys_files_and_modules_are_told_apart() -> None:
    text = "`train.lr`, `train.lora.rank`, `data.domains.<name>.weight`, `encoder.*`, `train.py`, `beeray.train.x`\n"
    assert wrong_keys(Page("a page", text)) == []


@pytest.mark.parametrize(
    ("row", "is_wrong"),
    [
        ("| `train.epochs` | how long | 5 |", False),
        ("| `train.epochs` | how long | 6 |", True),
        ("| `train.lr`, `train.optimizer` | | 1e-5, nadam |", False),
        ("| `train.lr`, `train.optimizer` | | 1e-5, adamw |", True),
        ("| `train.relu` | | false |", True),
        ("| `train.top_k` | | all |", False),
    ],
)
def test_a_wrong_default_is_found(row: str, is_wrong: bool) -> None:
    page = Page("a page", f"| key | what | default |\n|---|---|---|\n{row}\n")
    assert bool(wrong_defaults(page)) is is_wrong


def test_a_wrong_link_flag_or_config_is_found() -> None:
    page = Page("a page", "## A b, c\n\n[a](nothing.md), [b](#a-b), [c](design.md#no), [d](#a-b-c), `--freshly`\n")
    assert len(wrong_links(page)) == 3
    assert wrong_flags(page) == ["--freshly"]
    assert yaml_mistake("train: {lr: 1e-5}") == ""
    assert "lrr" in yaml_mistake("train: {lrr: 1e-5}")


def test_lines_that_the_page_on_own_data_quotes_are_said_by_the_code() -> None:
    text = re.sub(r"^```.*?^```$", "", OWN_DATA.text, flags=re.MULTILINE | re.DOTALL)
    lines = quoted(text)
    assert len(lines) > 12
    assert [line for line in lines if not is_said(line, said())] == []
