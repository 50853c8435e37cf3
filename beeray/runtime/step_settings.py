"""The part of a config that `core` needs for a step."""

from __future__ import annotations

from beeray.config import Config
from beeray.core.step import StepSettings


def step_settings(config: Config) -> StepSettings:
    """The training step that a config describes."""
    train = config.train
    return StepSettings(
        items=train.items,
        max_output=None if train.max_output == "all" else train.max_output,
        max_seq_length=config.encoder.max_seq_length,
        loss=train.loss,
        relu=train.relu,
        top_k=train.top_k,
        temperature=train.temperature,
        matryoshka_dims=train.matryoshka_dims,
        distill_weight=train.distill_weight,
        token_budget=train.micro_batch_tokens(use_gpu=config.cluster.use_gpu),
        activation_budget_bytes=int(train.activation_budget_gib * 2**30),
        catalog_refresh=train.catalog_refresh,
        seed=config.seed,
    )
