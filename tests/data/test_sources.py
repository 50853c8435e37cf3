"""From original files to the two tables: the public data sets, anyone's own tables, every format."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv, feather
from pyarrow import parquet as pq

from beeray.config import CatalogTable, DataConfig, InteractionsTable, validate_config
from beeray.data.catalog import render
from beeray.data.domains import differ_in_type, open_domains
from beeray.data.fragments import FRAGMENT_SHIFT
from beeray.data.preparation import store_fingerprint
from beeray.data.sources import open_catalog, open_source, template_columns
from beeray.data.tables import Table
from beeray.errors import ConfigError, DataError

ITEMS = {"item_id": "item_id", "text": "text"}
SECOND = 1 << FRAGMENT_SHIFT


def rows_of(table: Table) -> list[dict[str, Any]]:
    return [row for fragment in table.fragments() for batch in fragment.read() for row in batch.to_pylist()]


def values_of(table: Table) -> list[tuple[Any, ...]]:
    return [tuple(value for name, value in row.items() if name != "row") for row in rows_of(table)]


def line_of(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- GoodBooks


def write_goodbooks(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ratings.csv").write_text("user_id,book_id,rating\n1,258,5\n2,4081,3\n")
    texts = pa.table({"book_id": [258, 4081], "llama31_description": ["A maze of books.", "A mockingbird, a trial."]})
    feather.write_feather(texts, folder / "item_text_descriptions.feather")
    return folder


def test_goodbooks_original_files_open_under_the_standard_names(tmp_path: Path) -> None:
    tables = open_source(DataConfig(source="goodbooks", path=str(write_goodbooks(tmp_path / "gb"))))
    assert (tables.domain, tables.template) == ("goodbooks", "{llama31_description}")
    assert rows_of(tables.interactions) == [
        {"user_id": 1, "item_id": 258, "value": 5, "row": 0},
        {"user_id": 2, "item_id": 4081, "value": 3, "row": 1},
    ]
    assert values_of(tables.catalog) == [(258, "A maze of books."), (4081, "A mockingbird, a trial.")]


def test_the_domain_of_a_config_names_the_tables(tmp_path: Path) -> None:
    config = DataConfig(source="goodbooks", path=str(write_goodbooks(tmp_path / "gb")), domain="books")
    assert open_source(config).domain == "books"


def test_the_real_goodbooks_sample_opens_with_all_its_rows(real_data: Path) -> None:
    tables = open_source(DataConfig(source="goodbooks", path=str(real_data / "goodbooks-sample")))
    ratings = pa.concat_tables([batch for f in tables.interactions.fragments() for batch in f.read()])
    assert (ratings.num_rows, len(set(ratings["user_id"].to_pylist()))) == (298_176, 2_672)
    assert set(ratings["value"].to_pylist()) == {1, 2, 3, 4, 5}
    assert ratings["row"].to_pylist() == list(range(298_176))
    texts = values_of(tables.catalog)
    assert (len(texts), len({item for item, _ in texts})) == (9_975, 9_975)
    assert all(text.strip() for _, text in texts)


def test_a_goodbooks_folder_without_its_descriptions_is_refused_by_file_name(tmp_path: Path) -> None:
    folder = write_goodbooks(tmp_path / "gb")
    (folder / "item_text_descriptions.feather").unlink()
    with pytest.raises(DataError) as caught:
        open_source(DataConfig(source="goodbooks", path=str(folder))).catalog.check()
    assert "item_text_descriptions.feather: no such file" in line_of(caught)


# --- MovieLens

FILMS = (
    "movieId,title,genres\n"
    '11,"American President, The (1995)",Comedy|Drama|Romance\n'
    "1,Toy Story (1995),Animation\n"
    "83829,Scorpio Rising (1964),(no genres listed)\n"
)
TAGS = [(1, "pixar"), (1, "Toys"), (1, "toys"), (1, "animation"), (1, "zoo"), (1, "zoo"), (1, "ZOO"), (11, "politics")]


def write_movielens(folder: Path, tags: list[tuple[int, str]] | None = None) -> Path:
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n7,11,2.5,1260759144\n7,1,4.0,1260759179\n")
    (folder / "movies.csv").write_text(FILMS)
    if tags is not None:
        lines = [f"{user},{film},{tag},{1000 + user}\n" for user, (film, tag) in enumerate(tags)]
        (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n" + "".join(lines))
    return folder


def movielens_catalog(folder: Path) -> dict[int, dict[str, str]]:
    tables = open_source(DataConfig(source="movielens", path=str(folder)))
    assert isinstance(tables.catalog.source, pa.Table)
    return {row.pop("item_id"): row for row in tables.catalog.source.to_pylist()}


def test_movielens_ratings_open_under_the_standard_names_with_their_timestamps(tmp_path: Path) -> None:
    tables = open_source(DataConfig(source="movielens", path=str(write_movielens(tmp_path / "ml"))))
    assert rows_of(tables.interactions) == [
        {"user_id": 7, "item_id": 11, "value": 2.5, "timestamp": 1_260_759_144, "row": 0},
        {"user_id": 7, "item_id": 1, "value": 4.0, "timestamp": 1_260_759_179, "row": 1},
    ]


def test_a_films_text_is_its_title_its_genres_and_its_tags_by_count_and_then_alphabet(tmp_path: Path) -> None:
    tables = open_source(DataConfig(source="movielens", path=str(write_movielens(tmp_path / "ml", TAGS))))
    assert tables.template == "{title}. {genres}. {tags}"
    (fragment,) = tables.catalog.fragments()
    (batch,) = fragment.read()
    assert batch["item_id"].to_pylist() == [11, 1, 83829]
    # zoo 3 (ZOO is zoo), toys 2 (Toys is toys), then once each: animation before pixar.
    assert render(tables.template, batch).to_pylist()[:2] == [
        "American President, The (1995). Comedy, Drama, Romance. politics",
        "Toy Story (1995). Animation. zoo, toys, animation, pixar",
    ]


def test_a_film_without_genres_or_tags_has_them_empty_and_not_the_words_for_none(tmp_path: Path) -> None:
    catalog = movielens_catalog(write_movielens(tmp_path / "ml", TAGS))
    assert catalog[83829] == {"title": "Scorpio Rising (1964)", "genres": "", "tags": ""}


def test_under_a_time_split_no_tag_tells_a_films_text_of_the_future(tmp_path: Path) -> None:
    data = {"source": "movielens", "path": str(write_movielens(tmp_path / "ml", TAGS))}
    items, time = (validate_config({"name": "x", "data": data, "split": {"kind": kind}}) for kind in ("item", "time"))
    (domain,) = open_domains(time)
    catalog, template = open_catalog(time.data, None, by_time=True)
    assert template == domain.raw.template == "{title}. {genres}"
    (batch,) = (batch for fragment in catalog.fragments() for batch in fragment.read())
    assert render(template, batch).to_pylist()[1] == "Toy Story (1995). Animation"
    assert values_of(domain.raw.catalog) == values_of(catalog)
    assert "{tags}" in open_domains(items)[0].raw.template
    before = [store_fingerprint(config) for config in (items, time)]
    (tmp_path / "ml" / "tags.csv").write_text("userId,movieId,tag,timestamp\n7,1,late,2000000000\n")
    after = [store_fingerprint(config) for config in (items, time)]
    assert before[0] != after[0] and before[1] == after[1]


def test_only_the_ten_most_used_tags_of_a_film_count(tmp_path: Path) -> None:
    tags = [(1, f"t{number:02}") for number in range(12)] + [(1, "t11")]
    catalog = movielens_catalog(write_movielens(tmp_path / "ml", tags))
    assert catalog[1]["tags"] == "t11, t00, t01, t02, t03, t04, t05, t06, t07, t08"


def test_tags_that_are_all_numbers_and_tags_of_unknown_films_are_no_trouble(tmp_path: Path) -> None:
    catalog = movielens_catalog(write_movielens(tmp_path / "ml", [(1, "1995"), (99, "2001")]))
    assert [catalog[film]["tags"] for film in (11, 1, 83829)] == ["", "1995", ""]


@pytest.mark.parametrize("tags", [None, []])
def test_without_a_tags_file_or_without_a_tag_in_it_films_have_no_tags(
    tmp_path: Path, tags: list[tuple[int, str]] | None
) -> None:
    catalog = movielens_catalog(write_movielens(tmp_path / "ml", tags))
    assert [row["tags"] for row in catalog.values()] == ["", "", ""]
    assert catalog[11]["genres"] == "Comedy, Drama, Romance"


def test_an_empty_tag_is_no_tag(tmp_path: Path) -> None:
    catalog = movielens_catalog(write_movielens(tmp_path / "ml", [(1, "b"), (1, "b"), (1, ""), (1, "a")]))
    assert catalog[1]["tags"] == "b, a"


def test_the_real_movielens_tags_are_ordered_as_a_plain_count_says(real_data: Path) -> None:
    folder = real_data / "ml-latest-small"
    catalog = movielens_catalog(folder)
    assert len(catalog) == 9_125
    assert catalog[1] == {
        "title": "Toy Story (1995)",
        "genres": "Adventure, Animation, Children, Comedy, Fantasy",
        "tags": "pixar",
    }
    counts: dict[int, Counter[str]] = {}
    for row in csv.read_csv(folder / "tags.csv").to_pylist():
        counts.setdefault(row["movieId"], Counter())[str(row["tag"]).lower()] += 1
    expected = {}
    for film, tags in counts.items():
        ordered = sorted((-count, tag) for tag, count in tags.items())
        expected[film] = [tag for _, tag in ordered[:10]]
    assert len(counts) > 500 and max(len(tags) for tags in counts.values()) > 10
    assert {film: row["tags"] for film, row in catalog.items() if row["tags"]} == {
        film: ", ".join(tags) for film, tags in expected.items() if film in catalog
    }
    assert not any("genres listed" in row["genres"] or "|" in row["genres"] for row in catalog.values())


def test_the_real_movielens_ratings_keep_half_stars_and_seconds(real_data: Path) -> None:
    tables = open_source(DataConfig(source="movielens", path=str(real_data / "ml-latest-small")))
    rows = rows_of(tables.interactions)
    assert len(rows) == 100_004 and len({row["user_id"] for row in rows}) == 671
    assert rows[0] == {"user_id": 1, "item_id": 31, "value": 2.5, "timestamp": 1_260_759_144, "row": 0}


@pytest.mark.parametrize("column", ["llama31_description", "text"])
def test_a_descriptions_file_takes_the_place_of_titles_genres_and_tags(tmp_path: Path, column: str) -> None:
    path = tmp_path / "texts.feather"
    feather.write_feather(pa.table({"movieId": [1, 11], "year": [1995, 1995], column: ["Toys.", "Love."]}), path)
    folder = write_movielens(tmp_path / "ml", TAGS)
    tables = open_source(DataConfig(source="movielens", path=str(folder), descriptions=str(path)))
    assert tables.template == f"{{{column}}}"
    assert values_of(tables.catalog) == [(1, "Toys."), (11, "Love.")]


def test_of_several_text_columns_the_one_called_description_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"title": ["T"], "movieId": [1], "llama31_description": ["D"]}), path)
    config = DataConfig(source="movielens", path=str(write_movielens(tmp_path / "ml")), descriptions=str(path))
    assert open_source(config).template == "{llama31_description}"


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"movieId": [1], "year": [1995]}, "no text column"), ({"film": [1], "text": ["x"]}, "no column 'movieId'")],
)
def test_a_descriptions_file_without_ids_or_texts_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], words: str
) -> None:
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError) as caught:
        folder = write_movielens(tmp_path / "ml")
        open_source(DataConfig(source="movielens", path=str(folder), descriptions=str(path)))
    assert words in line_of(caught) and "texts.parquet" in str(caught.value)


def test_a_movielens_folder_without_films_or_with_other_columns_is_refused(tmp_path: Path) -> None:
    folder = write_movielens(tmp_path / "ml")
    (folder / "movies.csv").write_text("movieId,name,genres\n1,Toy Story,Animation\n")
    with pytest.raises(DataError) as caught:
        open_source(DataConfig(source="movielens", path=str(folder)))
    assert "no column 'title'" in line_of(caught) and "movieId, name, genres" in str(caught.value)
    (folder / "movies.csv").unlink()
    with pytest.raises(DataError) as caught:
        open_source(DataConfig(source="movielens", path=str(folder)))
    assert "movies.csv: no such file" in line_of(caught)


# --- anyone's own tables


def own_config(tmp_path: Path, template: str = "{title}. {genre}", **interactions: Any) -> DataConfig:
    pq.write_table(pa.table({"sku": ["a", "b"], "genre": ["x", "y"], "title": ["A", "B"]}), tmp_path / "items.parquet")
    (tmp_path / "clicks.csv").write_text("who,what,stars,at\nu1,a,5,100\nu2,b,1,200\n")
    catalog = CatalogTable(path=str(tmp_path / "items.parquet"), item_id="sku", template=template)
    mapping = {"user_id": "who", "item_id": "what"} | interactions
    table = InteractionsTable(path=str(tmp_path / "clicks.csv"), **mapping)
    return DataConfig(source="tables", catalog=catalog, interactions=table)


def test_own_tables_are_mapped_as_the_config_says(tmp_path: Path) -> None:
    tables = open_source(own_config(tmp_path, value="stars", timestamp="at"))
    assert (tables.domain, tables.template) == ("items", "{title}. {genre}")
    assert rows_of(tables.catalog) == [
        {"item_id": "a", "title": "A", "genre": "x", "row": 0},
        {"item_id": "b", "title": "B", "genre": "y", "row": 1},
    ]
    assert rows_of(tables.interactions) == [
        {"user_id": "u1", "item_id": "a", "value": 5, "timestamp": 100, "row": 0},
        {"user_id": "u2", "item_id": "b", "value": 1, "timestamp": 200, "row": 1},
    ]


def test_own_interactions_without_value_and_timestamp_are_two_columns(tmp_path: Path) -> None:
    assert open_source(own_config(tmp_path)).interactions.check().names == ["user_id", "item_id"]


def test_a_missing_column_is_named_together_with_the_columns_that_are_there(tmp_path: Path) -> None:
    tables = open_source(own_config(tmp_path, template="{title} {colour}", value="rating"))
    with pytest.raises(DataError) as caught:
        tables.interactions.check()
    assert "clicks.csv: data.interactions has no column 'rating' (for value)" in line_of(caught)
    assert "who, what, stars, at" in str(caught.value)
    with pytest.raises(DataError) as caught:
        tables.catalog.check()
    assert "items.parquet: data.catalog has no column 'colour'" in line_of(caught)
    assert "sku, genre, title" in str(caught.value)


# --- templates


def test_a_template_names_its_columns_in_order_and_each_once() -> None:
    assert template_columns("{title} ({year}): {title}, {{not this}}") == ["title", "year"]


@pytest.mark.parametrize(
    "template", ["{title", "title}", "no column", "", "{}", "{title:>10}", "{title!r}", "{title.upper}", "{title[0]}"]
)
def test_a_template_that_is_not_plain_column_names_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(own_config(tmp_path, template=template))
    assert repr(template) in line_of(caught) and "{title}. {genres}" in str(caught.value)


# --- tables in every format


def write(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".parquet", ".pq"):
        pq.write_table(table, path)
    elif path.suffix == ".gz":
        sink = pa.BufferOutputStream()
        csv.write_csv(table, sink)
        path.write_bytes(gzip.compress(sink.getvalue().to_pybytes()))
    elif path.suffix.lower() == ".csv":
        csv.write_csv(table, path)
    else:
        feather.write_feather(table, path)
    return path


def items(*numbers: int) -> pa.Table:
    texts = [f'item, "{number}"\nsecond line' for number in numbers]
    return pa.table({"extra": [0.5] * len(numbers), "text": texts, "item_id": pa.array(numbers, pa.int64())})


@pytest.mark.parametrize("name", ["t.parquet", "t.pq", "t.csv", "T.CSV", "t.csv.gz", "t.feather", "t.arrow", "t.ipc"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    table = Table(str(write(tmp_path / name, items(3, 1, 2))), ITEMS)
    assert table.check().names == ["item_id", "text"]
    assert rows_of(table) == [
        {"item_id": number, "text": f'item, "{number}"\nsecond line', "row": row}
        for row, number in enumerate((3, 1, 2))
    ]


def test_a_table_in_memory_gives_the_same_rows() -> None:
    assert [row["item_id"] for row in rows_of(Table(items(3, 1, 2), ITEMS))] == [3, 1, 2]
    with pytest.raises(DataError, match="has no column 'name'"):
        Table(items(1), {"item_id": "name"}).check()


@pytest.mark.parametrize("path", ["parts", "parts/", "parts/*.parquet", "par*/**/part-*"])
def test_a_folder_of_parts_and_a_glob_are_read_in_the_order_of_their_names(tmp_path: Path, path: str) -> None:
    write(tmp_path / "parts" / "part-1.parquet", items(30, 40))
    write(tmp_path / "parts" / "part-0.parquet", items(10, 20))
    assert [(row["item_id"], row["row"]) for row in rows_of(Table(f"{tmp_path}/{path}", ITEMS))] == [
        (10, 0),
        (20, 1),
        (30, SECOND),
        (40, SECOND + 1),
    ]


def test_a_folder_is_read_with_its_subfolders_and_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "a" / "x.parquet", items(1))
    write(tmp_path / "parts" / "b" / "x.parquet", items(2))
    write(tmp_path / "parts" / "_old" / "x.parquet", items(3))
    write(tmp_path / "parts" / ".x.parquet", items(4))
    (tmp_path / "parts" / "_SUCCESS").write_text("")
    assert [row["item_id"] for row in rows_of(Table(str(tmp_path / "parts"), ITEMS))] == [1, 2]


def test_row_numbers_follow_row_groups_and_batches_through_one_file(tmp_path: Path) -> None:
    many = 300_000
    pq.write_table(pa.table({"item_id": range(many)}), tmp_path / "t.parquet", row_group_size=many - 10)
    table = Table(str(tmp_path / "t.parquet"), {"item_id": "item_id"})
    first, second = table.fragments()
    batches = list(first.read())
    assert len(batches) > 1
    assert pa.concat_tables(batches)["row"].to_pylist() == list(range(many - 10))
    assert rows_of(table)[-10:] == [{"item_id": many - 10 + n, "row": SECOND + n} for n in range(10)]
    assert second.number == 1


def test_parts_whose_types_agree_after_a_cast_are_one_table_and_others_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "0.parquet", items(1))
    path = write(tmp_path / "parts" / "1.parquet", pa.table({"item_id": pa.array([2], pa.int32()), "text": ["x"]}))
    table = Table(str(tmp_path / "parts"), ITEMS)
    assert [row["item_id"] for row in rows_of(table)] == [1, 2]
    write(path, pa.table({"item_id": ["abc"], "text": ["x"]}))
    with pytest.raises(DataError) as caught:
        rows_of(table)
    assert "1.parquet" in line_of(caught)


def test_whole_stars_in_the_first_part_and_half_stars_or_none_in_the_next_are_one_column(tmp_path: Path) -> None:
    columns = {"user_id": "user_id", "value": "value"}
    for part, value in enumerate(("4", "3.5", "")):
        (tmp_path / f"{part}.csv").write_text(f"user_id,value\n{part},{value}\n")
    assert values_of(Table(f"{tmp_path}/*.csv", columns)) == [(0, 4.0), (1, 3.5), (2, None)]


def test_ids_with_leading_zeros_stay_different_ids(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item_id,text\n0195153448,x\n195153448,y\n")
    ids = [str(row["item_id"]) for row in rows_of(Table(str(tmp_path / "t.csv"), ITEMS))]
    assert ids == ["0195153448", "195153448"]


@pytest.mark.parametrize(
    "ids",
    [
        ["0x1A", "26"],
        [" 7", "7"],
        ["7 ", "7"],
        ["-01", "-1"],
        ["-0", "0"],
        ["+7", "7"],
        ["1e3", "1000"],
        ["18446744073709551615", "18446744073709551614"],
        ["9223372036854775808", "1"],
        ["2024-01-01", "2024-01-02"],
        ["true", "false"],
        ["12:30:00", "12:30"],
    ],
)
def test_ids_of_a_csv_that_are_no_plain_whole_numbers_are_kept_as_they_are_written(
    tmp_path: Path, ids: list[str]
) -> None:
    (tmp_path / "t.csv").write_text("item_id,text\n" + "".join(f"{one},x\n" for one in ids))
    assert [row["item_id"] for row in rows_of(Table(str(tmp_path / "t.csv"), ITEMS))] == ids
    (tmp_path / "t.csv").rename(tmp_path / "2.csv")
    (tmp_path / "1.csv").write_text("item_id,text\n5,x\n")  # in all files of a table they are one kind
    assert [row["item_id"] for row in rows_of(Table(f"{tmp_path}/*.csv", ITEMS))] == ["5", *ids]


def test_plain_whole_numbers_of_a_csv_are_numbers_whatever_stands_for_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('item_id,text\n0,x\n-9223372036854775808,x\n,x\nNA,x\n"7",x\n')
    ids = [row["item_id"] for row in rows_of(Table(str(tmp_path / "t.csv"), ITEMS))]
    assert ids == [0, -(2**63), None, None, 7]


@pytest.mark.parametrize(("catalog", "orders", "expected"), [("7", "7", False), ("7a", "7", True), ("7", "7a", True)])
def test_items_are_text_as_soon_as_one_of_the_two_tables_has_text(
    tmp_path: Path, catalog: str, orders: str, expected: bool
) -> None:
    (tmp_path / "items.csv").write_text(f"item_id,text\n{catalog},x\n")
    (tmp_path / "orders.csv").write_text(f"user_id,item_id\n1,{orders}\n")
    data = {
        "source": "tables",
        "catalog": {"path": str(tmp_path / "items.csv")},
        "interactions": {"path": str(tmp_path / "orders.csv")},
    }
    domains = open_domains(validate_config({"name": "x", "data": data}))
    assert differ_in_type(domains, "item_id") == expected
    assert not differ_in_type(domains, "user_id")


@pytest.mark.parametrize(("catalog", "orders", "expected"), [([7], ["7"], True), (["7"], [7], True), ([7], [7], False)])
def test_categories_of_numbers_are_numbers_beside_text(
    tmp_path: Path, catalog: list[Any], orders: list[Any], expected: bool
) -> None:
    items = pa.table({"item_id": pa.array(catalog).dictionary_encode(), "text": ["x"]})
    feather.write_feather(items, str(tmp_path / "items.feather"))
    bought = pa.table({"user_id": pa.array([1]).dictionary_encode(), "item_id": orders})
    feather.write_feather(bought, str(tmp_path / "orders.feather"))
    data = {
        "source": "tables",
        "catalog": {"path": str(tmp_path / "items.feather")},
        "interactions": {"path": str(tmp_path / "orders.feather")},
    }
    domains = open_domains(validate_config({"name": "x", "data": data}))
    assert pa.types.is_dictionary(domains[0].raw.catalog.check().field("item_id").type)
    assert differ_in_type(domains, "item_id") == expected
    assert not differ_in_type(domains, "user_id")


# --- what is refused


def test_nothing_at_a_path_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("absent.parquet", "empty", "*.parquet"):
        with pytest.raises(DataError) as caught:
            Table(str(tmp_path / path), ITEMS).check()
        assert f"{path}: no such file, folder or match" in line_of(caught)


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("item_id,text\n1,x\n")
    with pytest.raises(DataError) as caught:
        Table(str(tmp_path / "t.xlsx"), ITEMS).check()
    assert "t.xlsx: not a known table format" in line_of(caught) and ".parquet" in str(caught.value)


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.csv"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, name: str, kept: float) -> None:
    path = write(tmp_path / name, items(*range(100)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)] + (b"\n1\n" if kept and name == "t.csv" else b""))
    with pytest.raises(DataError) as caught:
        rows_of(Table(str(path), ITEMS))
    assert f"{name}: cannot be read" in line_of(caught) and "repair or remove it" in str(caught.value)


def test_damage_inside_a_parquet_file_is_found_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(items(*range(100)), path, compression="snappy", use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:30] + b"\xff" * 300 + whole[330:])
    with pytest.raises(DataError) as caught:
        rows_of(Table(str(path), {"text": "text"}))
    assert "t.parquet: cannot be read" in line_of(caught)


def test_a_column_missing_in_a_later_part_is_refused_by_that_parts_name(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "0.parquet", items(1))
    write(tmp_path / "parts" / "1.parquet", pa.table({"item_id": [2]}))
    with pytest.raises(DataError) as caught:
        Table(str(tmp_path / "parts"), ITEMS, "catalog").check()
    assert "1.parquet: catalog has no column 'text'" in line_of(caught)


# --- fingerprints


def test_a_fingerprint_changes_with_content_columns_and_parts_and_with_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "parts" / "0.csv", items(1, 2))
    folder = Table(str(tmp_path / "parts"), ITEMS)
    before = folder.fingerprint()
    assert Table(str(tmp_path / "parts"), dict(reversed(ITEMS.items())), "another label").fingerprint() == before
    assert Table(str(tmp_path / "parts"), {"item_id": "item_id", "text": "extra"}).fingerprint() != before

    write(path, items(1, 3))  # as many bytes as before
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    changed = folder.fingerprint()
    write(tmp_path / "parts" / "1.csv", items(4))
    assert len({before, changed, folder.fingerprint()}) == 3
    (tmp_path / "parts" / "_log").write_text("x")
    (tmp_path / "parts" / "1.csv").unlink()
    assert folder.fingerprint() == changed


def test_the_fingerprint_of_a_table_in_memory_is_that_of_its_rows() -> None:
    whole = Table(items(1, 2), ITEMS).fingerprint()
    assert Table(pa.concat_tables([items(1), items(2)]), ITEMS).fingerprint() == whole
    assert Table(items(1, 3), ITEMS).fingerprint() != whole
    assert Table(items(2, 1), ITEMS).fingerprint() != whole


def test_a_changed_tag_changes_the_fingerprint_of_the_movielens_catalog(tmp_path: Path) -> None:
    folder = write_movielens(tmp_path / "ml", TAGS)
    config = DataConfig(source="movielens", path=str(folder))
    before = open_source(config).catalog.fingerprint()
    assert open_source(config).catalog.fingerprint() == before
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,other,1\n")
    assert open_source(config).catalog.fingerprint() != before
