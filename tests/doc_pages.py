"""A page of documentation taken apart: commands, config files that it shows, code spans, links.

Placeholders are told by their look: `…`, `<name>`, and names in capitals (`--config C`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("bash", "sh", "shell", "console")
PROGRAMS = ("python", "make", "ray", "docker", "kubectl", "export", "chmod", "mkdir", "cd", "cat", ".")
"""What commands may begin with. `docker` and `kubectl` are checked by tests/cluster/test_cluster_page.py."""
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

    @property
    def mentioned(self) -> list[str]:
        """Spans that begin with a program."""
        return [span for span in self.spans if span.startswith(("python ", "make ", "ray "))]

    def command_lines(self) -> Iterator[str]:
        """What is to be typed as it stands: lines of blocks that begin with a program."""
        for language, text in FENCE.findall(self.text):
            if language in SHELL:
                yield from _lines(HEREDOC.sub(r"\g<line>", text))
        bare = FENCE.sub("", self.text)
        for block in INDENTED.findall(bare):
            yield from (line for line in _lines(block) if line.startswith(tuple(f"{one} " for one in PROGRAMS)))


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
