"""Which rankings a config has scored, by name; what they rank is in `scoring.ranking_candidates`. Imports no torch."""

from __future__ import annotations

from beeray.config import Config


def rankings(config: Config, *, full_catalog: bool = True) -> list[str]:
    """The rankings that are scored, the main one first."""
    if config.split.kind == "item":
        return ["held_out", *(["catalog"] if config.evaluate.full_catalog and full_catalog else [])]
    filtered = config.split.kind == "time" and config.evaluate.filtered and full_catalog
    return ["catalog", *(["filtered"] if filtered else [])]


def all_rankings(config: Config) -> list[str]:
    """The same, and those that `further_rankings` adds where the encoder is wide enough.

    Not `old_items` and `new_items`: whether these are made is known only when a run has begun.
    """
    usual = rankings(config)
    return [*usual, *(f"{usual[0]}@{width}" for width in config.train.matryoshka_dims)]
