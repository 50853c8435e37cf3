"""The domains that a config mixes: each with its tables, its rules and its split, as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from beeray.config import Config, DataConfig, SplitConfig
from beeray.data.sources import RawTables, open_source
from beeray.errors import ConfigError, DataError


@dataclass(frozen=True)
class Domain:
    """One data set of a store.

    Attributes:
        name: of the domain.
        data: its source and rules, as a config of one source.
        split: how its held-out data is chosen.
        raw: its two tables.
    """

    name: str
    data: DataConfig
    split: SplitConfig
    raw: RawTables


def open_domains(config: Config) -> list[Domain]:
    """Open every source that a config names; reads no more than small side files.

    Raises:
        DataError, ConfigError: as `open_source`, with the domain's name where there are several.
    """
    domains: list[Domain] = []
    for data in config.data.single_sources():
        split = config.split_of(data.domain)
        with told_of(data.domain if config.data.domains else None):
            raw = open_source(data, by_time=split.kind == "time")
        domains.append(Domain(raw.domain, data, split, raw))
    return domains


@contextmanager
def told_of(domain: str | None) -> Iterator[None]:
    """Put a domain's name before what is wrong with its tables; None changes nothing."""
    try:
        yield
    except (DataError, ConfigError) as error:
        if domain is None:
            raise
        kind = ConfigError if isinstance(error, ConfigError) else DataError
        raise kind(f"data.domains.{domain}: {error}") from error


def differ_in_type(domains: Sequence[Domain], column: str) -> bool:
    """Whether some tables have integers and others strings for one kind of ids, so that all must be strings.

    Args:
        column: `item_id`, of catalogs and interactions, or `user_id`.
    """
    tables = [one.raw.interactions for one in domains]
    if column == "item_id":
        tables += [one.raw.catalog for one in domains]
    return len({_are_integers(table.check().field(column).type) for table in tables}) > 1


def _are_integers(kind: pa.DataType) -> bool:
    """Whether ids of a type are integers; of categories (a dictionary of pandas or Arrow), those that are named."""
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))
