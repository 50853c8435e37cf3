"""An encoder actor that dies while the int8 scale is measured is told in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from beeray.config import validate_config
from beeray.errors import EncoderError, RunError
from beeray.runtime import embedder

RAYS = """The actor died unexpectedly before finishing this task.
\tclass_name: Embedder
\tactor_id: 7d8c
\tpid: 4242
The worker process was killed: out of memory. See https://docs.ray.io/en/latest for more."""


def measure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Measure with an actor whose answer is an error; it must not be left alive."""
    killed: list[str] = []

    def get(_: Any) -> Any:
        raise error

    actor = SimpleNamespace(embed=SimpleNamespace(remote=lambda ids, lengths: None))
    started = SimpleNamespace(remote=lambda task: actor)
    cluster = SimpleNamespace(
        remote=lambda **options: lambda kind: started,
        get=get,
        kill=lambda one: killed.append("ours" if one is actor else "another"),
        exceptions=ray.exceptions,
    )
    monkeypatch.setattr(embedder, "ray", cluster)
    monkeypatch.setattr(embedder, "tokenise", lambda *_: (None, None))
    task: Any = SimpleNamespace(use_gpu=False, prefix="", max_seq_length=32, format=SimpleNamespace(prepare=None))
    config = validate_config({"name": "a", "data": {"source": "shop"}})
    try:
        embedder.calibrated(config, task, "{}", ["a"])
    finally:
        assert killed == ["ours"]


def test_what_ray_says_in_many_lines_is_told_in_one_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError) as caught:
        measure(monkeypatch, ray.exceptions.RayError(RAYS))
    said = str(caught.value)
    assert "\n" not in said and "actor_id" not in said and "https" not in said
    assert "(The actor died unexpectedly before finishing this task. The worker process was killed: out of mem" in said
    assert said.endswith("run the same command again")


def test_an_error_of_ours_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = ray.exceptions.RayError("in an actor")
    wrapped.__cause__ = EncoderError("encoder.name 'x': no sentence transformer could be loaded")
    with pytest.raises(EncoderError, match=r"^encoder.name 'x': no sentence transformer could be loaded$"):
        measure(monkeypatch, wrapped)
