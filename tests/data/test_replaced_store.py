"""A store that another command replaces while it is read: whoever reads it hears so, and nothing mixes two stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beeray.data.parts import write_part
from beeray.data.splits import TEST, TRAIN
from beeray.data.staging import Staging
from beeray.data.storage import write_json
from beeray.data.store import META, Store
from beeray.data.store_meta import StoreMeta
from beeray.errors import StoreError
from beeray.runtime.launch import read_training_users
from beeray.runtime.task import WorkerTask

NUM_USERS = 6


def put(folder: Path, fingerprint: str) -> Store:
    """Publish a store of four items, the last of which is held out, as preparation does."""
    path = str(folder / "store")
    with Staging(path) as staging:
        users = Path(staging.path) / "users"
        users.mkdir()
        rows = {
            "user_index": pa.array(np.arange(NUM_USERS), pa.int32()),
            "split": pa.array(np.zeros(NUM_USERS, np.int8)),
            "item_indices": pa.array([[0, 1, 2, 3]] * NUM_USERS, pa.list_(pa.int32())),
            "splits": pa.array([[TRAIN, TRAIN, TRAIN, TEST]] * NUM_USERS, pa.list_(pa.int8())),
        }
        write_part(pa.table(rows), str(users / "part-00000.parquet"))
        trained = {"train": NUM_USERS}
        of_parts = {"train": [NUM_USERS]}
        meta = StoreMeta(fingerprint, "item", ["a"], 4, NUM_USERS, 24, {}, {}, {}, trained, of_parts)
        write_json(str(Path(staging.path) / META), dataclasses.asdict(meta))
        staging.publish()
    return Store.open(path)


def train_on(store: Store) -> list[pa.Table]:
    """What an epoch reads."""
    batch = {"path": store.user_paths(), "first": [0], "last": [NUM_USERS]}
    return list(read_training_users(batch, store, False))


def open_as_a_worker(store: Store) -> Store:
    """What a worker does first."""
    config: Any = None
    return WorkerTask(config, store, "", None, "").open_store()


READERS: list[Callable[[Store], Any]] = [
    train_on,
    open_as_a_worker,
    lambda store: list(store.evaluation_users("test", 4)),
    lambda store: store.training_interactions(False),
]


@pytest.mark.parametrize("read", READERS)
def test_who_reads_a_store_hears_when_another_has_taken_its_place(tmp_path: Path, read: Callable[[Store], Any]) -> None:
    opened = put(tmp_path, "one")
    read(opened)
    put(tmp_path, "one")  # anew, and the same
    read(opened)
    put(tmp_path, "another")
    with pytest.raises(StoreError, match=r"store '.*/store' was replaced or removed while it was read: .* again, and"):
        read(opened)
    read(Store.open(opened.path))


def test_a_store_that_is_replaced_in_the_middle_of_scoring_makes_no_figure(tmp_path: Path) -> None:
    blocks = put(tmp_path, "one").evaluation_users("test", 2)
    next(blocks)
    put(tmp_path, "another")
    with pytest.raises(StoreError, match=r"was replaced"):
        list(blocks)
