"""Training whose controller process is gone, which Ray Train itself does not make good."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from beeray.config import validate_config
from beeray.console import Console
from beeray.errors import LostWorkersError
from beeray.runtime import launch as launching
from beeray.runtime.run_folder import RunFolder
from beeray.verbs import train

if TYPE_CHECKING:
    from conftest import World

SAID = "the workers' controller was lost (…); run the same command again"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ActorDiedError(), LostWorkersError),
        (RayTaskError("run", "a defect", ValueError("a defect")), RayTaskError),
    ],
)
def test_a_lost_controller_is_told_from_a_defect(
    raised: Exception, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer:
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            pass

        def fit(self) -> None:
            raise raised

    given_back: list[None] = []
    monkeypatch.setattr(launching, "_Trainer", Trainer)
    monkeypatch.setattr(launching, "_give_back", lambda: given_back.append(None))
    task: Any = SimpleNamespace(config=validate_config({"name": "n", "data": {"source": "shop"}}), monitor=None)
    with pytest.raises(expected) as caught:
        launching.launch("module:loop", task, storage=tmp_path, name="checkpoints")
    assert len(given_back) == (expected is LostWorkersError)
    if expected is LostWorkersError:
        said = str(caught.value)
        assert said.startswith("the workers' controller was lost (The actor died") and "\n" not in said
        assert said.endswith("; run the same command again")


def lose(times: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any], io.StringIO]:
    """Train with so many losses before it passes; returns the result, what happened, and what was said."""
    happened: list[Any] = []
    said = io.StringIO()

    def launch(*arguments: Any, **keywords: Any) -> str:
        happened.append("launch")
        if happened.count("launch") <= times:
            raise LostWorkersError(SAID)
        return "trained"

    config = validate_config(
        {"name": "n", "runs_dir": str(folder), "data": {"source": "shop"}, "cluster": {"max_failures": 2}}
    )
    inputs: Any = SimpleNamespace(
        store=SimpleNamespace(path="s", meta=SimpleNamespace(fingerprint="f")),
        **{"tokens_path": "t", "shares": (), "num_shards": 1, "model": "m"},
    )
    (folder / "n").mkdir()
    monkeypatch.setattr(train, "launch", launch)
    monkeypatch.setattr(train, "user_datasets", lambda *_: {})
    monkeypatch.setattr(train, "mend_checkpoints", lambda path: happened.append(path.name))
    outbox = SimpleNamespace(send=happened.append, wait=lambda: happened.append("heard"))
    monkeypatch.setattr(train, "Outbox", lambda monitor: outbox)
    result: Any = None
    try:
        result = train._run_workers(config, RunFolder(config), inputs, None, Console(io.StringIO(), said))
    except LostWorkersError as error:
        result = error
    return result, happened, said


def test_training_goes_on_from_its_last_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, happened, said = lose(2, tmp_path, monkeypatch)
    assert result == "trained"
    lost, attempt = [{"kind": "lost"}, "heard"], ["checkpoints", "launch"]
    assert happened == [*attempt, *lost] * 2 + attempt, "each attempt begins with checkpoints that were looked at"
    assert said.getvalue().splitlines() == [
        f"the workers' controller was lost (…); going on from the last checkpoint ({number} of cluster.max_failures 2)"
        for number in (1, 2)
    ]


def test_it_is_lost_no_more_often_than_the_config_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, happened, _ = lose(3, tmp_path, monkeypatch)
    assert isinstance(result, LostWorkersError) and happened.count("launch") == 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_controller_s_workers_find_their_place_again_on_a_ray_of_two_cpus(world: World) -> None:
    """Theirs stays reserved when the controller is gone, and there is no room for others beside it."""
    training = ("train.max_steps=40", "train.epochs=40", "cluster.num_workers=2", "train.checkpoint_every_steps=5")
    process = world.start("train", "name=watched", *training)
    try:
        world.wait_until(lambda: bool(world.steps("watched")) and world.steps("watched")[-1] > 6, process)
        family = psutil.Process(process.pid).children(recursive=True)
        [controller] = [one for one in family if "".join(one.cmdline()[:1]).startswith("ray::TrainController")]
        controller.kill()
        _, err = process.communicate(timeout=400)
    except BaseException:
        world.kill(process)
        raise
    assert process.returncode == 0, err
    assert err.count("going on from the last checkpoint (1 of cluster.max_failures 2)") == 1
    assert sorted(set(world.steps("watched"))) == list(range(40))
