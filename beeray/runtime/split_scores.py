"""What a scoring pass found of a split's users; it travels from workers to the driver, and so opens without torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

    from beeray.core.exposure import Exposure


@dataclass(frozen=True)
class SplitScores:
    """Per-user metrics of one ranking, of this rank's users.

    Attributes:
        split: `validation` or `test`.
        ranking: which candidates; see `ranking_candidates`. `held_out@64` and such: with a prefix of the embeddings;
            `old_items`, `new_items`: asked for are only items that an earlier run knew, or did not.
        metrics: names of the columns of `scores`.
        user_index: int64 (users,).
        scores: float64 (users, metrics).
        num_candidates: items ranked.
        domain: whose users these are; None where the store has one domain.
        exposure: what users were shown: this rank's counts, until `with_figures`.
        shown: the figures of `core.exposure`, over all ranks' users.
        num_kept: items that stay in users' lists once they are ranked; None where all do.
    """

    split: str
    ranking: str
    metrics: list[str]
    user_index: NDArray[np.int64]
    scores: NDArray[np.float64]
    num_candidates: int
    domain: str | None = None
    exposure: Exposure | None = None
    shown: dict[str, float] = field(default_factory=dict)
    num_kept: int | None = None

    def with_figures(self) -> SplitScores:
        """The same with what users were shown in figures and not in counts, which must be those of all ranks."""
        return self if self.exposure is None else replace(self, exposure=None, shown=self.exposure.summary())

    def table(self) -> pa.Table:
        """The scores as a table: user_index, split, ranking, domain (where there are several), one column a metric."""
        import pyarrow as pa

        columns: dict[str, NDArray[Any]] = {"user_index": self.user_index}
        columns |= {name: self.scores[:, place] for place, name in enumerate(self.metrics)}
        table = pa.table(columns)
        for name in ("ranking", "split") if self.domain is None else ("domain", "ranking", "split"):
            value = pa.array([getattr(self, name)] * len(table)).dictionary_encode()
            table = table.add_column(1, name, value.cast(pa.string()))
        return table
