"""MovieLens in its original files: `ratings.csv`, `movies.csv`, `tags.csv`, or a descriptions file.

Harper & Konstan, "The MovieLens Datasets" (TiiS 2015), grouplens.org. A film's text is its title,
genres and most used tags, unless `data.descriptions` names a file of longer texts. Users go on tagging films for years,
also inside the windows of a time split, and where those begin is known only once all ratings are read; so under
`split.kind: time` a text is title and genres alone, and no tag tells of what is to be foretold.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from beeray.config import DataConfig
from beeray.data.fragments import ROW
from beeray.data.sources import RawTables
from beeray.data.storage import exists, join
from beeray.data.tables import Table
from beeray.errors import DataError

TAGS_PER_FILM = 10
NO_GENRES = "(no genres listed)"


def movielens_tables(config: DataConfig, *, tags: bool = True) -> RawTables:
    """The MovieLens tables in `data.path`; the catalog (at most some 90,000 films) is joined in memory.

    Args:
        tags: whether they are part of the texts.

    Raises:
        DataError: a file or column is missing, or a descriptions file has no text column.
    """
    assert config.path is not None
    domain = config.domain or "movielens"
    interactions = Table(
        join(config.path, "ratings.csv"),
        {"user_id": "userId", "item_id": "movieId", "value": "rating", "timestamp": "timestamp"},
        "MovieLens' ratings",
    )
    if config.descriptions:
        text = _text_column(config.descriptions)
        catalog = Table(config.descriptions, {"item_id": "movieId", text: text}, "MovieLens' descriptions")
        return RawTables(domain, catalog, interactions, f"{{{text}}}")
    films = _read_whole(
        Table(
            join(config.path, "movies.csv"),
            {"item_id": "movieId", "title": "title", "genres": "genres"},
            "MovieLens' films",
        )
    )
    genres = pc.replace_substring(pc.replace_substring(films["genres"], NO_GENRES, ""), "|", ", ")
    films = films.set_column(films.schema.get_field_index("genres"), "genres", genres)
    told = ["title", "genres"]
    if tags:
        films = films.append_column("tags", _tags(join(config.path, "tags.csv"), films["item_id"]))
        told.append("tags")
    names = {name: name for name in ("item_id", *told)}
    template = ". ".join(f"{{{name}}}" for name in told)
    return RawTables(domain, Table(films.select(list(names)), names, "MovieLens' films"), interactions, template)


def _tags(path: str, film_ids: pa.ChunkedArray) -> pa.Array:
    """The most used tags of every film, joined by commas: most used first, ties in alphabetical order."""
    if not exists(path):
        return pa.array([""] * len(film_ids))
    tags = _read_whole(Table(path, {"item_id": "movieId", "tag": "tag"}, "MovieLens' tags"))
    tags = pa.table(
        {"item_id": tags["item_id"], "tag": pc.utf8_trim_whitespace(pc.utf8_lower(pc.cast(tags["tag"], pa.string())))}
    )
    tags = tags.filter(pc.fill_null(pc.not_equal(tags["tag"], ""), False))
    counted = tags.group_by(["item_id", "tag"]).aggregate([([], "count_all")])
    counted = counted.sort_by([("item_id", "ascending"), ("count_all", "descending"), ("tag", "ascending")])
    ordered = counted.group_by("item_id", use_threads=False).aggregate([("tag", "list")])
    lists = ordered["tag_list"].combine_chunks()
    joined = pc.binary_join(pc.list_slice(lists, 0, TAGS_PER_FILM), ", ")
    places = pc.index_in(film_ids, ordered["item_id"])
    return pc.fill_null(pc.take(joined, places.combine_chunks()), "")


def _read_whole(table: Table) -> pa.Table:
    return pa.concat_tables([batch for fragment in table.fragments() for batch in fragment.read()]).drop_columns([ROW])


def _text_column(path: str) -> str:
    schema = Table(path, {"item_id": "movieId"}, "MovieLens' descriptions")
    schema.check()
    fields = [field for field in schema._file_fragments()[0].physical_schema if field.name != "movieId"]
    texts = [field.name for field in fields if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    if not texts:
        raise DataError(f"{path}: MovieLens' descriptions have no text column beside movieId; columns: {fields}")
    return next((name for name in texts if "description" in name), texts[0])
