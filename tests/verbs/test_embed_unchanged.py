"""When a publication need not be made again, without Ray."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from published import write_publication

from beeray.config import EmbedConfig, validate_config
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.embeddings import Embeddings, open_embeddings
from beeray.data.tables import Table
from beeray.runtime.embedding_plan import JobPlan, full_run_reasons, layout_of
from beeray.verbs import embed
from beeray.verbs.embed import unchanged_publication

LAYOUT = layout_of(EmbedConfig())


def a_publication(folder: Path, layout: dict[str, int]) -> Embeddings:
    return open_embeddings(str(write_publication(folder, ["a", "b"], np.eye(2, dtype=np.float32), layout=layout)))


def a_plan(previous: Embeddings, name: str, catalog: dict[str, str]) -> JobPlan:
    model = {"name": name, "fingerprint": "0" * 16}
    reasons = full_run_reasons(previous, model, {})
    table = Table(pa.table({"item_id": ["a"]}), {"item_id": "item_id"})
    form = EmbeddingFormat("float32", 2, False)
    return JobPlan(model, {}, table, catalog, "{title}", previous, reasons, form, LAYOUT)


def test_the_same_model_at_another_place_is_published_again_with_all_vectors_reused(tmp_path: Path) -> None:
    previous = a_publication(tmp_path, LAYOUT)
    assert unchanged_publication(a_plan(previous, "model", {})) is previous
    moved = a_plan(previous, "/elsewhere/model", {})
    assert moved.full_run == [] and unchanged_publication(moved) is None
    assert unchanged_publication(a_plan(previous, "model", {"path": "another"})) is None


def test_what_was_published_by_other_rules_of_reading_is_published_again_with_all_vectors_reused(
    tmp_path: Path,
) -> None:
    """Of the same files: 0x1A was 26, an empty id was one, and a late 0007 was 7."""
    before = {key: value for key, value in LAYOUT.items() if key != "reading_rules"}
    others = [before, LAYOUT | {"reading_rules": LAYOUT["reading_rules"] - 1}, LAYOUT | {"max_text_chars": 7}]
    for number, layout in enumerate(others):
        plan = a_plan(a_publication(tmp_path / str(number), layout), "model", {})
        assert unchanged_publication(plan) is None and plan.full_run == []
    cut_otherwise = a_plan(a_publication(tmp_path / "cut", LAYOUT | {"rows_per_file": 7}), "model", {})
    assert unchanged_publication(cut_otherwise) is cut_otherwise.previous


def test_a_job_that_was_stopped_under_other_rules_of_reading_is_not_gone_on_with(tmp_path: Path) -> None:
    plan = a_plan(a_publication(tmp_path, LAYOUT), "model", {})
    assert dataclasses.replace(plan, layout=LAYOUT | {"reading_rules": 1}).digest() != plan.digest()


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
