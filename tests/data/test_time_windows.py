"""Places in the order of all timestamps by histograms, against sorting them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from beeray.data.time_windows import NUM_BINS, SortedTimes, count_times

GENERATOR = np.random.default_rng(0)
CASES = {
    "one instant": np.full(10, 7),
    "a few": np.array([3, 1, 2, 2, 9]),
    "seconds": GENERATOR.integers(789_652_009, 1_427_784_002, 5000),
    "microseconds": GENERATOR.integers(0, 1_500_000_000_000_000, 5000),
    "all that 64 bits hold": np.array([np.iinfo(np.int64).min, -5, 0, 5, np.iinfo(np.int64).max]),
    "far apart and crowded": np.concatenate([[-(2**62), 2**62], GENERATOR.integers(100, 103, 1000)]),
}


@pytest.mark.parametrize("times", CASES.values(), ids=CASES.keys())
def test_every_place_is_as_sorting_tells(times: NDArray[np.int64]) -> None:
    ordered, found = np.sort(times), SortedTimes.of(times)
    assert (found.number, found.first, found.last) == (len(times), ordered[0], ordered[-1])
    for place in {0, 1, len(times) // 3, len(times) // 2, len(times) - 2, len(times) - 1}:
        value, before = found.at(place)
        assert value == ordered[place]
        assert before == int((times < ordered[place]).sum())


def test_no_more_than_four_passes_are_made_and_none_twice() -> None:
    passes: list[tuple[int, int]] = []
    times = CASES["all that 64 bits hold"]

    def histogram(low: int, width: int) -> NDArray[np.int64]:
        passes.append((low, width))
        return count_times(times, low, width)

    found = SortedTimes(len(times), int(times.min()), int(times.max()), histogram)
    assert found.at(2) == found.at(2) == (0, 2)
    assert len(passes) == len(set(passes)) <= 4


def test_a_histogram_counts_what_lies_in_its_bins_alone() -> None:
    counts = count_times(np.array([9, 10, 14, 15, 10 + 5 * NUM_BINS]), 10, 5)
    assert counts[:3].tolist() == [2, 1, 0]
    assert counts.sum() == 3
