"""Workers and nodes that are lost are the cluster's trouble, exit code 2; a defect in a task stays a defect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    UserCodeException,
    WorkerCrashedError,
)
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.storage import StorageContext

from beeray.config import ClusterConfig
from beeray.data.streaming import drain, in_tasks, what_it_says
from beeray.errors import BeerayError, DataError, LostWorkersError
from beeray.runtime.launch import _what_failed

OUT_OF_MEMORY = (
    "Task was killed due to the node running low on memory.\n"
    "Memory on the node (IP: 10.0.0.7) was 15.2GB / 16GB, which exceeds the threshold of 0.95.\n"
    "Top 10 memory users:\nPID\tMEM(GB)\tCOMMAND\n123\t9.1\tray::f\n"
    "Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/oom.html."
)


def of_a_task(cause: Exception) -> Exception:
    """As `ray.get` raises it."""
    trace = f'Traceback (most recent call last):\n  File "a.py", line 3, in f\n    g()\n{type(cause).__name__}: {cause}'
    made: Exception = RayTaskError("f", trace, cause, proctitle="ray::f", pid=1, ip="10.0.0.7").as_instanceof_cause()
    return made


LOST = [
    (WorkerCrashedError(), "The worker died unexpectedly while executing this task."),
    (NodeDiedError("the node 10.0.0.7 is gone"), "the node 10.0.0.7 is gone"),
    (OutOfMemoryError(OUT_OF_MEMORY), "Task was killed due to the node running low on memory. Memory on the node"),
    (of_a_task(WorkerCrashedError()), "WorkerCrashedError: The worker died unexpectedly"),
]
DEFECTS = [of_a_task(KeyError("text")), UserCodeException("f"), KeyError("text"), RayError("cannot be pickled")]


def dataset(error: Exception) -> Any:
    """One whose second block is lost."""

    def batches(**_: Any) -> Iterator[str]:
        yield "block"
        raise error

    return SimpleNamespace(iter_batches=batches)


def task(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def get(_: Any) -> Any:
        raise error

    monkeypatch.setattr(ray, "remote", lambda **_: lambda work: SimpleNamespace(remote=work))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "get", get)
    return in_tasks(lambda one: one, range(3))


@pytest.mark.parametrize(("error", "said"), LOST)
def test_lost_workers_are_one_line_that_says_what_happened(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in (drain(dataset(error)), task(error, monkeypatch)):
        with pytest.raises(LostWorkersError) as caught:  # a nightly job does it again
            list(work)
        line = str(caught.value)
        assert line.startswith(f"the cluster lost work on the data ({said}") and "\n" not in line
        assert line.endswith("run the same command again") and "http" not in line


@pytest.mark.parametrize("error", DEFECTS, ids=lambda error: type(error).__name__)
def test_a_defect_in_a_task_stays_one(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    for work in (drain(dataset(error)), task(error, monkeypatch)):
        with pytest.raises(type(error)) as caught:
            list(work)
        assert caught.value is error and not isinstance(error, BeerayError)


def test_what_a_task_raised_for_the_user_comes_before_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    error = WorkerCrashedError()
    error.__cause__ = of_a_task(DataError("a.csv: no such file"))
    for work in (drain(dataset(error)), task(error, monkeypatch)):
        with pytest.raises(DataError, match=r"^a\.csv: no such file$"):
            list(work)


def test_a_disk_that_the_nodes_do_not_share_is_quoted_and_not_a_link(tmp_path: Path) -> None:
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="checkpoints")
    (tmp_path / "checkpoints" / ".validate_storage_marker").unlink()
    with pytest.raises(RuntimeError) as caught:
        storage._check_validation_file()
    trace = f'Traceback (most recent call last):\n  File "a.py", line 3, in f\n    g()\nRuntimeError: {caught.value}'
    failed = WorkerGroupError("a worker", {1: UserExceptionWithTraceback(caught.value, trace)})
    said = _what_failed(failed, ClusterConfig())
    assert "worker 1 failed and cluster.max_failures is 2 (RuntimeError: Unable to set up cluster storage" in said
    assert "Check that all nodes in the cluster have read/write access to the configured storage path" in said
    assert "http" not in said


def test_an_error_without_a_word_is_quoted_by_its_type() -> None:
    assert what_it_says(KeyError()) == "KeyError"
    assert what_it_says(RuntimeError("\x1b[36mone\x1b[0m\n\n  id: 7\ntwo")) == "one two"
