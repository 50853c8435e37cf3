"""What the driver knows of a domain's items and users once interactions have passed the rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass
class KeptItems:
    """What is known once every bucket has been grouped.

    Attributes:
        counts: interactions of each item of the catalog.
        first_rows, first_times: of each item's interactions, the largest int64 where there is none (or no time).
        bucket_users: users of each bucket.
        last_time: the latest of all.
    """

    counts: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    first_times: NDArray[np.int64]
    bucket_users: NDArray[np.int64]
    last_time: int = int(np.iinfo(np.int64).min)

    @classmethod
    def nothing(cls, num_items: int, num_buckets: int) -> KeptItems:
        """Before the first bucket."""
        first_rows, first_times = (np.full(num_items, np.iinfo(np.int64).max) for _ in range(2))
        counts, users = (np.zeros(number, dtype=np.int64) for number in (num_items, num_buckets))
        return cls(counts, first_rows, first_times, users)

    def add(self, items: pa.Table) -> None:
        """Add what one bucket counted, as `group_bucket` writes it."""
        places = items["item"].to_numpy()
        self.counts[places] += items["count"].to_numpy()
        self.first_rows[places] = np.minimum(self.first_rows[places], items["first_row"].to_numpy())
        if "first_time" in items.column_names:
            self.first_times[places] = np.minimum(self.first_times[places], items["first_time"].to_numpy())
            self.last_time = max(self.last_time, pc.max(items["last_time"]).as_py())
