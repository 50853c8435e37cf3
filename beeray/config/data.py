"""Where raw tables are, which rows count, how held-out data is chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from beeray.config.section import Fraction, Section

DOMAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
FROM_FILES = ("goodbooks", "movielens", "amazon-books")
"""Sources that are a folder of a public data set's original files."""
HANDED_DOWN = ("min_value", "min_user_interactions", "empty_text")
OF_ONE_SOURCE = ("source", "path", "descriptions", "catalog", "interactions", "shop", "domain")
Size = Fraction | Annotated[int, Field(ge=1)]


class CatalogTable(Section):
    """The catalog of a `tables` source: where it is and which columns mean what."""

    path: str
    """File, folder or glob of parquet, CSV or feather, on a disk or a URI; one row an item."""
    item_id: str = "item_id"
    """Column of the items' ids."""
    template: str = "{text}"
    """Text of an item: column names in braces, e.g. `"{title}. {genres}"`."""


class InteractionsTable(Section):
    """The interactions of a `tables` source: where they are and which columns mean what."""

    path: str
    """File, folder or glob of parquet, CSV or feather, on a disk or a URI; one row an interaction."""
    user_id: str = "user_id"
    """Column of the users' ids."""
    item_id: str = "item_id"
    """Column of the items' ids, those of the catalog."""
    value: str | None = None
    """Column of ratings, stars, seconds, …, which `min_value` is compared with; unless set, every row counts."""
    timestamp: str | None = None
    """Column of times, numbers or dates; a `time` split needs it."""


class ShopConfig(Section):
    """Size and seed of the generated shop (`data.source: shop`)."""

    num_users: int = Field(4000, ge=10)
    """Shoppers."""
    num_series: int = Field(14, ge=2)
    """Product lines per family; the catalog grows in proportion."""
    seed: int = Field(7, ge=0)
    """Of products and purchases; the config's `seed` has no say in them."""


class SourceConfig(Section):
    """Where the raw tables of one data set are, and which of their rows count."""

    source: Literal["goodbooks", "movielens", "amazon-books", "tables", "shop"] | None = None
    """A public data set, `tables` of your own, or a generated `shop`; required unless there are `domains`."""
    path: str | None = None
    """Folder of the original files (`goodbooks`, `movielens`, `amazon-books`)."""
    descriptions: str | None = None
    """`movielens`: a descriptions file (`movieId` and a text column) used in place of titles, genres and tags."""
    catalog: CatalogTable | None = None
    """`tables`: the items."""
    interactions: InteractionsTable | None = None
    """`tables`: who interacted with what; `embed` alone does without."""
    shop: ShopConfig = ShopConfig()
    min_value: float | None = 4.0
    """Interactions with a smaller `value` are dropped; null keeps all."""
    min_user_interactions: int = Field(5, ge=2)
    """Users with fewer distinct items are dropped."""
    empty_text: Literal["error", "drop"] = "error"
    """What to do with a catalog row whose text is null or blank."""

    def missing(self, where: str) -> str | None:
        """What the source lacks, as an error of the section called `where`; None when nothing is missing."""
        if self.source is None:
            return f"{where}.source: required key is missing"
        if self.source in FROM_FILES and not self.path:
            return f"{where}.path is required for source {self.source!r}: the folder of its original files"
        if self.source == "tables" and self.catalog is None:
            return f"{where}.catalog is required for source 'tables'; {where}.interactions too, but for embed alone"
        return None


class DomainSplitConfig(Section):
    """Sizes of a domain's held-out data where they differ from those of `split`."""

    validation: Size | None = None
    """Held out for validation; `split.validation` unless set."""
    test: Size | None = None
    """Held out for test; `split.test` unless set."""
    num_draws: int | None = Field(None, ge=1)
    """Draws per held-out set; `split.num_draws` unless set."""


class DomainConfig(SourceConfig):
    """One of several data sets that are mixed: its source, its rules and its share of the training."""

    weight: float = Field(1.0, gt=0, le=100)
    """How often each of its users comes in an epoch, on average: 0.5 takes half of them, drawn anew every epoch."""
    split: DomainSplitConfig = DomainSplitConfig()


class DataConfig(SourceConfig):
    """Where raw tables are, which rows count, and where the prepared store goes: one source, or several domains."""

    domain: str | None = Field(None, pattern=DOMAIN_NAME)
    """Name of the one source's domain in the store; the source's name unless set, of `tables` `items`."""
    domains: dict[str, DomainConfig] | None = None
    """Several data sets in one store, by name, in place of one source. Each is filtered and split as if it were alone;
    `min_value`, `min_user_interactions` and `empty_text` of `data` hold for those that do not set their own."""
    store: str | None = None
    """Folder of the prepared store; `stores/<name>` unless set."""
    num_buckets: int | None = Field(None, ge=1, le=4096)
    """User buckets of the shuffle; more buckets need less memory at a time. Unless set, one for each million rows of
    interactions, and at least 8. Content, order of users and draws are the same for any number."""

    @model_validator(mode="before")
    @classmethod
    def _hands_down_rules(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or not isinstance(tree.get("domains"), Mapping):
            return tree
        shared = {key: tree[key] for key in HANDED_DOWN if key in tree}
        handed = {
            name: {**shared, **domain} if isinstance(domain, Mapping) else domain
            for name, domain in tree["domains"].items()
        }
        return {**tree, "domains": handed}

    @model_validator(mode="after")
    def _has_its_tables(self) -> DataConfig:
        if self.domains is None:
            missing = self.missing("data")
            if missing:
                raise ValueError(missing)
            return self
        if not self.domains:
            raise ValueError("data.domains is empty: name at least one data set, e.g. books: {source: goodbooks, …}")
        for key in OF_ONE_SOURCE:
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                raise ValueError(f"data.{key} is set beside data.domains: move it into the domain that it is meant for")
        for name, domain in self.domains.items():
            if not re.fullmatch(DOMAIN_NAME, name):
                raise ValueError(
                    f"data.domains: {name!r} is no name of a domain; use letters, digits, _ and -, beginning with a "
                    "letter or digit: it becomes part of metrics' names and of folders"
                )
            missing = domain.missing(f"data.domains.{name}")
            if missing:
                raise ValueError(missing)
        return self

    def single_sources(self) -> list[DataConfig]:
        """Each domain by itself as a config of one source, in order; itself when there is one source."""
        if self.domains is None:
            return [self]
        return [
            DataConfig(
                **{key: getattr(section, key) for key in SourceConfig.model_fields},
                domain=name,
                num_buckets=self.num_buckets,
            )
            for name, section in self.domains.items()
        ]

    def weight_of(self, domain: str) -> float:
        """`weight` of a domain; 1 where there is one source."""
        return self.domains[domain].weight if self.domains else 1.0


class SplitConfig(Section):
    """How held-out data is chosen; the meaning of each kind is tabled in `beeray/data/splits.py`."""

    kind: Literal["item", "time", "user"] = "item"
    """What is held out: `item`: items, so brand-new ones; `time`: the last interactions; `user`: users."""
    validation: Size = 0.1
    """Held out for validation: a fraction, or a number of items (`item`) or users (`user`); of each domain."""
    test: Size = 0.1
    """Held out for test, in the same terms."""
    reproduce: Literal["beeformer"] | None = None
    """`item` only: the paper's published protocol. Draws exactly its held-out items (seed 42, `num_draws` draws),
    trains on validation's, too, and gives none of them as input at test."""
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
