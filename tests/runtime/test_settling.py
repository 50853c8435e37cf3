"""Checkpoints and the steps before them: what a checkpoint stands for, the driver has been told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from beeray.runtime.checkpoints import Position
from beeray.runtime.training import _Training
from beeray.runtime.wishes import Wish


def a_training(done: list[str]) -> Any:
    """A training that notes what it would do, and stops when its last checkpoint is there."""

    def noting(what: str) -> Any:
        return lambda *arguments, **keywords: done.append(what)

    return SimpleNamespace(
        reports=SimpleNamespace(send=noting("tell")),
        task=SimpleNamespace(settle=noting("settle")),
        checkpoints=SimpleNamespace(save=noting("save"), save_last=noting("save")),
        wishes=SimpleNamespace(saved=lambda: None),
        wish=Wish.STOP,
        _exported=None,
        _sum=lambda values: None,
        _tell_stopped=lambda position: None,
    )


def test_a_checkpoint_waits_until_the_driver_has_the_steps_that_it_stands_for() -> None:
    done: list[str] = []
    _Training._checkpoint(a_training(done), Position(step=3), {})
    assert done == ["tell", "settle", "save"]


def test_the_last_checkpoint_does_too() -> None:
    done: list[str] = []
    _Training._finish(a_training(done), Position(step=3))
    assert done == ["settle", "save"]
