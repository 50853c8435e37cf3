"""A sweep whose MLflow goes away: it ends well, says so, and gives MLflow later what it lacks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from beeray.config import Config, validate_config
from beeray.console import Console
from beeray.errors import RunError
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.sweep import tracking
from beeray.runtime.sweep.folder import STOPPED, SweepFolder, Trial
from beeray.runtime.sweep.tracking import SweepTracking
from beeray.verbs import tune


class Server:
    """As much of a tracker as a sweep uses; what it is told is kept, unless it is away."""

    away: str | None = None
    tags: dict[str, dict[str, str]]

    def __init__(self, config: Config, run_dir: Path, parent: Any = None) -> None:
        self.went_away = self.away is not None
        self.name, self.trouble, self.run_id = run_dir.name, self.away, None if self.away else f"id of {run_dir.name}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def check(self) -> None:
        if self.away:
            raise RunError(self.away)

    def log_tags(self, tags: dict[str, str]) -> None:
        if not self.away:
            self.tags.setdefault(self.name, {}).update(tags)

    def log_nothing(self, *told: Any) -> None:
        pass

    log_dict = log_metrics = log_artifact = log_nothing


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[Server]:
    class Own(Server):
        tags: dict[str, dict[str, str]] = {}  # noqa: RUF012

    monkeypatch.setattr(tracking, "Tracker", Own)
    return Own


@pytest.fixture
def config(tmp_path: Path) -> Config:
    space = {"train.lr": {"choice": [1e-5, 1e-4]}}
    tree = {"name": "s", "runs_dir": str(tmp_path), "data": {"source": "shop"}}
    return validate_config(tree | {"tune": {"space": space, "num_trials": 1}})


def ended(config: Config) -> SweepFolder:
    """A sweep whose only trial was stopped early, with the config that a run leaves."""
    folder = SweepFolder(config)
    folder.claim()
    trial = Trial(0, {"train.lr": 1e-4}, STOPPED, {1: 0.1}, 0.1)
    folder.save(trial)
    RunFolder(config.model_copy(update={"name": trial.name, "runs_dir": str(folder.trials)})).claim("store")
    return folder


def go_on(config: Config, folder: SweepFolder) -> str:
    said = io.StringIO()
    tune._go_on(config, folder, Console(said, said))
    return said.getvalue()


def test_a_search_does_not_begin_without_the_server_that_is_named(config: Config, server: type[Server]) -> None:
    server.away = "MLflow does not answer"
    folder, console = SweepFolder(config), Console(io.StringIO(), io.StringIO())
    with pytest.raises(RunError, match="MLflow does not answer"), SweepTracking(config, folder, console):
        pytest.fail("it began")


def test_a_sweep_that_is_searched_ends_without_it_and_is_caught_up_later(config: Config, server: type[Server]) -> None:
    folder = ended(config)
    server.away = "MLflow does not answer"
    assert go_on(config, folder) == (
        f"warning: MLflow does not answer; what was found is in {folder.path}, and the same command gives MLflow what "
        "it lacks\n"
    )
    assert folder.finished() is None and folder.table.is_file()
    server.away = None
    assert go_on(config, folder) == "" and folder.finished() is not None
    assert server.tags["trial-000"] == {"beeray.kind": "trial", "beeray.status": STOPPED, "beeray.reason": ""}


def test_a_trial_alone_that_is_not_logged_whole_is_told_too(
    config: Config, server: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ended(config)

    def locked(self: Server) -> Server:
        if self.name == "trial-000":
            self.trouble = "the database is locked"
        return self

    monkeypatch.setattr(server, "__enter__", locked)
    assert go_on(config, folder) == (
        f"warning: trial-000: the database is locked; what was found is in {folder.path}\n"
    )
    assert folder.finished() is not None, "what is refused is never taken"
