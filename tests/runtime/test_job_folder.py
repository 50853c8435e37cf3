"""Paths that go with a submitted job are refused by whatever would write there, and others are not."""

from __future__ import annotations

import argparse
import importlib
import io
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from beeray.config import Config, validate_config
from beeray.console import Console
from beeray.errors import BeerayError, ConfigError
from beeray.runtime.job_folder import JOB_CONFIG, check_outlives_job, what_goes_with_the_job
from beeray.verbs import index

ALL = ("runs_dir", "data.store", "embed.path")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a job works in, with the environment that Ray gives it."""
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1a2b3c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    return folder


def a_config(*, store: str | None = None, embeddings: str | None = None, **tree: Any) -> Config:
    data = {"source": "shop", "store": store}
    return validate_config({"name": "shop", "data": data, "embed": {"path": embeddings}, **tree})


def test_the_variable_is_the_one_that_ray_sets() -> None:
    assert JOB_CONFIG == RAY_JOB_CONFIG_JSON_ENV_VAR


def test_a_relative_path_is_refused_with_its_key_its_place_and_what_to_do(copy: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        check_outlives_job(a_config(), "runs_dir", "data.store")
    assert str(refused.value) == (
        f"runs_dir is 'runs': in a submitted job that is {copy}/runs/shop, in the job's own copy of the folder, which "
        "another checkout does not find and Ray may delete; give runs_dir an absolute path on a disk that all nodes "
        "mount, or have the cluster's nodes name that disk in BEERAY_ROOT"
    )


def test_where_the_cluster_names_a_disk_relative_paths_begin_there_and_nothing_goes_with_the_job(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEERAY_ROOT", str(tmp_path / "shared"))
    config = a_config()
    check_outlives_job(config, "runs_dir", "data.store", "embed.path")
    assert config.run_dir == tmp_path / "shared" / "runs" / "shop"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (a_config(runs_dir="./runs", store="/shared/s", embeddings="/shared/e"), "runs_dir is './runs'"),
        (a_config(runs_dir="/shared/runs", embeddings="/shared/e"), "data.store is not set"),
        (a_config(runs_dir="/shared/runs", store="s3://bucket/s", embeddings="nightly"), "embed.path is 'nightly'"),
        (a_config(runs_dir="/shared/runs", store="s3://bucket/s", embeddings="/shared/e"), ""),
    ],
)
def test_each_key_is_looked_at_and_absolute_ones_pass(copy: Path, config: Config, key: str) -> None:
    said = what_goes_with_the_job(config, *ALL)
    assert said.startswith(key) if key else said == ""


def test_what_is_not_written_is_not_asked_for_and_other_commands_may_be_relative(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_outlives_job(a_config(runs_dir="/shared/runs"), "runs_dir")
    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR)
    check_outlives_job(a_config(), *ALL)


def test_a_link_that_leads_out_of_the_copy_passes_and_so_does_a_job_without_one(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "runs").symlink_to(tmp_path)
    check_outlives_job(a_config(), "runs_dir")
    monkeypatch.chdir(tmp_path)
    check_outlives_job(a_config(), *ALL)


@pytest.mark.parametrize(
    "verb",
    ["train", "tune", "evaluate", "baselines", "protocol", "prepare", "embed", "index", "nightly", "report"],
)
def test_every_verb_that_writes_refuses_before_it_does_anything(copy: Path, verb: str) -> None:
    execute = importlib.import_module(f"beeray.verbs.{verb}").execute
    with pytest.raises(ConfigError, match="in a submitted job that is"):
        execute(a_config(), argparse.Namespace(), Console(io.StringIO(), io.StringIO()))
    assert list(copy.iterdir()) == []


def test_an_index_with_a_place_of_its_own_is_refused_there(copy: Path) -> None:
    def indexed(path: str) -> None:
        config = a_config(embeddings="/shared/e", index={"path": path})
        index.execute(config, argparse.Namespace(version=None), Console(io.StringIO(), io.StringIO()))

    with pytest.raises(
        ConfigError, match=rf"^index.path is 'idx': in a submitted job that is {copy}/idx, in the job's"
    ):
        indexed("idx")
    with pytest.raises(BeerayError, match=r"^/shared/e"):  # further on: nothing is published there
        indexed("/shared/idx")
