"""What training reads: the prepared store when there is one, the raw tables when there is none."""

from __future__ import annotations

from beeray.config import Config
from beeray.data.domains import open_domains, told_of
from beeray.data.parts import read_part
from beeray.data.places import check_place, refuse_reading_itself
from beeray.data.preparation import check_tables, store_fingerprint
from beeray.data.sources import open_catalog
from beeray.data.storage import exists, join
from beeray.data.store import META, Store
from beeray.errors import OlderStoreError
from beeray.runtime.doctor.finding import OK, WARNING, Finding


def check_data(config: Config) -> Finding:
    """Read a little of all that training reads; nothing is prepared.

    Raises:
        BeerayError: something cannot be read, or breaks the data contract as far as was seen.
    """
    if config.data.source == "tables" and config.data.interactions is None:
        table, _ = open_catalog(config.data, config.embed.catalog)
        table.check()
        return Finding(OK, f"catalog {config.data.catalog and config.data.catalog.path} is readable; no interactions")
    if not exists(join(config.store_path, META)):
        return Finding(OK, f"no store yet; {_read_tables(config)}")
    try:
        return _check_store(config)
    except OlderStoreError:
        return Finding(
            WARNING,
            f"store {config.store_path!r} is an older version's: train prepares it anew, and refuses to resume runs of "
            f"the old one; {_read_tables(config)}",
        )


def _read_tables(config: Config) -> str:
    """Read the first rows of the raw tables; returns what was read."""
    num_files = 0
    check_place(config.store_path)
    domains = open_domains(config)
    for domain in domains:
        with told_of(domain.name if config.data.domains else None):
            check_tables(domain)
            refuse_reading_itself(config.store_path, domain)
            for table in (domain.raw.catalog, domain.raw.interactions):
                fragments = table.fragments()
                num_files += len({fragment.path for fragment in fragments})
                for fragment in fragments[:1]:
                    next(fragment.read(), None)
    names = ", ".join(domain.name for domain in domains)
    return f"raw tables of {names} are readable ({num_files} files opened, first rows read)"


def _check_store(config: Config) -> Finding:
    store = Store.open(config.store_path)
    meta = store.meta
    read_part(store.user_paths()[0], ["user_index"])
    said = f"store {store.path}: {meta.num_users:,} users, {meta.num_items:,} items"
    if store_fingerprint(config) == meta.fingerprint:  # lists the raw tables, as training does
        return Finding(OK, f"{said}, up to date")
    return Finding(
        WARNING,
        f"{said}, prepared from other tables, rules or another split than the config's: train prepares it anew, and "
        "refuses to resume runs of the old one; run beeray.prepare first, or name another data.store to keep this one",
    )
