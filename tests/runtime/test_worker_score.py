"""What is kept of the catalog's embeddings is kept of all of it, whichever domains are scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from beeray.runtime import worker


class Task:
    """What `score` asks of a worker's task."""

    class config:
        class evaluate:
            splits = ("test",)

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, name: str, **_: Any) -> None:
        self.sent.append(name)

    def known_items(self) -> None:
        return None


@pytest.mark.parametrize("keeps", [True, False])
def test_the_whole_catalog_is_embedded_where_its_embeddings_are_kept(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    kept: list[torch.Tensor] = []
    catalog = torch.ones(2, 3)

    def score_splits(*given: Any, whole: bool, **_: Any) -> tuple[list[Any], dict[str, float]]:
        asked.append(whole)
        given[6](catalog)
        return [], {}

    monkeypatch.setattr(worker, "score_splits", score_splits)
    monkeypatch.setattr(worker, "rank", lambda: 0)
    task: Any = Task()
    nothing: Any = None
    worker.score(task, nothing, nothing, nothing, torch.device("cpu"), "after", keep=kept.append if keeps else None)
    assert (asked, len(kept)) == ([keeps], int(keeps))
    assert task.sent == ["scores"]
