"""What a run writes down when a loss becomes no number."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from beeray.config import validate_config
from beeray.runtime.run_folder import RunFolder
from beeray.verbs.train import _blamed


@pytest.mark.parametrize("items", [[0, 2], []])
def test_a_loss_is_blamed_on_its_items_and_users_even_where_all_items_are_well(
    tmp_path: Path, items: list[int]
) -> None:
    folder = RunFolder(validate_config({"name": "a", "runs_dir": str(tmp_path), "data": {"source": "shop"}}))
    folder.path.mkdir(parents=True)
    ids = pa.chunked_array([["a", "b"], ["c"]])
    store: Any = SimpleNamespace(item_ids=lambda: ids, user_ids=lambda users: [f"u{one}" for one in users])
    said = _blamed(folder, store, {"step": 3, "items": items, "users": [7], "num_items": 4, "num_users": 2})
    assert f"Embeddings of {len(items)} of its 4 items" in said and "losses of 1 of its 2 users" in said
    (path,) = folder.path.glob("*.json")
    assert json.loads(path.read_text()) == {"step": 3, "item_ids": ["a", "c"][: len(items)], "user_ids": ["u7"]}
