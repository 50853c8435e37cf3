"""Measuring the int8 scale: an actor that dies is told in one line, and vectors that are no numbers do not count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from beeray.config import validate_config
from beeray.data.embedding_format import EmbeddingFormat, Vectors
from beeray.errors import DataError, EncoderError, RunError
from beeray.runtime import embedder

RAYS = """The actor died unexpectedly before finishing this task.
\tclass_name: Embedder
\tactor_id: 7d8c
\tpid: 4242
The worker process was killed: out of memory. See https://docs.ray.io/en/latest for more."""


def measure(monkeypatch: pytest.MonkeyPatch, answer: Exception | Vectors) -> float:
    """Measure with an actor of this answer; it must not be left alive."""
    killed: list[str] = []

    def get(_: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

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
    task: Any = SimpleNamespace(use_gpu=False, prefix="", max_seq_length=32, format=EmbeddingFormat("int8", 3, False))
    config = validate_config({"name": "a", "data": {"source": "shop"}})
    try:
        return embedder.calibrated(config, task, "{}", ["a"])
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


def test_vectors_that_will_be_set_aside_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.full((4, 3), 2.54, np.float32)
    vectors[1, 2], vectors[3, 0] = np.nan, np.inf
    assert measure(monkeypatch, vectors) == pytest.approx(0.02)
    with pytest.raises(DataError, match="2 of 2 vectors hold NaN or infinity; check the encoder"):
        measure(monkeypatch, vectors[[1, 3]])
