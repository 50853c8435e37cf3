"""Nights one after the other: the first publishes, a second continues and is judged, kills change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from beeray.data.embeddings import open_embeddings

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

NAME = "name=nights"
SMALL = ("train.max_steps=4", "evaluate.splits=[test]", "nightly.metric=ndcg@10")


def night(world: World, date: str, *overrides: str) -> Done:
    own = (NAME, "data.store=stores/nights", "data.interactions.path=nights.parquet", "embed.path=embeddings/nights")
    return world.run("nightly", *own, *SMALL, *overrides, "--night", date, limit_s=1500)


def published(world: World) -> Any:
    return open_embeddings(str(world.folder / "embeddings" / "nights"))


def kept(world: World, date: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((world.path("nights") / "nights" / f"{date}.json").read_text())
    return record


@pytest.fixture(scope="module")
def first(world: World) -> Done:
    world.write_interactions("nights")
    return night(world, "2026-01-01")


def test_the_first_night_publishes_without_a_comparison(world: World, first: Done) -> None:
    assert first.code == 0, first.err
    assert "gate: nothing is published yet" in first.err
    version = first.record["published"][""]
    assert published(world).version == version
    assert published(world).manifest.model["name"] == str(world.path("nights-2026-01-01") / "model")


def test_a_night_that_is_done_is_told_again_and_not_done_again(world: World, first: Done) -> None:
    steps = (world.path("nights-2026-01-01") / "steps.jsonl").stat().st_mtime_ns
    again = night(world, "2026-01-01")
    assert again.code == 0, again.err
    assert again.record == first.record
    assert (world.path("nights-2026-01-01") / "steps.jsonl").stat().st_mtime_ns == steps


DIVERGING = ("train.lr=5", "train.optimizer=adamw", "train.gradient_clipping=0")


def test_a_worse_model_is_refused_with_3_and_todays_items_are_published_with_the_serving_one(
    world: World, first: Done
) -> None:
    before = published(world)
    world.write_grown_tables(num_new=3)
    tonight = (*DIVERGING, "data.catalog.path=grown-catalog.parquet")
    refused = night(world, "2026-01-02", *tonight)
    assert refused.code == 3, refused.err
    record = json.loads(refused.out.splitlines()[-1])
    (line,) = [one for one in refused.err.splitlines() if one.startswith("gate: ")]
    assert line.endswith(("worse: refused", "is not ruled out: refused")) and " [" in line
    now = published(world)
    assert (record["published"], record["refreshed"]) == (None, {"": now.version})
    assert now.manifest.model == before.manifest.model
    assert (now.num_rows, before.num_rows) == (123, 120)
    assert now.manifest.counts["encoded"] == 3 and now.manifest.counts["reused"] == 120
    assert kept(world, "2026-01-02")["serving"]["name"].endswith("nights-2026-01-01/model")
    again = night(world, "2026-01-02", *tonight)
    assert (again.code, again.err.count("gate: ")) == (3, 0), "a verdict is reached once"
    assert published(world).version == now.version


def test_a_model_that_did_not_change_passes_and_is_published_also_after_a_kill_before_publishing(
    world: World, first: Done
) -> None:
    serving = published(world).manifest.model
    process = world.start(
        *("nightly", NAME, "data.store=stores/nights", "data.interactions.path=nights.parquet"),
        *("embed.path=embeddings/nights", *SMALL, "train.lr=1e-12", "--night", "2026-01-03"),
    )
    file = world.path("nights") / "nights" / "2026-01-03.json"
    world.wait_until(lambda: file.is_file() and kept(world, "2026-01-03")["verdict"] is not None, process)
    world.kill(process)
    assert published(world).manifest.model == serving, "nothing is published before the embedding is whole"
    done = night(world, "2026-01-03", "train.lr=1e-12")
    assert done.code == 0, done.err
    assert published(world).manifest.model["name"] == str(world.path("nights-2026-01-03") / "model")
    assert done.record["serving_before"]["fingerprint"] == serving["fingerprint"]


def test_a_serving_model_that_is_gone_is_told_before_anything_is_trained(world: World, first: Done) -> None:
    model = Path(published(world).manifest.model["name"])
    hidden = model.rename(model.with_name("hidden"))
    try:
        refused = night(world, "2026-01-09")
    finally:
        hidden.rename(model)
    assert "is gone, so the new one cannot be compared with it" in refused.complaint
    assert not world.path("nights-2026-01-09").exists()
