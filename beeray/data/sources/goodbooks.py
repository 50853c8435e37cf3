"""GoodBooks-10k in its original files: `ratings.csv`, and the descriptions published with beeFormer.

Ratings: Zajac 2017, github.com/zygmuntz/goodbooks-10k (CC BY-SA 4.0); columns user_id, book_id, rating.
Texts: `item_text_descriptions.feather`; columns book_id, llama31_description.
"""

from __future__ import annotations

from beeray.config import DataConfig
from beeray.data.sources import RawTables
from beeray.data.storage import join
from beeray.data.tables import Table

TEXT = "llama31_description"


def goodbooks_tables(config: DataConfig) -> RawTables:
    """The GoodBooks tables in `data.path`."""
    assert config.path is not None
    return RawTables(
        domain=config.domain or "goodbooks",
        catalog=Table(
            join(config.path, "item_text_descriptions.feather"),
            {"item_id": "book_id", TEXT: TEXT},
            "GoodBooks' catalog",
        ),
        interactions=Table(
            join(config.path, "ratings.csv"),
            {"user_id": "user_id", "item_id": "book_id", "value": "rating"},
            "GoodBooks' ratings",
        ),
        template=f"{{{TEXT}}}",
    )
