"""The nightly training: what the gate between a new model and the serving one measures, and what it allows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from beeray.config.section import Section


class NightlyConfig(Section):
    """What `beeray.nightly` asks of a new model before it is published.

    It is published if, by a paired bootstrap over users, its metric less the serving model's has a 95 % interval that
    does not lie below zero as a whole (it is not worse), and does not reach below zero by more than `max_loss` of the
    serving model's metric (it is not possibly much worse, because too few users were scored).
    """

    metric: str | None = None
    """As in `metrics.json`, e.g. `ndcg@100`; the first of `evaluate.ndcg_at`, or of `recall_at`, unless set."""
    split: Literal["validation", "test"] | None = None
    """`test` unless set, or what `evaluate.splits` has instead."""
    ranking: str | None = None
    """As in `metrics.json`; `held_out` where the split has it, else `catalog`, unless set."""
    max_loss: float = Field(0.02, ge=0, lt=1)
    """Loss that the interval may not rule out, as a share of the serving model's metric."""
    num_bootstrap: int = Field(10_000, ge=100, le=1_000_000)
    """Resamples of users that the interval is taken from."""
    keep_runs: int = Field(7, ge=1)
    """Runs of the last nights that are kept, beside those whose models serve."""
