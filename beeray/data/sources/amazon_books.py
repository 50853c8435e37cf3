"""Amazon Books in its original files: `Books.csv`, and the descriptions published with beeFormer.

Ratings: Ni, Li & McAuley, "Justifying Recommendations using Distantly-Labeled Reviews" (EMNLP 2019), the Books file of
the 2018 "ratings only" data: no line of names; columns asin, user, rating, timestamp (seconds).
Texts: `item_text_descriptions.feather`; columns asin, llama31_description; some books stand in it more than once.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from beeray.config import DataConfig
from beeray.data.catalog import normalize_ids, one_array
from beeray.data.fragments import ROW
from beeray.data.sources import RawTables
from beeray.data.storage import join
from beeray.data.tables import Table

TEXT = "llama31_description"
HEADER = ("asin", "user", "rating", "timestamp")
LABEL = "Amazon Books' catalog"


def amazon_books_tables(config: DataConfig) -> RawTables:
    """The Amazon Books tables in `data.path`; of a book's descriptions the first counts.

    The catalog (some 63,000 books) is read in memory; ratings of other books are left out by the preparation.

    Raises:
        DataError: a file or column is missing.
    """
    assert config.path is not None
    described = Table(
        join(config.path, "item_text_descriptions.feather"), {"item_id": "asin", TEXT: TEXT}, LABEL, typed=("item_id",)
    )
    books = pa.concat_tables([batch for fragment in described.fragments() for batch in fragment.read()])
    codes = one_array(normalize_ids(books["item_id"], f"{LABEL} item_id").dictionary_encode())
    _, first = np.unique(codes.indices.to_numpy(), return_index=True)
    books = books.drop_columns([ROW]).take(pa.array(np.sort(first)))
    return RawTables(
        domain=config.domain or "amazon-books",
        catalog=Table(books, {"item_id": "item_id", TEXT: TEXT}, LABEL),
        interactions=Table(
            join(config.path, "Books.csv"),
            {"user_id": "user", "item_id": "asin", "value": "rating", "timestamp": "timestamp"},
            "Amazon Books' ratings",
            header=HEADER,
        ),
        template=f"{{{TEXT}}}",
    )
