"""Raw tables → prepared store, streaming through Ray Data.

The driver holds ids, hashes and counts of the catalog, never texts; interactions pass through tasks
batch by batch, are dealt to buckets by user, and each bucket becomes one part of the store. The store
is written beside its final name and renamed when whole and free of leakage.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from beeray.config import Config, config_digest
from beeray.data.catalog import CatalogIndex, DuplicateItemError, index_catalog, normalize_ids
from beeray.data.domains import Domain, differ_in_type, open_domains, told_of
from beeray.data.fragments import ROW
from beeray.data.interactions import BUCKET, Rules, derived_buckets
from beeray.data.kept_items import KeptItems
from beeray.data.leakage import check_leakage
from beeray.data.parts import read_part
from beeray.data.places import check_place, refuse_reading_itself, refuse_replacing
from beeray.data.preparation_tasks import (
    DEALT,
    Place,
    bucket_times,
    bucket_users,
    deal_to_buckets,
    finish_catalog,
    finish_users,
    group_bucket,
    stage_catalog,
    sum_counts,
)
from beeray.data.splits import (
    SplitPlan,
    draw_items,
    draw_users,
    held_out_twins,
    id_hashes,
    time_boundaries,
    window_labels,
)
from beeray.data.staging import Staging
from beeray.data.storage import exists, join, list_files, make_dir, remove_tree, write_json
from beeray.data.store import META, Store, label_counts
from beeray.data.store_meta import SCHEMA_VERSION, DomainMeta, StoreMeta
from beeray.data.streaming import drain, in_tasks, set_up_ray_data
from beeray.data.tables import located
from beeray.data.time_windows import NUM_BINS, SortedTimes
from beeray.errors import ConfigError, DataError, OlderStoreError

Report = Callable[[str, int, int | None], None]
TRAINING_USERS = {"train": "trainable", "train+validation": "trainable_with_validation"}
"""What `meta.json` calls the counts of a part."""
NOT_CONTENT = {"path", "store", "descriptions", "catalog", "interactions", "num_buckets"}
"""Keys of `data` that say where tables are (their own fingerprints tell what is in them) or how they are dealt."""
DRAWN_BY_ID = {"user": {"drawn_by": "ids of users and of their items"}}
"""What a kind of split adds to the fingerprint: users, and later their targets, were once drawn by their place, and
such stores are made anew."""
PUBLISHED_INPUTS = {"inputs": "train"}
"""The same of `split.reproduce`: validation's interactions were once input at test, which they are not there."""


def ensure_store(config: Config, report: Report) -> tuple[Store, bool]:
    """The store of a config, prepared if it is missing, an older version's, or its inputs or rules have changed.

    Returns:
        the store, and whether it was prepared now.
    """
    domains = open_domains(config)
    fingerprint = store_fingerprint(config, domains)
    if exists(join(config.store_path, META)):
        with contextlib.suppress(OlderStoreError):
            store = Store.open(config.store_path)
            if store.meta.fingerprint == fingerprint:
                check_leakage(store)
                return store, False
    return prepare_store(config, domains, report), True


def store_fingerprint(config: Config, domains: Sequence[Domain] | None = None) -> str:
    """Digest of everything that decides a store's content: inputs, rules, split, seed, schema version.

    Args:
        domains: the opened sources of the config; opened here unless given.
    """
    deciding = []
    for one in domains or open_domains(config):
        with told_of(one.name if config.data.domains else None):
            inputs = {"catalog": one.raw.catalog.fingerprint(), "interactions": one.raw.interactions.fingerprint()}
        rules = one.data.model_dump(mode="json", exclude=NOT_CONTENT)
        split = one.split.model_dump(mode="json") | DRAWN_BY_ID.get(one.split.kind, {})
        split |= PUBLISHED_INPUTS if one.split.reproduce else {}
        deciding.append({**inputs, "template": one.raw.template, "rules": rules, "split": split})
    common = {"schema_version": SCHEMA_VERSION, "seed": config.seed}
    return config_digest(common | (deciding[0] if len(deciding) == 1 else {"domains": deciding}))


