"""Workers that do not see the driver's run folder: the command ends with one line before a step is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]


def test_workers_that_do_not_see_the_run_folder_end_the_command_before_the_first_step(world: World) -> None:
    process = world.start("train", "name=unshared", "data.store=stores/unshared")
    world.wait_until(lambda: any(world.path("unshared").glob(".training-*")), process)
    for marker in world.path("unshared").glob(".training-*"):  # as a worker on another disk sees it
        marker.unlink()
    done = world.finish(process)
    assert "runs_dir 'runs': what this command writes to " in done.complaint
    assert "is not seen by a worker on node " in done.complaint
    assert world.steps("unshared") == []
    assert not world.path("unshared").joinpath("model").exists()
    assert world.run("train", "name=unshared", "data.store=stores/unshared").record["training"]["steps"] > 0
