"""Several data sets in a config: what is handed down, what is refused and under which key, and the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beeray.config import load_config, validate_config
from beeray.errors import ConfigError

FILMS = {"source": "movielens", "path": "films"}
BOOKS = {"source": "goodbooks", "path": "books"}


def refusal(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate_config(tree)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("config: ")


def mixed(domains: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {"name": "a", "data": {"domains": domains}} | sections


def test_where_tables_are_decides_no_result_and_what_they_mean_does() -> None:
    table = {"path": "one.parquet", "item_id": "id"}
    rows = {"path": "two.parquet", "user_id": "u", "item_id": "i"}
    here = mixed({"films": FILMS, "own": {"source": "tables", "catalog": table, "interactions": rows}})
    there = mixed(
        {
            "films": {**FILMS, "path": "elsewhere", "descriptions": "texts.feather"},
            "own": {
                "source": "tables",
                "catalog": {**table, "path": "s3://b/one.parquet"},
                "interactions": {**rows, "path": "s3://b/two"},
            },
        }
    )
    keys = validate_config(here).result_keys()
    assert validate_config(there).result_keys() == keys
    there["data"]["domains"]["own"]["catalog"]["template"] = "{title}"
    assert validate_config(there).result_keys() == {**keys, "data.domains.own.catalog.template": "{title}"}


def test_rules_of_data_hold_for_domains_that_do_not_set_their_own() -> None:
    data = {"domains": {"films": FILMS, "books": {**BOOKS, "min_value": 3}}, "min_value": 2, "empty_text": "drop"}
    config = validate_config({"name": "a", "data": data, "split": {"test": 0.3}})
    films, books = config.data.single_sources()
    assert (films.domain, films.source, films.min_value, films.empty_text) == ("films", "movielens", 2.0, "drop")
    assert (books.domain, books.path, books.min_value, books.min_user_interactions) == ("books", "books", 3.0, 5)
    assert config.split_of("films") == config.split
    again = validate_config(config.model_dump(mode="json"))
    assert again.result_keys() == config.result_keys()


def test_a_domain_s_own_sizes_are_laid_over_the_split_and_must_fit_it() -> None:
    config = validate_config(mixed({"films": {**FILMS, "split": {"test": 7}}, "books": BOOKS}))
    assert (config.split_of("films").test, config.split_of("films").validation) == (7, 0.1)
    assert config.split_of("books").test == 0.1
    unfit = mixed({"films": {**FILMS, "split": {"test": 7}}}, split={"kind": "time"})
    assert refusal(unfit).startswith("data.domains.films.split does not fit split: split.kind is time")


def test_the_one_source_is_the_only_part_of_a_config_without_domains() -> None:
    config = validate_config({"name": "a", "data": BOOKS})
    assert config.data.single_sources() == [config.data] and config.by_domain() == {None: config}
    assert config.data.weight_of("anything") == 1.0


def test_embeddings_of_domains_are_published_apart() -> None:
    config = validate_config(mixed({"films": FILMS, "books": BOOKS}, embed={"path": "s3://bucket/out"}))
    assert {name: one.embeddings_path for name, one in config.by_domain().items()} == {
        "films": "s3://bucket/out/films",
        "books": "s3://bucket/out/books",
    }
    chosen = validate_config(mixed({"films": FILMS, "books": BOOKS}, embed={"domains": ["books"]}))
    (only,) = chosen.by_domain().values()
    assert (only.data.source, only.run_dir) == ("goodbooks", config.run_dir)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (mixed({"films & more": FILMS}), "data.domains: 'films & more' is no name of a domain; use letters, digits"),
        (mixed({"a/b": FILMS}), "data.domains: 'a/b' is no name of a domain"),
        (mixed({}), "data.domains is empty: name at least one data set"),
        (mixed({"films": {"source": "movielens"}}), "data.domains.films.path is required for source 'movielens'"),
        (mixed({"films": {"path": "x"}}), "data.domains.films.source: required key is missing"),
        (mixed({"films": {**FILMS, "pth": 1}}), "unknown key 'data.domains.films.pth'; did you mean"),
        (mixed({"films": {**FILMS, "weight": 0}}), "data.domains.films.weight is 0: "),
        (
            {"name": "a", "data": {"source": "shop", "domains": {"films": FILMS}}},
            "data.source is set beside data.domains",
        ),
        ({"name": "a", "data": {"path": "x"}}, "data.source: required key is missing"),
        (
            mixed({"films": FILMS}, evaluate={"domains": ["book"]}),
            "evaluate.domains names 'book': the domains of data are",
        ),
        (
            mixed({"films": FILMS}, embed={"domains": ["book"]}),
            "embed.domains names 'book': the domains of data are films",
        ),
    ],
)
def test_a_mistake_in_a_domain_is_told_with_its_key(tree: dict[str, Any], expected: str) -> None:
    assert refusal(tree).startswith(expected)


def test_an_override_reaches_into_a_domain(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text("data: {domains: {films: {source: movielens, path: a}, books: {source: goodbooks, path: b}}}\n")
    config = load_config(str(path), ["data.domains.films.weight=0.25", "data.domains.books.path=c"])
    assert config.data.domains is not None
    assert (config.data.weight_of("films"), config.data.domains["books"].path) == (0.25, "c")


@pytest.mark.parametrize("name", ["ml20m", "goodlens", "amazon-books", "goodbooks"])
def test_every_experiment_has_a_smoke_twin_of_the_same_data_and_split(name: str) -> None:
    whole, smoke = load_config(name), load_config(f"{name}-smoke")
    assert (smoke.name, whole.name) == (f"{name}-smoke", name)
    assert [(one.source, one.domain) for one in smoke.data.single_sources()] == [
        (one.source, one.domain) for one in whole.data.single_sources()
    ]
    assert (smoke.split, smoke.trains_on_validation) == (whole.split, whole.trains_on_validation)
    assert whole.encoder.name == "sentence-transformers/all-mpnet-base-v2"
    assert (whole.encoder.max_seq_length, whole.train.batch_size, whole.train.lr) == (384, 1024, 1e-5)


@pytest.mark.parametrize("section", ["evaluate", "embed"])
def test_no_domain_at_all_is_no_choice_of_domains(section: str) -> None:
    said = refusal(mixed({"films": FILMS, "books": BOOKS}, **{section: {"domains": []}}))
    assert said.startswith(f"{section}.domains") and "at least 1" in said


@pytest.mark.parametrize("name", ["ml-20m", "2024", "films"])
def test_a_mistake_within_a_domain_names_it_whatever_it_is_called(name: str) -> None:
    said = refusal(mixed({name: {**FILMS, "weight": 0}, "books": BOOKS}))
    assert said.startswith(f"data.domains.{name}.weight is 0: ")