def prepare_store(config: Config, domains: Sequence[Domain], report: Report) -> Store:
    """Prepare the store of a config anew, one domain after the other. Ray must be running.

    Args:
        domains: the opened sources of the config.
        report: told the stage, what is done and of how much.

    Raises:
        DataError, ConfigError: the tables break the data contract, or the split asks for too much.
        StoreError: the leakage check refused what was written.
    """
    check_place(config.store_path)
    if config.embed.catalog is not None:
        refuse_replacing(config.store_path, config.embed.catalog.path, "embed.catalog")
    fingerprint = store_fingerprint(config, domains)
    for domain in domains:
        with told_of(domain.name if config.data.domains else None):
            check_tables(domain)
            refuse_reading_itself(config.store_path, domain)
    set_up_ray_data()
    with Staging(config.store_path, META) as staging:
        prepared = _prepare(config, domains, staging.path, report)
        published_inputs = config.split.reproduce is not None
        meta = StoreMeta.of_domains(fingerprint, config.split.kind, prepared, published_inputs=published_inputs)
        report("check for leakage", 0, None)
        check_leakage(Store(staging.path, meta))
        if store_fingerprint(config, domains) != fingerprint:
            raise DataError("data: the input tables changed while they were read; run the same command again")
        write_json(join(staging.path, META), dataclasses.asdict(meta))
        if not Store.is_at(config.store_path, fingerprint):  # another command's is as good, and may be in use
            staging.publish()
    return Store.open(config.store_path)


def check_tables(domain: Domain) -> None:
    """Open every file of a domain's tables, and refuse what preparing would refuse before it reads a row.

    Raises:
        DataError, ConfigError: a file or column is missing, or the split needs timestamps that are not there.
    """
    if domain.split.kind == "time" and "timestamp" not in domain.raw.interactions.columns:
        raise ConfigError(
            "split.kind is 'time': the interactions have no timestamp; name the column, or choose item or user"
        )
    for table in (domain.raw.catalog, domain.raw.interactions):
        table.check()


def _prepare(config: Config, domains: Sequence[Domain], folder: str, report: Report) -> list[DomainMeta]:
    """Write the parts of every domain, one after the other; returns what became of each."""
    for name in ("catalog", "users"):
        make_dir(join(folder, name))
    as_text = {f"{name}s_as_text": differ_in_type(domains, name) for name in ("item_id", "user_id")}
    metas: list[DomainMeta] = []
    first_item, first_user = 0, 0
    for number, domain in enumerate(domains):
        several = len(domains) > 1
        place = Place(folder, domain.name, number if several else None, first_item, first_user)
        with told_of(domain.name if config.data.domains else None):
            preparation = _Preparation(domain, config.seed, place, as_text, _told(report, domain.name, several))
            metas.append(preparation.run())
        remove_tree(preparation.scratch)
        first_item, first_user = first_item + metas[-1].num_items, first_user + metas[-1].num_users
    return metas


def _told(report: Report, domain: str, several: bool) -> Report:
    return (lambda stage, done, total: report(f"{domain}: {stage}", done, total)) if several else report


