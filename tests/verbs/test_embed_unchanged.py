"""When a publication need not be made again, without Ray."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from published import write_publication

from beeray.config import validate_config
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.embeddings import Embeddings, open_embeddings
from beeray.data.tables import Table
from beeray.runtime.embedding_plan import JobPlan, full_run_reasons
from beeray.verbs import embed
from beeray.verbs.embed import unchanged_publication


def a_plan(previous: Embeddings, name: str, catalog: dict[str, str]) -> JobPlan:
    model = {"name": name, "fingerprint": "0" * 16}
    reasons = full_run_reasons(previous, model, {})
    table = Table(pa.table({"item_id": ["a"]}), {"item_id": "item_id"})
    form = EmbeddingFormat("float32", 2, False)
    return JobPlan(model, {}, table, catalog, "{title}", previous, reasons, form, {"max_text_chars": None})


def test_the_same_model_at_another_place_is_published_again_with_all_vectors_reused(tmp_path: Path) -> None:
    previous = open_embeddings(str(write_publication(tmp_path, ["a", "b"], np.eye(2, dtype=np.float32))))
    assert unchanged_publication(a_plan(previous, "model", {})) is previous
    moved = a_plan(previous, "/elsewhere/model", {})
    assert moved.full_run == [] and unchanged_publication(moved) is None
    assert unchanged_publication(a_plan(previous, "model", {"path": "another"})) is None


def test_a_jobs_own_folder_stays_when_others_are_dated_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "KEPT_RUN_DIRS", 2)
    config = validate_config({"name": "mine", "runs_dir": str(tmp_path), "data": {"source": "shop"}})
    for year, name in ((2100, "a"), (2101, "b"), (2102, "c")):
        later = (year - 1970) * 365 * 86_400
        embed._run_dir(config, name)
        os.utime(tmp_path / "mine" / "embed" / name, (later, later))
    own = embed._run_dir(config, "own")
    assert sorted(one.name for one in own.parent.iterdir()) == ["c", "own"]
