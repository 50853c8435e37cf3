"""Embeddings that are no numbers are refused by all ranks at once, whichever of them made the embedding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from test_gather import on_ranks
from tiny_encoder import SYLLABLES, ListTokens, build_tiny_encoder

from beeray.config import validate_config
from beeray.core.encoder import Encoder, load_encoder
from beeray.core.gather import sum_over_ranks
from beeray.data.parts import write_part
from beeray.data.store import Store, StoreMeta
from beeray.errors import NotFiniteError
from beeray.runtime.scoring import embed_catalog

NUM_ITEMS, BAD = 12, 4


def body(folder: str, rank: int, world_size: int) -> dict[str, Any]:
    texts = [" ".join(SYLLABLES[item : item + 2]) for item in range(NUM_ITEMS)]
    texts[BAD] = "z"
    tokens: Any = ListTokens.of_texts(Path(folder) / "encoder", texts)
    tokens.num_items = NUM_ITEMS
    encoder = Encoder(load_encoder(f"{folder}/encoder", max_seq_length=16)).eval()
    with torch.no_grad():
        encoder.model[0].model.embeddings.word_embeddings.weight[tokens.texts[BAD][1]] = 3e38
    config = validate_config({"name": "a", "data": {"source": "shop"}, "encoder": {"max_seq_length": 16}})
    store = Store(f"{folder}/store", StoreMeta("f", "item", ["a"], NUM_ITEMS, 0, 0, {}, {}, {}, {}))
    try:
        embed_catalog(encoder, config, store, tokens, torch.device("cpu"))
    except NotFiniteError as error:
        made = [int(item) for items in tokens.gathered for item in items]
        return {"said": str(error), "made": BAD in made, "all": sum_over_ranks([1.0], "cpu")}
    return {}


@pytest.mark.parametrize("world_size", [2])
def test_all_ranks_raise_alike_and_none_waits(world_size: int, tmp_path: Path) -> None:
    build_tiny_encoder(tmp_path / "encoder")
    (tmp_path / "store" / "catalog").mkdir(parents=True)
    table = pa.table({"item_id": [f"id-{item}" for item in range(NUM_ITEMS)]})
    write_part(table, str(tmp_path / "store" / "catalog" / "part-00000.parquet"))
    found = on_ranks(world_size, partial(body, str(tmp_path)), tmp_path)
    assert len({one["said"] for one in found}) == 1
    assert "embeddings of 1 of 12 items are no finite numbers ('id-4')" in found[0]["said"]
    assert [one["made"] for one in found].count(True) == 1, "one rank alone made it"
    assert [one["all"] for one in found] == [[float(world_size)]] * world_size