class _Preparation:
    """Prepares one domain; knows of no other."""

    def __init__(self, domain: Domain, seed: int, place: Place, as_text: Mapping[str, bool], report: Report) -> None:
        self.raw, self.split, self.seed, self.place, self.report = domain.raw, domain.split, seed, place, report
        self.scratch = join(place.folder, "scratch")
        for name in ("scratch", f"scratch/{DEALT}"):
            make_dir(join(place.folder, name))
        self.data = domain.data
        num_buckets = self.data.num_buckets or derived_buckets(self.raw.interactions.estimated_rows())
        self.rules = Rules(self.data.min_value, self.data.min_user_interactions, num_buckets, **as_text)
        self.dropped: Counter[str] = Counter()
        self.held_out_twins: dict[str, int] = {}

    def run(self) -> DomainMeta:
        index = self._read_catalog()
        kept = self._group_interactions(index)
        item_index = np.full(len(index.item_ids), -1, dtype=np.int32)
        present = np.flatnonzero(kept.counts)
        item_index[present] = np.arange(len(present), dtype=np.int32)
        self.dropped["items_without_interactions"] += len(index.item_ids) - len(present)
        plan = self._plan_split(index, kept, present)
        if self.split.kind == "item" and not self.split.reproduce:
            self.held_out_twins = held_out_twins(index.hashes.take(pa.array(present)), plan.items)
        self._write_catalog(index, item_index, plan)
        return self._write_users(kept, item_index, plan)

    def _read_catalog(self) -> CatalogIndex:
        self.report("read catalog", 0, None)
        task = {
            "template": self.raw.template,
            "empty_text": self.data.empty_text,
            "folder": self.scratch,
            "ids_as_text": self.rules.item_ids_as_text,
        }
        texts = self.raw.catalog.dataset().map_batches(
            stage_catalog, batch_size=None, batch_format="pyarrow", fn_kwargs=task, num_cpus=1
        )
        listings: list[pa.Table] = []
        num_rows = 0
        with located(self.raw.catalog):
            for table in drain(texts):
                listings.append(table.filter(pc.is_valid(table["item_id"])))
                num_rows += int(pc.sum(table["read"]).as_py() or 0)
                self.report("read catalog", num_rows, None)
        if not listings:
            raise DataError("catalog: no item has text (0 rows read); check the path")
        listing = pa.concat_tables(listings).sort_by(ROW)
        try:
            index = index_catalog(listing, num_rows)
        except DuplicateItemError as error:
            shown = tuple(self._text_of(listing[ROW][place].as_py()) for place in error.places)
            raise DuplicateItemError(error.item_id, *error.places, texts=shown) from None
        self.dropped.update(index.dropped)
        return index

    def _text_of(self, row: int) -> str:
        for name in self._staged_catalog():
            part = read_part(name)
            found = part.filter(pc.equal(part[ROW], row))
            if found.num_rows:
                return str(found["text"][0].as_py())
        return ""

    def _staged_catalog(self) -> list[str]:
        return [file.path for file in list_files(self.scratch) if file.path.rpartition("/")[2].startswith("catalog-")]

    def _group_interactions(self, index: CatalogIndex) -> KeptItems:
        """Deal interactions to buckets by user, through files: no more than a batch and a bucket is ever in memory."""
        self.report("read interactions", 0, None)
        task = {"item_ids": ray.put(index.item_ids), "rules": self.rules, "folder": self.scratch}
        bucketed = self.raw.interactions.dataset().map_batches(
            deal_to_buckets, batch_size=None, batch_format="pyarrow", fn_kwargs=task, num_cpus=1
        )
        totals: Counter[str] = Counter()
        for table in drain(bucketed):
            totals.update(sum_counts(table))
            self.report("read interactions", totals["interactions"], None)
        self.report("group users", 0, self.rules.num_buckets)
        numbers = range(self.rules.num_buckets)
        buckets = ray.data.from_items([{BUCKET: b} for b in numbers], override_num_blocks=len(numbers))
        names = [file.path for file in list_files(join(self.scratch, DEALT), may_be_empty=True)]
        task = {"rules": self.rules, "folder": self.scratch, "names": ray.put(names)}
        grouped = buckets.map_batches(group_bucket, batch_size=1, batch_format="numpy", fn_kwargs=task, num_cpus=1)
        kept = KeptItems.nothing(len(index.item_ids), self.rules.num_buckets)
        for done, table in enumerate(drain(grouped), start=1):
            counted, bucket = sum_counts(table), table[BUCKET][0].as_py()
            kept.bucket_users[bucket] = counted.pop("users")
            totals.update(counted)
            if kept.bucket_users[bucket]:
                kept.add(read_part(join(self.scratch, f"items-{bucket:05d}.parquet")))
            self.report("group users", done, self.rules.num_buckets)
        self._require_something(index, kept, totals)
        self.dropped.update({name: number for name, number in totals.items() if name != "interactions"})
        return kept

    def _require_something(self, index: CatalogIndex, kept: KeptItems, totals: dict[str, int]) -> None:
        if kept.bucket_users.sum():
            return
        unknown = totals.get("interactions_of_unknown_items", 0)
        others = sum(totals.get(f"interactions_{rule}", 0) for rule in ("without_id", "below_min_value"))
        if unknown and unknown + others == totals["interactions"]:
            rows = next(rows for one in self.raw.interactions.fragments() for rows in one.read() if rows.num_rows)
            theirs = normalize_ids(rows["item_id"], "interactions item_id", as_text=self.rules.item_ids_as_text)
            raise DataError(
                "interactions share no item with the catalog: the catalog has "
                f"{_three(index.item_ids)}, the interactions {_three(theirs)}; "
                "map the right columns, and give both ids one type"
            )
        removed = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in sorted(totals.items()) if number)
        raise DataError(
            f"interactions: nothing remains after filtering ({removed}); "
            "lower data.min_value or data.min_user_interactions, or check the columns"
        )

    def _plan_split(self, index: CatalogIndex, kept: KeptItems, present: NDArray[np.int64]) -> SplitPlan:
        config, seed = self.split, self.seed
        items = np.zeros(len(present), dtype=np.int8)
        users = np.zeros(int(kept.bucket_users.sum()), dtype=np.int8)
        boundaries, item_hashes = None, None
        if config.kind == "item":
            items = draw_items(config, index.item_ids.take(pa.array(present)), kept.first_rows[present], seed)
        elif config.kind == "user":
            item_hashes = id_hashes(index.item_ids.take(pa.array(present)))
            paths = [self._bucket_path(bucket) for bucket in self._buckets(kept)]
            users = draw_users(config, np.concatenate(list(in_tasks(bucket_users, paths))), seed)
        else:
            first_times = kept.first_times[present]
            number = int(kept.counts.sum())
            times = SortedTimes(number, int(first_times.min()), kept.last_time, partial(self._count_times, kept))
            boundaries = time_boundaries(config, times)
            items = window_labels(boundaries, first_times)
        return SplitPlan(config.kind, items, users, boundaries, seed, item_hashes)

    def _count_times(self, kept: KeptItems, low: int, width: int) -> NDArray[np.int64]:
        """A histogram of all timestamps: one pass over the grouped buckets."""
        paths = [self._bucket_path(bucket) for bucket in self._buckets(kept)]
        total = np.zeros(NUM_BINS, dtype=np.int64)
        for counts in in_tasks(bucket_times, paths, low=low, width=width):
            total += counts
        return total

    def _write_catalog(self, index: CatalogIndex, item_index: NDArray[np.int32], plan: SplitPlan) -> None:
        labels = np.zeros(len(index.item_ids), dtype=np.int8)
        labels[item_index >= 0] = plan.items
        names = self._staged_catalog()
        self.report("write catalog", 0, int((item_index >= 0).sum()))
        task = {
            "rows": ray.put(index.rows),
            "item_index": ray.put(item_index),
            "labels": ray.put(labels),
            "place": self.place,
        }
        parts = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
        written = parts.map_batches(finish_catalog, batch_size=1, batch_format="numpy", fn_kwargs=task, num_cpus=1)
        done = 0
        for table in drain(written):
            done += int(pc.sum(table["items"]).as_py())
            self.report("write catalog", done, int((item_index >= 0).sum()))

    def _write_users(self, kept: KeptItems, item_index: NDArray[np.int32], plan: SplitPlan) -> DomainMeta:
        starts = np.concatenate([[0], np.cumsum(kept.bucket_users)])
        self.report("write users", 0, int(starts[-1]))
        buckets = self._buckets(kept)
        work = [{"bucket": b, "name": self._bucket_path(b), "first_user": int(starts[b])} for b in buckets]
        task = {"item_index": ray.put(item_index), "plan": ray.put(plan), "place": self.place}
        parts = ray.data.from_items(work, override_num_blocks=len(work))
        written = parts.map_batches(finish_users, batch_size=1, batch_format="numpy", fn_kwargs=task, num_cpus=1)
        rows: list[dict[str, int]] = []
        for table in drain(written):
            rows += table.to_pylist()
            self.report("write users", sum(row["users"] for row in rows), int(starts[-1]))
        return self._meta(sorted(rows, key=lambda row: row["bucket"]), plan)

    def _meta(self, rows: Sequence[Mapping[str, int]], plan: SplitPlan) -> DomainMeta:
        counted: Counter[str] = Counter()
        for row in rows:
            counted.update(row)
        names = ("train", "validation", "test")
        interactions = {name: counted[name] for name in names}
        held_out = {"item": ("test",), "time": ("test",), "user": ("test",)}[plan.kind]
        if not counted["trainable"] or any(not interactions[name] for name in held_out):
            raise DataError(f"split: leaves {interactions} interactions; change split.validation and split.test")
        return DomainMeta(
            name=self.place.domain,
            num_items=len(plan.items),
            num_users=len(plan.users),
            num_interactions=sum(interactions.values()),
            items=label_counts(plan.items),
            users=label_counts(plan.users),
            interactions=interactions,
            training_users={name: counted[key] for name, key in TRAINING_USERS.items()},
            training_users_of_parts={name: [row[key] for row in rows] for name, key in TRAINING_USERS.items()},
            dropped=dict(self.dropped),
            time_boundaries=list(plan.boundaries) if plan.boundaries else None,
            first_item=self.place.first_item,
            first_user=self.place.first_user,
            held_out_twins=self.held_out_twins,
        )

    def _buckets(self, kept: KeptItems) -> list[int]:
        return [int(bucket) for bucket in np.flatnonzero(kept.bucket_users)]

    def _bucket_path(self, bucket: int) -> str:
        return join(self.scratch, f"users-{bucket:05d}.parquet")


def _three(ids: pa.Array) -> str:
    shown = ", ".join(repr(one) for one in ids[:3].to_pylist())
    return f"{shown} ({ids.type})"
