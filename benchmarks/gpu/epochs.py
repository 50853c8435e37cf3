"""Epochs of GoodBooks' full size, timed end to end: planned in a thread as a run does it, steps, optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from device import wait_for

from beeray.core.ahead import Ahead
from beeray.core.plan import StepPlan, StepPlanner
from beeray.core.step import TrainingStep
from beeray.core.user_items import UserItems

NUM_USERS = 53_365
ITEMS_PER_USER = 77
"""GoodBooks has 6.0 million ratings, 68 % of them of four or five stars: of users × books 0.77 % are interactions."""


def draw_users(number: int, num_catalog: int, generator: np.random.Generator) -> UserItems:
    """Users with about `ITEMS_PER_USER` items each, popular items more often."""
    popularity = np.cumsum(1.0 / np.arange(1, num_catalog + 1) ** 0.6)
    counts = np.clip(generator.poisson(ITEMS_PER_USER, number), 2, None)
    drawn = np.searchsorted(popularity / popularity[-1], generator.random(counts.sum()))
    owners, items = np.divmod(np.unique(np.repeat(np.arange(number), counts) * num_catalog + drawn), num_catalog)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=number))])
    return UserItems(indptr.astype(np.int64), items.astype(np.int32))


def plans(
    planner: StepPlanner, users: UserItems, users_a_step: int, epochs: int, generator: np.random.Generator
) -> Iterator[StepPlan]:
    """Every step of some epochs: all users in an order drawn anew each time, the last step with those left over."""
    steps = steps_an_epoch(users.num_users, users_a_step)
    for epoch in range(epochs):
        order = generator.permutation(users.num_users)
        for place in range(steps):
            chosen = users.take(order[place * users_a_step : (place + 1) * users_a_step])
            yield planner.plan(chosen, epoch=epoch, step=epoch * steps + place, step_in_epoch=place)


def steps_an_epoch(num_users: int, users_a_step: int) -> int:
    """Rounded up, so that every user is seen: 53 for 53,365 users by 1,024."""
    return math.ceil(num_users / users_a_step)


def time_epochs(
    step: TrainingStep, optimizer: torch.optim.Optimizer, planned: Iterator[StepPlan], num_steps: int, limit_s: float
) -> dict[str, Any]:
    """Train on planned steps until all are done or the limit is over; what it took, and would have taken in all.

    The clock runs from before the first plan is made until the last optimizer step is over, and what is not timed is
    taken to cost as much a step as what is.
    """
    ends: list[float] = []
    losses: list[float] = []
    wait_for(step.device)
    started = time.perf_counter()
    with Ahead(planned) as ahead:
        for plan in ahead:
            work = step.run(plan)
            optimizer.zero_grad()
            work.loss.backward()
            optimizer.step()
            losses.append(float(work.loss.detach()))
            wait_for(step.device)
            ends.append(time.perf_counter() - started)
            if ends[-1] >= limit_s:
                break
    return {
        "epochs_minutes": ends[-1] / len(ends) * num_steps / 60,
        "epochs_extrapolated": len(ends) < num_steps,
        "epochs_steps": num_steps,
        "epochs_steps_timed": len(ends),
        "epochs_timed_minutes": ends[-1] / 60,
        "epochs_loss_first_and_last": f"{losses[0]:.4f}, {losses[-1]:.4f}",
        "epochs_step_s": {"all": [round(float(one), 4) for one in np.diff([0.0, *ends])]},
    }
