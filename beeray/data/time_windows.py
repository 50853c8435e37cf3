"""All timestamps as if sorted, without holding them: any place in the order, found by histograms.

Each histogram is one pass over the timestamps, wherever they are; a value of 64 bits takes at most four passes, and
what is held is `NUM_BINS` counts, however many timestamps there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 1 << 18
Times = NDArray[np.int64]
Histogram = Callable[[int, int], Times]
"""(lowest, width) → how many timestamps lie in each of `NUM_BINS` bins of that width, the first from `lowest` on."""


@dataclass(frozen=True)
class SortedTimes:
    """Timestamps in ascending order.

    Attributes:
        number: how many there are.
        first, last: the earliest and the latest.
        histogram: counts them; see `Histogram`.
    """

    number: int
    first: int
    last: int
    histogram: Histogram
    _counted: dict[tuple[int, int], Times] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, times: Times) -> SortedTimes:
        """Timestamps that are in memory."""
        return cls(len(times), int(times.min()), int(times.max()), lambda low, width: count_times(times, low, width))

    def at(self, place: int) -> tuple[int, int]:
        """The timestamp at a place from 0, and how many are earlier than it."""
        assert 0 <= place < self.number, (place, self.number)
        low, span, before = self.first, self.last - self.first + 1, 0
        while span > 1:
            width = -(-span // NUM_BINS)
            ends = np.cumsum(self._count(low, width))
            number = int(np.searchsorted(ends, place - before, side="right"))
            before += int(ends[number - 1]) if number else 0
            low, span = low + number * width, width
        return low, before

    def _count(self, low: int, width: int) -> Times:
        if (low, width) not in self._counted:
            self._counted[low, width] = self.histogram(low, width)
        return self._counted[low, width]


def count_times(times: Times, low: int, width: int) -> Times:
    """How many of some timestamps lie in each bin; int64 (`NUM_BINS`,)."""
    above = times[times >= low].view(np.uint64) - np.uint64(low % 2**64)  # modulo 2**64: no range overflows
    bins = above // np.uint64(width)
    return np.bincount(bins[bins < NUM_BINS].astype(np.int64), minlength=NUM_BINS)
