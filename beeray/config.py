"""The one configuration tree: YAML → dotted overrides → validated once, then frozen.

A config file is parsed with YAML's safe loader, `key.sub=value` arguments are laid over it (their
values are YAML too), and the result is validated by one pydantic model tree that refuses unknown
keys. Nobody re-validates later, and nobody mutates: what a run uses is what `config.yaml` in its
folder says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from beeray.config_errors import explain
from beeray.errors import ConfigError

CONFIGS_DIR = Path(__file__).resolve().parent.parent / "configs"

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A frozen part of the tree; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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
    num_buckets: int = Field(8, ge=1, le=4096)
    """User buckets of the shuffle; more buckets need less memory at a time."""

    @model_validator(mode="after")
    def _has_its_tables(self) -> DataConfig:
        if self.source in ("goodbooks", "movielens") and not self.path:
            raise ValueError(f"data.path is required for source {self.source!r}: the folder of its original files")
        if self.source == "tables" and (self.catalog is None or self.interactions is None):
            raise ValueError("data.catalog and data.interactions are required for source 'tables'")
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


class EncoderConfig(Section):
    """The sentence transformer that is trained or evaluated."""

    name: str = "sentence-transformers/all-mpnet-base-v2"
    """Hub name, folder, or `package:<python package>/<folder inside it>`."""
    max_seq_length: int = Field(384, ge=8)
    prefix: str = ""
    """Put before every text; exported as the model's default prompt."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout probability while training; the encoder's own unless set."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"


class TrainConfig(Section):
    """The optimisation: objective, items and users of a step, schedule, precision."""

    lr: float = Field(1e-5, gt=0)
    optimizer: Literal["nadam", "adamw"] = "nadam"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""
    scheduler: Literal["constant", "linear_warmup", "cosine"] = "constant"
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of all steps over which lr rises linearly (`linear_warmup`, `cosine`)."""
    epochs: int = Field(5, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many steps; the schedule is laid over them."""
    batch_size: int = Field(1024, ge=1)
    """Users a step, over all workers."""
    items: Literal["bounded", "all_positives", "catalog"] = "bounded"
    max_output: Annotated[int, Field(ge=2)] | Literal["all"] = 10000
    """Items a step encodes and scores, over all workers; `all` is the full-catalog step."""
    catalog_refresh: int = Field(1, ge=1)
    """`items: catalog`: steps between two embeddings of the whole catalog."""
    relu: bool = True
    top_k: int | None = Field(None, ge=1)
    """Optimise only each user's k highest scores."""
    with_validation: bool | None = None
    """Train on validation data too; unset means only under `split.reproduce: beeformer`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    token_budget: int = Field(8192, ge=1)
    """Padded tokens of one micro-batch."""
    activation_budget_gib: float = Field(1.0, ge=0)
    """Activations a worker may keep; micro-batches beyond it are recomputed in backward."""
    evaluate_every_epochs: int | None = Field(None, ge=1)
    """Evaluate the validation split after every so many epochs; null: never while training."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints; null: once an epoch."""
    keep_checkpoints: int = Field(2, ge=1)


class EvaluateConfig(Section):
    """What is measured and how much memory a block may take."""

    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    """What `train` scores when it is done, and `evaluate` scores; empty: nothing."""
    recall_at: tuple[Annotated[int, Field(ge=1)], ...] = (20, 50)
    ndcg_at: tuple[Annotated[int, Field(ge=1)], ...] = (100,)
    max_seq_length: int | None = Field(None, ge=8)
    """Text length at evaluation; the encoder's unless set."""
    full_catalog: bool = True
    """`item` split: also rank the held-out items among the whole catalog."""
    before: bool = False
    """`train`: score the encoder before training, too."""
    num_bootstrap: int = Field(1000, ge=2)
    users_per_block: int = Field(512, ge=1)
    items_per_block: int = Field(65536, ge=1)

    @model_validator(mode="after")
    def _measures_something(self) -> EvaluateConfig:
        if not self.recall_at and not self.ndcg_at:
            raise ValueError("evaluate.recall_at and evaluate.ndcg_at are both empty; give at least one k")
        return self


