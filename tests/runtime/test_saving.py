"""When a checkpoint is saved: by steps, by the clock, at once, and what is left for whoever goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from beeray.config import validate_config
from beeray.runtime.checkpoints import Position
from beeray.runtime.training import _Training
from beeray.runtime.wishes import Wish


class Run(_Training):
    """As much of a training as decides about checkpoints; what is done is written down."""

    def __init__(self, wish: Wish = Wish.NONE, *, table: object | None = None, **train: Any) -> None:
        self.config = validate_config({"name": "n", "data": {"source": "shop"}, "train": train})
        self.rank, self.nodes_going, self.save_is_due = 0, set[str](), False
        self.wish = wish
        self.step = SimpleNamespace(table=table)  # type: ignore[assignment]
        self.task = SimpleNamespace(send=lambda kind, **event: None)  # type: ignore[assignment]
        self.done: list[Any] = []
        self.scores = SimpleNamespace(validate=self._validated)  # type: ignore[assignment]

    def _validated(self, position: Position) -> dict[str, float]:
        self.done.append("validated")
        return {"validation/ndcg@100": 0.5}

    def _checkpoint(self, position: Position, metrics: dict[str, Any]) -> None:
        self.done.append((position, sorted(metrics)))
        self.save_is_due = False


def saved_at(run: Run, steps_per_epoch: int, num_steps: int) -> list[int]:
    position, saved = Position(), []
    for _ in range(num_steps):
        position = position.after(steps_per_epoch)
        if position.step_in_epoch and run._must_save(position):
            run._checkpoint(position, {})
            saved.append(position.step)
    return saved


def test_checkpoints_by_steps_come_at_their_steps() -> None:
    assert saved_at(Run(checkpoint_every_steps=3), 100, 10) == [3, 6, 9]
    assert saved_at(Run(), 100, 10) == []


def test_a_checkpoint_by_steps_waits_for_a_fresh_table_in_every_epoch() -> None:
    """In epochs of 7 steps a table of two steps is fresh at 0, 2, 4, 6 of each: at 7, 9, 11, 13 of the run."""
    catalog = {"items": "catalog", "catalog_refresh": 2, "checkpoint_every_steps": 2, "max_output": 50}
    run = Run(table=object(), **catalog)
    assert saved_at(run, 7, 14) == [2, 4, 6, 9, 11, 13]


@pytest.mark.parametrize("wish", [Wish.STOP, Wish.LOOK])
def test_where_there_is_no_time_an_epoch_is_saved_before_it_is_validated(
    wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice = SimpleNamespace(preempted_node_ids=["one"])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: notice)
    run, end = Run(wish, evaluate_every_epochs=1), Position(1, 0, 5)
    run._end_epoch(end)
    unvalidated = Position(1, 0, 5, unvalidated=True)
    assert run.done[0] == (unvalidated, ["epoch", "step"])
    later = [] if wish is Wish.STOP else ["validated", (end, ["epoch", "step", "validation/ndcg@100"])]
    assert run.done[1:] == later
    assert not unvalidated.after(5).unvalidated, "the next step's checkpoint is of another epoch"


def test_otherwise_an_epoch_is_saved_with_what_was_measured() -> None:
    run, end = Run(evaluate_every_epochs=1), Position(1, 0, 5)
    run._end_epoch(end)
    assert run.done == ["validated", (end, ["epoch", "step", "validation/ndcg@100"])]
    run = Run(Wish.STOP)
    run._end_epoch(end)
    assert run.done == [(end, ["epoch", "step"])]
