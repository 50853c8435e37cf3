"""Where raw tables come from: public data sets, anyone's own tables, a generated shop.

Every source opens as the same thing: a catalog table, an interactions table and a text template.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, replace

from beeray.config import CatalogTable, DataConfig
from beeray.data.tables import Table
from beeray.errors import ConfigError


@dataclass(frozen=True)
class RawTables:
    """The two tables of one domain.

    Attributes:
        domain: name of the domain.
        catalog: `item_id` and the template's columns.
        interactions: `user_id`, `item_id`, and where there are any `value` and `timestamp`.
        template: text of an item, catalog columns in braces.
    """

    domain: str
    catalog: Table
    interactions: Table
    template: str


def open_source(config: DataConfig, *, by_time: bool = False) -> RawTables:
    """Open the source that a config names; reads no more than small side files.

    Args:
        by_time: whether the future is held out, so that texts may say nothing that users wrote as time went by.

    Raises:
        DataError: files or columns are missing.
        ConfigError: a malformed template.
    """
    if config.source == "goodbooks":
        from beeray.data.sources.goodbooks import goodbooks_tables

        return goodbooks_tables(config)
    if config.source == "movielens":
        from beeray.data.sources.movielens import movielens_tables

        return movielens_tables(config, tags=not by_time)
    if config.source == "amazon-books":
        from beeray.data.sources.amazon_books import amazon_books_tables

        return amazon_books_tables(config)
    if config.source == "shop":
        from beeray.data.sources.shop import open_shop

        return open_shop(config)
    from beeray.data.sources.own import own_tables

    return own_tables(config)


def open_catalog(config: DataConfig, own: CatalogTable | None, *, by_time: bool = False) -> tuple[Table, str]:
    """A catalog alone, without interactions: the table and the text template.

    Texts of its CSVs may be no UTF-8: whoever reads it sets such rows aside (`data/quarantine.py`).

    Args:
        own: a catalog beside that of the source; None for the source's.
        by_time: as `open_source`, so that the texts are those that were trained on.

    Raises:
        DataError: files or columns are missing.
        ConfigError: a malformed template.
    """
    from beeray.data.sources.own import own_catalog

    if own is not None:
        catalog, template = own_catalog(own, "embed.catalog"), own.template
    elif config.source == "tables":
        assert config.catalog is not None
        catalog, template = own_catalog(config.catalog, "data.catalog"), config.catalog.template
    else:
        raw = open_source(config, by_time=by_time)
        catalog, template = raw.catalog, raw.template
    return replace(catalog, unchecked_text=True), template


def template_columns(template: str) -> list[str]:
    """Catalog columns that a template names, in order, each once.

    Raises:
        ConfigError: a template that does not parse, names no column, or uses format specs.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"template {template!r}: {error}; write column names in braces, e.g. '{{title}}. {{genres}}'"
        ) from error
    columns: list[str] = []
    for _, field, spec, conversion in parsed:
        if field is None:
            continue
        if not field or spec or conversion or any(sign in field for sign in ".["):
            raise ConfigError(
                f"template {template!r}: {{{field}}} is no plain column name; write e.g. '{{title}}. {{genres}}'"
            )
        if field not in columns:
            columns.append(field)
    if not columns:
        raise ConfigError(f"template {template!r}: names no column; write e.g. '{{title}}. {{genres}}'")
    return columns
