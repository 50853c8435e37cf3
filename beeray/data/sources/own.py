"""Anyone's own tables: paths and column names from the config (`data.source: tables`)."""

from __future__ import annotations

from beeray.config import DataConfig
from beeray.data.sources import RawTables, template_columns
from beeray.data.tables import Table


def own_tables(config: DataConfig) -> RawTables:
    """The tables that `data.catalog` and `data.interactions` describe."""
    assert config.catalog is not None and config.interactions is not None
    texts = {name: name for name in template_columns(config.catalog.template)}
    columns = {"user_id": config.interactions.user_id, "item_id": config.interactions.item_id}
    for name in ("value", "timestamp"):
        column = getattr(config.interactions, name)
        if column is not None:
            columns[name] = column
    return RawTables(
        domain=config.domain or "items",
        catalog=Table(config.catalog.path, {"item_id": config.catalog.item_id, **texts}, "data.catalog"),
        interactions=Table(config.interactions.path, columns, "data.interactions"),
        template=config.catalog.template,
    )
