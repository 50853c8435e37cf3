"""Learning-rate factors against values worked out by hand."""

from __future__ import annotations

from math import cos, pi, sqrt

import pytest

from beeray.core.schedules import SCHEDULERS, lr_factor


def factors(scheduler: str, steps: list[int], num_steps: int = 10, warmup_fraction: float = 0.2) -> list[float]:
    return [lr_factor(scheduler, step, num_steps, warmup_fraction) for step in steps]


def test_constant_is_one_even_with_a_warmup() -> None:
    assert factors("constant", [0, 1, 9, 100]) == [1.0, 1.0, 1.0, 1.0]


def test_linear_warmup_rises_over_its_share_of_the_steps_and_stays() -> None:
    # 0.4 of 10 steps: 1/4, 2/4, 3/4, 4/4, then 1
    assert factors("linear_warmup", [0, 1, 2, 3, 4, 9, 50], warmup_fraction=0.4) == [0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_cosine_rises_then_falls_to_zero_and_stays_there() -> None:
    # 2 steps up, then 8 steps of half a cosine: a quarter of the way cos(π/4), half of it 0
    expected = [0.5, 1.0, 1.0, (1 + sqrt(0.5)) / 2, 0.5, (1 + cos(pi * 7 / 8)) / 2, 0.0, 0.0]
    assert factors("cosine", [0, 1, 2, 4, 6, 9, 10, 99]) == pytest.approx(expected, abs=1e-12)


def test_a_warmup_that_is_no_whole_number_of_steps_is_rounded_up() -> None:
    # 0.25 of 10 steps: 3 of them
    assert factors("linear_warmup", [0, 1, 2, 3], warmup_fraction=0.25) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


@pytest.mark.parametrize("scheduler", ["linear_warmup", "cosine"])
def test_without_warmup_the_first_step_has_the_full_rate(scheduler: str) -> None:
    assert lr_factor(scheduler, 0, 10, 0.0) == 1.0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.5, 1.0])
def test_no_step_has_rate_zero_or_above_one(scheduler: str, warmup_fraction: float) -> None:
    for num_steps in (1, 2, 7):
        assert all(0 < lr_factor(scheduler, step, num_steps, warmup_fraction) <= 1 for step in range(num_steps))


def test_an_unknown_scheduler_is_refused_with_the_list_of_those_known() -> None:
    with pytest.raises(ValueError, match=r"scheduler 'step'.*constant, linear_warmup, cosine"):
        lr_factor("step", 0, 10, 0.0)
