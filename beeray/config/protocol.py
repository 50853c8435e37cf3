"""What a protocol trains on, when that is not what it evaluates on."""

from __future__ import annotations

from beeray.config.section import Section


class ProtocolConfig(Section):
    """The one command that trains, evaluates, fits baselines and compares."""

    train_on: str | None = None
    """Config of the run that is evaluated here: zero-shot. Unset: this config trains its own."""
    overrides: tuple[str, ...] = ()
    """`key.sub=value`, laid over that config."""
