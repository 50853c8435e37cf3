"""Anyone's own tables: paths and column names from the config (`data.source: tables`)."""

from __future__ import annotations

from beeray.config import CatalogTable, DataConfig
from beeray.data.fragments import ROW
from beeray.data.sources import RawTables, template_columns
from beeray.data.tables import Table
from beeray.errors import ConfigError


def own_tables(config: DataConfig) -> RawTables:
    """The tables that `data.catalog` and `data.interactions` describe.

    Raises:
        ConfigError: there are no interactions, or the template is malformed.
    """
    assert config.catalog is not None
    if config.interactions is None:
        raise ConfigError("data.interactions is required for source 'tables': the table of who interacted with what")
    columns = {"user_id": config.interactions.user_id, "item_id": config.interactions.item_id}
    for name in ("value", "timestamp"):
        column = getattr(config.interactions, name)
        if column is not None:
            columns[name] = column
    return RawTables(
        domain=config.domain or "items",
        catalog=own_catalog(config.catalog, "data.catalog"),
        interactions=Table(config.interactions.path, columns, "data.interactions"),
        template=config.catalog.template,
    )


def own_catalog(config: CatalogTable, label: str) -> Table:
    """A catalog table of anyone's own.

    Ids travel as `item_id`, texts under their own names: the template may name the id's column, which is
    then read under both. Numbers in a CSV's texts are taken as they are written.

    Args:
        label: how errors call it, e.g. `data.catalog`.

    Raises:
        ConfigError: a malformed template, or one with a column that has the name of the ids or of the row numbers.
    """
    texts = {name: name for name in template_columns(config.template)}
    if "item_id" in texts and config.item_id != "item_id":
        raise ConfigError(
            f"{label}.template {config.template!r}: names a column 'item_id', but the ids come from "
            f"{config.item_id!r}; rename that column in the table, or set {label}.item_id: item_id"
        )
    if ROW in texts:
        raise ConfigError(
            f"{label}.template {config.template!r}: names a column {ROW!r}, a name that beeray needs for row numbers; "
            "rename that column in the table"
        )
    return Table(config.path, {"item_id": config.item_id, **texts}, label, typed=("item_id",))
