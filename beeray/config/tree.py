"""The whole tree, what fits together in it, and what of it decides a result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from beeray.config.baselines import BaselinesConfig
from beeray.config.cluster import ClusterConfig, DeepSpeedConfig, TrackingConfig
from beeray.config.credentials import refuse_passwords
from beeray.config.data import HANDED_DOWN, DataConfig, SplitConfig
from beeray.config.embed import EmbedConfig
from beeray.config.index import IndexConfig
from beeray.config.nightly import NightlyConfig
from beeray.config.paths import URI, from_root, mistyped, placed
from beeray.config.protocol import ProtocolConfig
from beeray.config.report import ReportConfig
from beeray.config.section import Section
from beeray.config.space import check_space
from beeray.config.storage import StorageConfig
from beeray.config.training import EncoderConfig, EvaluateConfig, TrainConfig
from beeray.config.tune import TuneConfig

WHERE_TABLES_ARE = re.compile(
    r"data\.(domains\.[^.]+\.)?(path|descriptions|store|num_buckets|(catalog|interactions)\.path)"
)
"""Keys of `data` that decide no result: what is in the tables, a store's fingerprint says."""


class Config(Section):
    """The whole tree. `name` names the run, its folder and, unless set otherwise, its store."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; in a config file without one, the file's. Letters, digits, `.`, `_` and `-`."""
    seed: int = Field(42, ge=0)
    """Fixes, with the number of workers, every draw of a run: held-out data, order of users, items of a step, dropout.
    `data.shop`, `index` and `tune` have seeds of their own."""
    runs_dir: str = "runs"
    """Folder of all runs, on a disk that every node can write to. A relative path begins at `BEERAY_ROOT`, or at the
    working folder where that is not set."""
    storage: StorageConfig = StorageConfig()
    data: DataConfig
    split: SplitConfig = SplitConfig()
    encoder: EncoderConfig = EncoderConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    embed: EmbedConfig = EmbedConfig()
    index: IndexConfig = IndexConfig()
    nightly: NightlyConfig = NightlyConfig()
    report: ReportConfig = ReportConfig()
    cluster: ClusterConfig = ClusterConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    tracking: TrackingConfig = TrackingConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="before")
    @classmethod
    def _holds_no_password(cls, tree: Any) -> Any:
        refuse_passwords(tree)  # first: other refusals show the value
        return tree

    @model_validator(mode="after")
    def _names_places(self) -> Config:
        if "://" in self.runs_dir or URI.match(self.runs_dir):
            raise ValueError(
                f"runs_dir is {self.runs_dir!r}: it must be a folder on a disk that every node can write to"
            )
        typed = {"runs_dir": self.runs_dir, "data.store": self.data.store}
        typed |= {"embed.path": self.embed.path, "index.path": self.index.path}
        for key, path in typed.items():
            trouble = mistyped(path or "")  # once it is absolute, it is a folder of that name
            if trouble:
                raise ValueError(f"{key} is {path!r}: {trouble}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        train = self.train
        if self.trains_on_validation and train.evaluate_every_epochs:
            raise ValueError(
                "train.evaluate_every_epochs is set, but validation data is trained on (train.with_validation, or "
                "split.reproduce); set train.with_validation: false, or leave evaluate_every_epochs out"
            )
        if train.items == "catalog" and (train.checkpoint_every_steps or 0) % train.catalog_refresh:
            raise ValueError(
                f"train.checkpoint_every_steps is {train.checkpoint_every_steps}: with items: catalog it must be a "
                f"multiple of train.catalog_refresh ({train.catalog_refresh}), so that a resumed run has a fresh table"
            )
        return self

    @model_validator(mode="after")
    def _knows_its_domains(self) -> Config:
        domains = list(self.data.domains or [self.data.domain])
        for name in domains:
            self.split_of(name)
        for section, asked in (("evaluate", self.evaluate.domains), ("embed", self.embed.domains)):
            unknown = [name for name in asked or () if name not in domains]
            if unknown:
                named = ", ".join(str(name) for name in domains if name) or "one source, without a name"
                raise ValueError(
                    f"{section}.domains names {unknown[0]!r}: the domains of data are {named}; correct the name"
                )
        return self

    @model_validator(mode="after")
    def _deals_users_evenly(self) -> Config:
        if self.train.batch_size % self.cluster.num_workers:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}: it counts users over all workers, so it must be a "
                f"multiple of cluster.num_workers ({self.cluster.num_workers})"
            )
        return self

    @model_validator(mode="after")
    def _searches_what_there_is(self) -> Config:
        if self.tune != TuneConfig():
            check_space(self)
        return self

    def split_of(self, domain: str | None) -> SplitConfig:
        """`split` with a domain's own sizes laid over it."""
        if self.data.domains is None or domain is None:
            return self.split
        own = self.data.domains[domain].split.model_dump(exclude_none=True)
        try:
            return SplitConfig.model_validate(self.split.model_dump() | own) if own else self.split
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"data.domains.{domain}.split does not fit split: {said}") from None

    def by_domain(self) -> dict[str | None, Config]:
        """What works on one catalog at a time: a config of one source a domain, which publishes into its own folder.

        Itself, under no name, when there is one source.
        """
        if self.data.domains is None or self.embed.catalog is not None:
            return {None: self}
        configs: dict[str | None, Config] = {}
        for data in self.data.single_sources():
            if self.embed.domains is not None and data.domain not in self.embed.domains:
                continue
            embed = self.embed.model_copy(update={"path": f"{self.embeddings_path.rstrip('/')}/{data.domain}"})
            configs[data.domain] = self.model_copy(update={"data": data, "embed": embed})
        return configs

    @property
    def served_seq_length(self) -> int:
        """Text length at evaluation and of the exported model."""
        return self.evaluate.max_seq_length or self.encoder.max_seq_length

    @property
    def longest_seq_length(self) -> int:
        """Tokens of a text that training or evaluation may ask for."""
        return max(self.served_seq_length, self.encoder.max_seq_length)

    @property
    def run_dir(self) -> Path:
        """Absolute folder of this run."""
        return from_root(self.runs_dir) / self.name

    @property
    def store_path(self) -> str:
        """Where the prepared store is or will be; absolute, since workers have folders of their own."""
        path = self.data.store or f"stores/{self.name}"
        return placed(path)

    @property
    def embeddings_path(self) -> str:
        """Where embeddings are published; absolute, since workers have folders of their own."""
        path = self.embed.path or f"embeddings/{self.name}"
        return placed(path)

    @property
    def published_seq_length(self) -> int:
        """Text length of published embeddings."""
        return self.embed.max_seq_length or self.served_seq_length

    @property
    def trains_on_validation(self) -> bool:
        """Whether validation data is trained on (`train.with_validation`, or the split's habit)."""
        if self.train.with_validation is not None:
            return self.train.with_validation
        return self.split.reproduce is not None

    @property
    def begins_with(self) -> str:
        """The encoder before training, as it is named."""
        return self.train.init_from or self.encoder.name

    @property
    def measures_neighbours(self) -> bool:
        """Whether training measures the semantic neighbours that are kept."""
        if self.evaluate.neighbours is not None:
            return self.evaluate.neighbours
        embeds_original = self.evaluate.before and self.train.head is None  # with a head, another one is scored
        return embeds_original or self.train.distill_weight > 0

    def as_written(self, *, exclude: set[str] | None = None) -> dict[str, Any]:
        """The tree for a file: what domains took over from `data` stands there alone, where it is changed for all."""
        tree = self.model_dump(mode="json", exclude=exclude)
        data = tree["data"]
        for domain in (data["domains"] or {}).values():
            for key in HANDED_DOWN:
                if domain[key] == data[key]:
                    del domain[key]
        return tree

    def result_digest(self) -> str:
        """Digest of everything that decides what training computes (not of where it runs or is tracked)."""
        return _digest(self.result_keys())

    def result_keys(self) -> dict[str, Any]:
        """The dotted keys, with values, that decide what training computes."""
        elsewhere = {"name", "runs_dir", "storage", "evaluate", "tracking"}
        elsewhere |= {"baselines", "protocol", "embed", "index", "nightly", "report", "tune"}  # what other verbs do
        deciding = self.model_dump(mode="json", exclude=elsewhere)
        for key in ("address", "object_store_mib", "max_failures", "placement_timeout_s", "threads_per_worker"):
            deciding["cluster"].pop(key)
        for key in ("cpus_per_worker", "gpus_per_worker", "peak_tflops"):
            deciding["cluster"].pop(key)
        for key in (
            "evaluate_every_epochs",
            "checkpoint_every_steps",
            "checkpoint_every_minutes",
            "keep_checkpoints",
            "profile",
        ):
            deciding["train"].pop(key)
        deciding["served_seq_length"] = self.served_seq_length
        return {key: value for key, value in _flatten(deciding) if not WHERE_TABLES_ARE.fullmatch(key)}


def flatten_config(config: Config) -> dict[str, Any]:
    """The config as dotted keys, e.g. `{"train.lr": 1e-05}`."""
    return dict(_flatten(config.model_dump(mode="json")))


def config_digest(section: BaseModel | Mapping[str, Any]) -> str:
    """Digest of a section or mapping: 16 hex digits, the same on every machine."""
    return _digest(section.model_dump(mode="json") if isinstance(section, BaseModel) else dict(section))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
