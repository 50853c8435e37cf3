"""Jobs as the pages, the scripts and the manifests have them typed: each writes to paths that outlive it."""

from __future__ import annotations

import argparse
import importlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_mistakes import linked, named_config, parse
from doc_pages import ROOT, Page, commands

from beeray.config import Config
from beeray.config.paths import ROOT as ROOT_VARIABLE
from beeray.console import Console
from beeray.errors import ConfigError
from beeray.runtime import job_folder
from beeray.runtime.doctor.storage import places_of

PAGES = [Page.of(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
SCRIPTS = [Page.of(path) for path in sorted((ROOT / "jobs").glob("*.py"))]
Job = tuple[list[str], dict[str, str]]
"""A submitted command's words, and the configs that its readers have seen."""


def submitted(page: Page) -> list[Job]:
    """The commands behind `ray job submit … --` of a page, or of a script's docstring."""
    files = {name: text for one in (*linked(page), page) for name, text in one.files.items()}
    lines = [re.sub(r"\[[^\]]*\]", "", line) for line in [*page.command_lines(), *page.mentioned]]
    found = [commands(line) for line in lines if line.startswith("ray job submit ")]
    return [(words[1], files) for words in found]


def of_manifests() -> list[Job]:
    """The commands of what is in the manifests, and what the nightly one's first lines say to put in its place."""
    folder = ROOT / "cluster" / "kuberay"
    job, cron = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("train-rayjob", "nightly-cronjob"))
    arguments = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"]
    embed = arguments[arguments.index("--") + 1 :]
    first_lines = (folder / "nightly-cronjob.yaml").read_text().partition("apiVersion")[0].replace("\n# ", " ")
    assert "put beeray.nightly in the place of beeray.embed;" in first_lines
    nightly = ["beeray.nightly" if word == "beeray.embed" else word for word in embed]
    return [(words, {}) for words in (shlex.split(job["spec"]["entrypoint"]), embed, nightly)]


def verb_of(words: list[str]) -> str:
    """The verb of `python -m beeray.VERB` or of a script of `jobs/`."""
    if words[1] == "-m":
        return words[2].removeprefix("beeray.")
    return re.findall(r"^from beeray\.(\w+) import main$", (ROOT / words[1]).read_text(), re.MULTILINE)[0]


JOBS = [
    *((page.name, *job) for page in (*PAGES, *SCRIPTS) for job in submitted(page)),
    *(("cluster/kuberay/raycluster.yaml", *job) for job in of_manifests()),
]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a job works in, with the environment that Ray gives it."""
    folder = tmp_path / job_folder.UNPACKED / "_ray_pkg_1a2b3c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(job_folder.JOB_CONFIG, "{}")
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    return folder


class Passed(Exception):
    """The verb has looked at its paths and found nothing."""


def refusal(words: list[str], files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a job of this command says of its paths; empty where it lets them pass."""
    arguments, mistake = parse(words, folder)
    assert arguments is not None, mistake
    config = named_config(arguments.config, arguments.overrides, files, folder)
    verb = verb_of(words)
    if verb == "doctor":
        return job_folder.what_goes_with_the_job(config, *(place.key for place in places_of(config)))
    looked = job_folder.what_goes_with_the_job

    def look_and_stop(config: Config, *keys: str, **named: Any) -> str:
        said = looked(config, *keys, **named)
        if not said:
            raise Passed
        return said

    monkeypatch.setattr(job_folder, "what_goes_with_the_job", look_and_stop)
    execute = importlib.import_module(f"beeray.verbs.{verb}").execute
    try:
        execute(config, argparse.Namespace(), Console(io.StringIO(), io.StringIO()))
    except Passed:
        return ""
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{verb} does not look at its paths")


@pytest.mark.parametrize(
    ("where", "words", "files"), [pytest.param(*job, id=f"{job[0]}-{verb_of(job[1])}") for job in JOBS]
)
def test_a_job_that_is_typed_as_it_stands_writes_to_what_outlives_it(
    where: str, words: list[str], files: dict[str, str], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(words, files, copy, monkeypatch)
    if said:  # then its page, or the cluster's manifest, says that the cluster's nodes name a shared disk
        assert ROOT_VARIABLE in (ROOT / where).read_text(encoding="utf-8"), said
        monkeypatch.setenv(ROOT_VARIABLE, "/shared")
        said = refusal(words, files, copy, monkeypatch)
    assert said == ""


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("python -m beeray.train --config goodlens.yaml", "runs_dir"),
        ("python jobs/train.py --config goodlens.yaml runs_dir=/shared/runs", "data.store"),
        ("python jobs/reembed_catalog.py --config goodlens.yaml runs_dir=/shared/runs", "embed.path"),
        ("python -m beeray.doctor --config goodlens.yaml runs_dir=/shared/runs", "data.store"),
    ],
)
def test_a_job_without_such_paths_is_refused(typed: str, key: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(typed.split(), {}, copy, monkeypatch).startswith(f"{key} is ")


def test_every_job_that_is_written_down_is_found() -> None:
    """Otherwise nothing would be checked."""
    typed = [page.text.count("ray job submit -") for page in (*PAGES, *SCRIPTS)]
    assert sum(typed) == len(JOBS) - len(of_manifests()) >= 11
