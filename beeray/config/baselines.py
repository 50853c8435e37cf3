"""What a fine-tuned encoder is measured against, and how each of them is fitted."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from beeray.config.section import Section, refuse_repeated
from beeray.config.training import HeadConfig

Baseline = Literal["popularity", "item_knn", "ease", "elsa", "untouched", "frozen_head"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
WITHOUT_TEXT: tuple[Baseline, ...] = ("popularity", "item_knn", "ease", "elsa")
"""Those that know interactions alone, so that they cannot rank items without any."""


class ItemKnnConfig(Section):
    """Items that the same users have, by cosine."""

    neighbours: int = Field(50, ge=1)
    """Similar items kept for each item."""
    shrink: float = Field(0.0, ge=0)
    """Added to the denominator of every cosine, in users: takes weight from similarities seen with few."""


class EaseConfig(Section):
    """The linear autoencoder in closed form."""

    l2: float = Field(100.0, gt=0)
    """λ of the ridge regression; larger is smoother."""
    max_items: int = Field(40_000, ge=1)
    """Items with interactions for which a dense float32 matrix of items × items is held: 6 GiB at the default."""


class ElsaConfig(Section):
    """The shallow autoencoder that encoders are fine-tuned with, on an embedding of its own for every item."""

    dim: int = Field(512, ge=1)
    """Numbers of an item's embedding."""
    epochs: int = Field(20, ge=1)
    """Passes over all users."""
    batch_size: int = Field(256, ge=1)
    """Users of a step."""
    lr: float = Field(0.01, gt=0)
    """Learning rate of Adam, constant."""


class BaselinesConfig(Section):
    """Which baselines `beeray.baselines` fits, and how."""

    which: tuple[Baseline, ...] = BASELINES
    """Those that are fitted. The first four know no text; `untouched` is `encoder.name` as it is."""
    item_knn: ItemKnnConfig = ItemKnnConfig()
    ease: EaseConfig = EaseConfig()
    elsa: ElsaConfig = ElsaConfig()
    frozen_head: HeadConfig = HeadConfig()
    """The strongest cheap control: a head trained alone, under the loss of training, on an encoder that is not."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> BaselinesConfig:
        if not self.which:
            raise ValueError(f"baselines.which is empty; give at least one of {', '.join(BASELINES)}")
        refuse_repeated("baselines.which", self.which)
        return self

    def settings_of(self, name: Baseline) -> dict[str, Any]:
        """What decides a baseline beside data and seed."""
        section = getattr(self, name, None)
        return section.model_dump(mode="json") if section is not None else {}
