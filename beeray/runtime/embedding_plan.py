"""What a nightly job computes from what, what it may reuse, and how it is cut into units."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from beeray.config import Config, EmbedConfig, config_digest
from beeray.data.dealing import GROUP_ROWS
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.embeddings import Embeddings
from beeray.data.publishing import JobState
from beeray.data.quarantine import READING_RULES
from beeray.data.tables import Table

UNITS_PER_ACTOR = 8
MIN_UNITS = 16
"""At least so many units, so that all actors have work to the end and a failure costs little."""
SMALLEST_UNIT = 256


@dataclass(frozen=True)
class JobPlan:
    """What a job computes from what.

    Attributes:
        model: name and fingerprint.
        encoding: everything that decides an item's vector but the model.
        catalog, template: what is read, and how a text is made of it.
        previous: the current publication, if there is one.
        full_run: why nothing of it can be reused; empty when it can.
        format: of the vectors.
        layout: what decides which rows are refused, what their ids are and how files are cut.
        previous_version: what `latest` named when the job was planned, damaged or not.
        follows: what tells that `latest` is still the same (`pointer_digest`).
    """

    model: dict[str, str]
    encoding: dict[str, Any]
    catalog: Table
    catalog_source: dict[str, str]
    template: str
    previous: Embeddings | None
    full_run: list[str]
    format: EmbeddingFormat
    layout: dict[str, int]
    previous_version: str | None = None
    follows: str | None = None

    @property
    def encoding_digest(self) -> str:
        """What vectors can be reused for."""
        return config_digest({"model": self.model["fingerprint"], **self.encoding})

    def digest(self) -> str:
        """Identity of the job: the same command after a kill has the same."""
        return config_digest(
            {
                "encoding": self.encoding_digest,
                "catalog": self.catalog_source,
                "previous": self.previous.version if self.previous else None,
                "full_run": self.full_run,
                "layout": self.layout,
            }
        )


def layout_of(embed: EmbedConfig) -> dict[str, int]:
    """What decides which rows are refused, what their ids are and how files are cut, not vectors."""
    settings = {key: getattr(embed, key) for key in ("max_text_chars", "rows_per_file", "rows_per_row_group")}
    return {**settings, "reading_rules": READING_RULES}


def full_run_reasons(
    previous: Embeddings | None,
    model: dict[str, str],
    encoding: dict[str, Any],
    missing: str = "nothing is published yet",
) -> list[str]:
    """Why vectors of the current publication cannot be reused, one reason a difference; empty when they can.

    Args:
        missing: why there is no publication, where there is none.
    """
    if previous is None:
        return [missing]
    before = previous.manifest
    reasons: list[str] = []
    if before.model["fingerprint"] != model["fingerprint"]:
        reasons.append(f"the model changed ({before.model['fingerprint']} → {model['fingerprint']})")
    for key in sorted(encoding.keys() | before.encoding.keys()):
        old, new = before.encoding.get(key), encoding.get(key)
        if old != new:
            reasons.append(f"{key} changed ({old!r} → {new!r})")
    return reasons


def choose_num_ranges(config: Config, rows: int, previous: Embeddings | None, num_actors: int = 1) -> int:
    """Files of a publication: as many as last time while that is near `embed.rows_per_file`, to keep sizes stable."""
    embed = config.embed
    smallest = max(1, min(max(MIN_UNITS, num_actors * UNITS_PER_ACTOR), rows // SMALLEST_UNIT))
    wanted = max(smallest, math.ceil(rows / embed.rows_per_file))
    if previous is not None:
        before = len(previous.manifest.files)
        if max(wanted / 2, min(smallest, num_actors)) <= before <= wanted * 2:
            return before
    return wanted


def new_state(config: Config, plan: JobPlan, digest: str, unfinished: list[JobState], num_actors: int) -> JobState:
    """State of a job that was not begun before."""
    version = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest[:8]}"
    previous = plan.previous
    if previous is not None and version <= previous.version:  # two within a second, or a clock that went back
        version = _next_name(previous.version, digest)
    form = plan.format
    if form.dtype == "int8" and config.embed.incremental:
        scales = [left.format.scale for left in unfinished if left.encoding_digest == plan.encoding_digest]
        if previous is not None and not plan.full_run:
            scales.insert(0, previous.manifest.format.scale)
        form = dataclasses.replace(form, scale=next((scale for scale in scales if scale is not None), None))
    rows = plan.catalog.estimated_rows()
    ranges = choose_num_ranges(config, rows, previous, num_actors)
    groups = min(ranges, max(1, math.ceil(rows / GROUP_ROWS)))
    return JobState(digest, version, ranges, groups, plan.encoding_digest, form)


def _next_name(previous: str, digest: str) -> str:
    """A name that sorts after another: it counts on, so that it stays short night after night."""
    stem, _, count = previous.partition(".")
    number = int(count.partition("-")[0]) + 1 if count.partition("-")[0].isdigit() else 1
    return f"{stem}.{number:06d}-{digest[:8]}"
