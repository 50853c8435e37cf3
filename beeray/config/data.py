"""Where raw tables are, which rows count, how held-out data is chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from beeray.config.section import Fraction, Section


class CatalogTable(Section):
    """The catalog of a `tables` source: where it is and which columns mean what."""

    path: str
    item_id: str = "item_id"
    template: str = "{text}"
    """Text of an item: column names in braces, e.g. `"{title}. {genres}"`."""


class InteractionsTable(Section):
    """The interactions of a `tables` source: where they are and which columns mean what."""

    path: str
    user_id: str = "user_id"
    item_id: str = "item_id"
    value: str | None = None
    timestamp: str | None = None


class ShopConfig(Section):
    """Size and seed of the generated shop (`data.source: shop`)."""

    num_users: int = Field(4000, ge=10)
    num_series: int = Field(14, ge=2)
    """Product lines per family; the catalog grows in proportion."""
    seed: int = Field(7, ge=0)


class DataConfig(Section):
    """Where raw tables are, which rows count, and where the prepared store goes."""

    source: Literal["goodbooks", "movielens", "tables", "shop"]
    path: str | None = None
    """Folder of the original files (`goodbooks`, `movielens`)."""
    descriptions: str | None = None
    """`movielens`: a descriptions file (`movieId` and a text column) used in place of titles, genres and tags."""
    catalog: CatalogTable | None = None
    interactions: InteractionsTable | None = None
    shop: ShopConfig = ShopConfig()
    domain: str | None = None
    """Name of the domain in the store; the source's name unless set."""
    store: str | None = None
    """Folder of the prepared store; `stores/<name>` unless set."""
    min_value: float | None = 4.0
    """Interactions with a smaller `value` are dropped; null keeps all."""
    min_user_interactions: int = Field(5, ge=2)
    empty_text: Literal["error", "drop"] = "error"
    """What to do with a catalog row whose text is null or blank."""
    num_buckets: int | None = Field(None, ge=1, le=4096)
    """User buckets of the shuffle; more buckets need less memory at a time. Unless set, one for each million rows of
    interactions, and at least 8. Content, order of users and draws are the same for any number."""

    @model_validator(mode="after")
    def _has_its_tables(self) -> DataConfig:
        if self.source in ("goodbooks", "movielens") and not self.path:
            raise ValueError(f"data.path is required for source {self.source!r}: the folder of its original files")
        if self.source == "tables" and self.catalog is None:
            raise ValueError("data.catalog is required for source 'tables'; data.interactions too, but for embed alone")
        return self


class SplitConfig(Section):
    """How held-out data is chosen; the meaning of each kind is tabled in `beeray/data/splits.py`."""

    kind: Literal["item", "time", "user"] = "item"
    validation: Fraction | Annotated[int, Field(ge=1)] = 0.1
    """Held out for validation: a fraction, or a number of items (`item`) or users (`user`)."""
    test: Fraction | Annotated[int, Field(ge=1)] = 0.1
    reproduce: Literal["beeformer"] | None = None
    """`item` only: draw exactly the held-out items of the paper's published protocol (seed 42, 2,000 draws)."""
    num_draws: int = Field(2000, ge=1)
    """`reproduce: beeformer` only: draws with replacement per held-out set."""

    @model_validator(mode="after")
    def _fits(self) -> SplitConfig:
        if self.reproduce and self.kind != "item":
            raise ValueError("split.reproduce: beeformer is an item split; set split.kind: item")
        if self.kind == "time" and (self.validation >= 1 or self.test >= 1):
            raise ValueError("split.kind is time: split.validation and split.test are fractions of the interactions")
        if self.validation < 1 and self.test < 1 and self.validation + self.test >= 1:
            raise ValueError("split.validation + split.test must leave something to train on (sum below 1)")
        return self