class ClusterConfig(Section):
    """What is asked of Ray."""

    num_workers: int = Field(1, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float = Field(0.5, ge=0)
    """CPUs reserved for a training worker; what is left streams its data."""
    gpus_per_worker: float = Field(1.0, gt=0)
    threads_per_worker: int | None = Field(None, ge=1)
    """Compute threads of a worker; the node's cores divided by its workers unless set."""
    address: str | None = None
    """Ray address to join; unset joins the cluster that started the command, or starts Ray here."""
    object_store_mib: int = Field(512, ge=80)
    """Object store of a Ray that is started here."""
    max_failures: int = Field(2, ge=0)
    """Worker deaths survived within one command."""
    placement_timeout_s: float = Field(60, gt=0)
    """How long an autoscaling cluster may take to offer the resources asked for."""


class DeepSpeedConfig(Section):
    """What is asked of DeepSpeed."""

    stage: Literal[0, 1, 2, 3] = 1


class TrackingConfig(Section):
    """Where MLflow records go."""

    uri: str | None = None
    """MLflow tracking URI; a sqlite file in the runs folder unless set."""
    experiment: str = "beeray"
    log_model: bool = True
    registered_model: str | None = None


class Config(Section):
    """The whole tree. `name` names the run, its folder and, unless set otherwise, its store."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(42, ge=0)
    runs_dir: str = "runs"
    data: DataConfig
    split: SplitConfig = SplitConfig()
    encoder: EncoderConfig = EncoderConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        train = self.train
        if "://" in self.runs_dir:
            raise ValueError(
                f"runs_dir is {self.runs_dir!r}: it must be a folder on a disk that every node can write to"
            )
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
    def _deals_users_evenly(self) -> Config:
        if self.train.batch_size % self.cluster.num_workers:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}: it counts users over all workers, so it must be a "
                f"multiple of cluster.num_workers ({self.cluster.num_workers})"
            )
        return self

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
        return Path(self.runs_dir).absolute() / self.name

    @property
    def store_path(self) -> str:
        """Where the prepared store is or will be; absolute, since workers have folders of their own."""
        path = self.data.store or f"stores/{self.name}"
        return path if "://" in path else str(Path(path).absolute())

    @property
    def trains_on_validation(self) -> bool:
        """Whether validation data is trained on (`train.with_validation`, or the split's habit)."""
        if self.train.with_validation is not None:
            return self.train.with_validation
        return self.split.reproduce is not None

    def result_digest(self) -> str:
        """Digest of everything that decides what training computes (not of where it runs or is tracked)."""
        return _digest(self.result_keys())

    def result_keys(self) -> dict[str, Any]:
        """The dotted keys, with values, that decide what training computes."""
        deciding = self.model_dump(mode="json", exclude={"name", "runs_dir", "evaluate", "tracking"})
        for key in ("address", "object_store_mib", "max_failures", "placement_timeout_s", "threads_per_worker"):
            deciding["cluster"].pop(key)
        for key in ("cpus_per_worker", "gpus_per_worker"):
            deciding["cluster"].pop(key)
        for key in ("evaluate_every_epochs", "checkpoint_every_steps", "keep_checkpoints"):
            deciding["train"].pop(key)
        deciding["served_seq_length"] = self.served_seq_length
        return dict(_flatten(deciding))


def load_config(reference: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key.sub=value` overrides, validate once.

    Args:
        reference: path as given, or a name looked up under `configs/`.
        overrides: dotted `key=value` strings; values are parsed as YAML.

    Raises:
        ConfigError: file not found, YAML that does not parse, unknown key (the nearest valid one is
            named), or a value of the wrong type or range.
    """
    path = _find(reference)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}, must be a mapping of config keys")
    for override in overrides:
        _apply(tree, override)
    tree.setdefault("name", path.stem)
    return validate_config(tree, where=str(path))


def validate_config(tree: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a plain mapping into a `Config`, with one clear line on the first error."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, Config)}") from None


def flatten_config(config: Config) -> dict[str, Any]:
    """The config as dotted keys, e.g. `{"train.lr": 1e-05}`."""
    return dict(_flatten(config.model_dump(mode="json")))


def config_digest(section: BaseModel | Mapping[str, Any]) -> str:
    """Digest of a section or mapping: 16 hex digits, the same on every machine."""
    return _digest(section.model_dump(mode="json") if isinstance(section, BaseModel) else dict(section))


def _find(reference: str) -> Path:
    names = (reference, f"{reference}.yaml")
    tried = [Path(reference), *(folder / name for folder in (Path("configs"), CONFIGS_DIR) for name in names)]
    for path in tried:
        if path.is_file():
            return path
    known = sorted(p.name for p in CONFIGS_DIR.glob("*.yaml"))
    raise ConfigError(
        f"--config {reference!r}: no such file, here or under configs/ (there are: {', '.join(known) or 'none'})"
    )


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: must be of the form key.sub=value, e.g. train.lr=2e-5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        value = text  # `encoder.prefix=query: ` is a text that happens to look like YAML
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        below = node.get(parent)
        node[parent] = below = dict(below) if isinstance(below, dict) else {}
        node = below
    node[leaf] = value


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
