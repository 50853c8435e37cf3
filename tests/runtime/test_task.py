"""Which encoders a worker opens, and at which revision."""

from __future__ import annotations

from typing import Any

import pytest

from beeray.config import validate_config
from beeray.runtime.task import WorkerTask


def test_the_encoder_that_is_compared_with_is_opened_at_its_own_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, Any]] = []
    monkeypatch.setattr("beeray.core.encoder.load_encoder", lambda name, **how: opened.append((name, how["revision"])))
    pinned = {"name": "hub/original", "revision": "a" * 40}
    config = validate_config({"name": "a", "data": {"source": "shop"}, "encoder": pinned})
    encoder = config.encoder.model_copy(update={"name": "runs/a/model", "revision": None})
    nothing: Any = None
    task = WorkerTask(
        config.model_copy(update={"encoder": encoder}),
        nothing,
        "",
        nothing,
        "runs/a/model",
        original="hub/original",
        original_revision="a" * 40,
    )
    task.open_encoder("cpu")
    task.open_original("cpu")
    assert opened == [("runs/a/model", None), ("hub/original", "a" * 40)]
