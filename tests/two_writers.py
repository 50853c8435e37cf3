"""Two that write the same file at once: the second does all of its work while the first has half of its own done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def second_writer(monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, write: Callable[[], Any]) -> list[str]:
    """Has another writer write everything when the first one has called a function, before that goes on.

    Returns:
        the function's name, once that has happened.
    """
    came: list[str] = []
    original = getattr(owner, function)

    def called(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        if not came:
            came.append(function)
            write()
        return result

    monkeypatch.setattr(owner, function, called)
    return came
