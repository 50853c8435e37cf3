"""Paths as they are typed: what looks like a place elsewhere, and would become a folder of that name here."""

from __future__ import annotations

import re

URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")
"""How a URI begins, also one that lacks a slash."""


def mistyped(path: str) -> str:
    """What is wrong with a local path, and what to give; empty when nothing is."""
    scheme = None if "://" in path else URI.match(path)
    if scheme:
        return f"a URI has two slashes after its scheme; give {scheme[1]}://…"
    return "~ is not expanded; give the whole path" if path.startswith("~") else ""
