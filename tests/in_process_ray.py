"""Ray Data's part of preparing done in this process, one block after the other.

Everything else is the real thing: tables, tasks, staging, the leakage check. A Ray dataset takes half a second to
start, so hundreds of damaged inputs would take an hour; `test_prepare_store.py` has Ray itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data


class Blocks:
    """A dataset: rows of Python objects at first, then Arrow tables."""

    def __init__(self, blocks: Iterable[Any]) -> None:
        self.blocks = blocks

    def map_batches(
        self,
        work: Callable[..., Any],
        *,
        batch_size: int | None,
        batch_format: str,
        fn_kwargs: Mapping[str, Any] | None = None,
        **resources: Any,
    ) -> Blocks:
        """What `work` makes of each block."""

        def done() -> Iterator[pa.Table]:
            for block in self.blocks:
                made = work(block, **(fn_kwargs or {}))
                yield from [made] if isinstance(made, pa.Table) else made

        return Blocks(done())

    def iter_batches(self, *, batch_size: int | None, batch_format: str) -> Iterator[pa.Table]:
        """The blocks."""
        yield from self.blocks


def from_items(items: list[dict[str, Any]], *, override_num_blocks: int) -> Blocks:
    """One block an item, as a task of a batch of one sees it."""
    return Blocks([{name: _array(value) for name, value in item.items()} for item in items])


def _array(value: Any) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


@contextmanager
def in_process_ray() -> Iterator[None]:
    """Do without Ray, and without waiting for the disk, until the context ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(ray.data, "from_items", from_items)
        patch.setattr(ray, "put", lambda value: value)
        patch.setattr(ray, "get", lambda value: value)
        patch.setattr(
            "beeray.data.preparation.in_tasks", lambda work, inputs, **shared: (work(one, **shared) for one in inputs)
        )
        yield
