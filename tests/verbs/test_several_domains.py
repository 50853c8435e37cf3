"""Two data sets, one encoder, through the commands: trained together, told apart, and scored on one of them alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from beeray.data.store import Store
from beeray.embeddings import open as open_embeddings

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def trained(world: World) -> Done:
    """`films` are the tables of all other tests; `books` are the first readers of the same tables, thrice as often."""
    tree: dict[str, Any] = yaml.safe_load((world.folder / "tiny.yaml").read_text())
    world.write_interactions("readers", 500)
    source = {key: tree["data"][key] for key in ("source", "catalog", "interactions")}
    readers = {**source, "interactions": {**source["interactions"], "path": "readers.parquet"}}
    alone = tree | {"data": readers | {"domain": "books", "store": "stores/books", "num_buckets": 2}}
    (world.folder / "books.yaml").write_text(yaml.safe_dump(alone), encoding="utf-8")
    tree["data"] = {"domains": {"films": source, "books": readers | {"weight": 3}}, "num_buckets": 2}
    tree["train"] |= {"epochs": 2, "max_steps": 20}
    tree["evaluate"]["splits"] = ["test"]
    (world.folder / "mixed.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return world.run("train", config="mixed.yaml")


def test_a_run_on_two_domains_reports_them_together_and_each(world: World, trained: Done) -> None:
    record = trained.record["metrics"]["test"]
    store = Store.open(str(world.folder / "stores" / "mixed"))
    films, books = store.domains
    scores = pq.read_table(world.path("mixed") / "scores.parquet").to_pandas()
    for ranking, candidates in (("held_out", (12, 12)), ("catalog", (films.num_items, books.num_items))):
        parts = record[ranking]["domains"]
        assert [one["candidates"] for one in parts.values()] == list(candidates)
        for name, one in [("films", parts["films"]), ("books", parts["books"]), ("", record[ranking])]:
            mine = scores[(scores.ranking == ranking) & (scores.domain.isin([name] if name else ["films", "books"]))]
            assert one["users"] == len(mine) > 0
            assert one["ndcg@10"]["mean"] == pytest.approx(mine["ndcg@10"].mean(), abs=1e-12)
    assert set(scores[scores.domain == "books"].user_index) <= set(range(films.num_users, store.meta.num_users))
    assert "test, books, " in trained.err


def test_weights_make_an_epoch_and_every_step_has_its_share(world: World, trained: Done) -> None:
    store = Store.open(str(world.folder / "stores" / "mixed"))
    films, books = (one.training_users["train"] // 2 for one in store.domains)
    per_epoch = round((films + 3 * books) / 15)
    assert f"20 steps ({per_epoch} an epoch)" in trained.err and per_epoch < 20, "the second epoch is begun"
    assert world.steps("mixed") == list(range(20))


def test_a_model_of_both_scores_on_one_alone_as_it_does_in_the_mixed_store(world: World, trained: Done) -> None:
    alone = world.run("evaluate", "--model", "runs/mixed/model", "evaluate.splits=[test]", config="books.yaml")
    of_books = trained.record["metrics"]["test"]
    for ranking in ("held_out", "catalog"):
        mine, theirs = alone.record["metrics"]["test"][ranking], of_books[ranking]["domains"]["books"]
        assert (mine["users"], mine["candidates"]) == (theirs["users"], theirs["candidates"])
        assert mine["ndcg@10"]["mean"] == pytest.approx(theirs["ndcg@10"]["mean"], abs=1e-6)
        assert theirs["ndcg@10"]["mean"] != pytest.approx(of_books[ranking]["domains"]["films"]["ndcg@10"]["mean"])
    assert "domains" not in alone.record["metrics"]["test"]["held_out"]


def test_catalogs_are_published_apart_under_the_ids_that_they_have(world: World, trained: Done) -> None:
    record = world.run("embed", "embed.num_actors=1", config="mixed.yaml").record["domains"]
    published = {name: open_embeddings(str(world.folder / "embeddings" / "mixed" / name)) for name in record}
    assert {name: one.num_rows for name, one in published.items()} == {"films": 120, "books": 120}
    assert Path(record["books"]["path"]) == world.folder / "embeddings" / "mixed" / "books"
    tables = [one.table() for one in published.values()]
    assert tables[0]["item_id"].to_pylist() == tables[1]["item_id"].to_pylist()
    assert np.allclose(*(one.vectors(table) for one, table in zip(published.values(), tables, strict=True)))
