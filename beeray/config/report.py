"""The page that every evaluated run leaves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from beeray.config.section import Section


class ReportConfig(Section):
    """Whether `report.html` is written, and how many items can be looked up in it."""

    enabled: bool = True
    """Write `report.html` after training and after every evaluation."""
    max_items: int = Field(2000, ge=2, le=5000)
    """Items in the explorer and the map: all of a smaller catalog, else the most interacted with and a random share."""
    layout: Literal["tsne", "pca"] = "tsne"
    """The 2-D map: t-SNE keeps neighbours together and takes seconds; `pca` is instantaneous and coarse."""
