"""What the files of a checkpoint are called; apart, so that who looks for them alone needs no torch."""

from __future__ import annotations

STATE = "state.json"


def part_name(rank: int) -> str:
    """The file of a rank's part."""
    return f"state-{rank:05d}.safetensors"
