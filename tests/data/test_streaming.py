"""Plain Ray tasks over inputs: answers in order, and a user's error as it was raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray

from beeray.data.streaming import drain, in_tasks, set_up_ray_data
from beeray.errors import DataError, RunError, StoreError

pytestmark = pytest.mark.usefixtures("ray_session")


def a_task() -> Callable[..., float]:
    """A function that travels by value: Ray's workers do not see the folders that pytest has put on the path."""

    def scaled(number: int, table: np.ndarray, offset: int) -> float:
        if number == 13:
            raise DataError("13: is an unlucky number; take another")
        return float(table[number]) + offset

    return scaled


def test_answers_come_in_the_order_of_the_inputs() -> None:
    table = ray.put(np.arange(100.0))
    assert list(in_tasks(a_task(), reversed(range(12)), table=table, offset=1)) == [
        float(n + 1) for n in range(11, -1, -1)
    ]
    assert list(in_tasks(a_task(), [], table=table, offset=1)) == []


def test_an_error_for_the_user_arrives_as_it_was_raised() -> None:
    with pytest.raises(DataError, match=r"^13: is an unlucky number; take another$") as error:
        list(in_tasks(a_task(), range(10, 20), table=ray.put(np.arange(100.0)), offset=0))
    assert not isinstance(error.value, StoreError)


@pytest.mark.parametrize("generates", [False, True])
def test_an_error_in_a_dataset_is_the_task_s_own_line_alone(generates: bool) -> None:
    said = "catalog\\nFailed to be good: is damaged; write it again"  # a name with a line break, as it is shown

    def fails(batch: Any) -> Any:
        raise DataError("catalog\nFailed to be good: is damaged; write it again")

    def yields(batch: Any) -> Any:
        yield batch
        fails(batch)

    set_up_ray_data()
    with pytest.raises(DataError) as error:
        list(drain(ray.data.from_items([1]).map_batches(yields if generates else fails)))
    assert str(error.value) == said


def test_a_worker_that_dies_again_and_again_is_told_as_lost() -> None:
    def dies(number: int) -> int:
        import os

        os._exit(1)

    with pytest.raises(RunError, match=r"^the cluster lost work on the data \(The worker died unexpectedly"):
        list(in_tasks(dies, [1]))
    batches = ray.data.from_items([1], override_num_blocks=1).map_batches(
        lambda batch: dies(1), batch_size=1, max_retries=0
    )
    with pytest.raises(RunError, match=r"^the cluster lost work on the data \("):
        list(drain(batches))
