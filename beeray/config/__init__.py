"""The one configuration tree: YAML → dotted overrides → validated once, then frozen.

A config file is parsed with YAML's safe loader, `key.sub=value` arguments are laid over it (their
values are YAML too), and the result is validated by one pydantic model tree that refuses unknown
keys. Nobody re-validates later, and nobody mutates: what a run uses is what `config.yaml` in its
folder says.
"""

from beeray.config.baselines import (
    BASELINES,
    WITHOUT_TEXT,
    Baseline,
    BaselinesConfig,
    EaseConfig,
    ElsaConfig,
    ItemKnnConfig,
)
from beeray.config.cluster import ClusterConfig, DeepSpeedConfig, TrackingConfig
from beeray.config.data import CatalogTable, DataConfig, DomainConfig, InteractionsTable, ShopConfig, SplitConfig
from beeray.config.embed import EmbedConfig
from beeray.config.index import IndexConfig
from beeray.config.loading import CONFIGS_DIR, load_config, validate_config
from beeray.config.nightly import NightlyConfig
from beeray.config.protocol import ProtocolConfig
from beeray.config.report import ReportConfig
from beeray.config.section import Section
from beeray.config.space import (
    at_point,
    epoch_metrics,
    noted_point,
    num_points,
    own_point,
    search_space,
    searched_metric,
)
from beeray.config.storage import StorageConfig
from beeray.config.training import EncoderConfig, EvaluateConfig, HeadConfig, LoraConfig, TrainConfig
from beeray.config.tree import Config, config_digest, flatten_config
from beeray.config.tune import AshaConfig, Dimension, TuneConfig

__all__ = [
    "BASELINES",
    "CONFIGS_DIR",
    "WITHOUT_TEXT",
    "AshaConfig",
    "Baseline",
    "BaselinesConfig",
    "CatalogTable",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "DeepSpeedConfig",
    "Dimension",
    "DomainConfig",
    "EaseConfig",
    "ElsaConfig",
    "EmbedConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "HeadConfig",
    "IndexConfig",
    "InteractionsTable",
    "ItemKnnConfig",
    "LoraConfig",
    "NightlyConfig",
    "ProtocolConfig",
    "ReportConfig",
    "Section",
    "ShopConfig",
    "SplitConfig",
    "StorageConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "at_point",
    "config_digest",
    "epoch_metrics",
    "flatten_config",
    "load_config",
    "noted_point",
    "num_points",
    "own_point",
    "search_space",
    "searched_metric",
    "validate_config",
]
