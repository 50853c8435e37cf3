"""The commands of docs/cluster.md: Ray has their options, beeray their verbs, and the files they name are there."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
from ray.dashboard.modules.job.cli import job_cli_group
from ray.scripts.scripts import cli

from beeray.config import NightlyConfig, validate_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
STARTS = ("ray ", "python ", "docker ", "kubectl ", "export ")


def commands() -> list[list[str]]:
    """Every command that stands in an indented block, comments left out."""
    text = PAGE.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ") and line.strip().startswith(STARTS)]
    return [shlex.split(line, comments=True) for line in lines]


def of(program: str) -> list[list[str]]:
    return [words for words in commands() if words[0] == program]


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("words", of("ray"), ids=" ".join)
def test_rays_commands_and_options_exist(words: list[str]) -> None:
    group, rest = (job_cli_group, words[2:]) if words[1] == "job" else (cli, words[1:])
    assert isinstance(group, click.Group)
    command = group.commands[rest[0]]
    given = rest[1 : rest.index("--")] if "--" in rest else rest[1:]
    assert {word.split("=")[0] for word in given if word.startswith("--")} <= options_of(command)


def test_what_is_submitted_is_a_verb_or_a_script_that_is_there() -> None:
    submitted = [words[words.index("--") + 1 :] for words in of("ray") if "--" in words] + of("python")
    assert len(submitted) >= 4
    for words in submitted:
        path = Path(*words[2].split(".")).with_suffix(".py") if words[1] == "-m" else Path(words[1])
        assert (ROOT / path).is_file(), words


def test_files_and_images_that_commands_name_are_there() -> None:
    for words in (*of("kubectl"), *of("docker"), *of("ray")):
        for word in words:
            if word.startswith("cluster/"):
                assert (ROOT / word).is_file(), word
    built = {words[words.index("--target") + 1] for words in of("docker")}
    assert built == {"cpu", "cuda"}


def test_the_head_is_waited_for_before_something_is_typed_in_it() -> None:
    typed = [words[1] for words in of("kubectl")]
    assert typed.index("apply") < typed.index("wait") < typed.index("exec")
    waited = of("kubectl")[typed.index("wait")]
    assert "raycluster/beeray" in waited, "it is there at once; a pod that is not there yet is an error"


@pytest.mark.slow
def test_the_token_that_the_page_has_made_is_the_owners_alone(tmp_path: Path) -> None:
    (words,) = {tuple(one) for one in of("ray") if one[1] == "get-auth-token"}
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *words[1:]],
        env={**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text().strip()) >= 32
    (mend,) = {line.strip() for line in PAGE.splitlines() if line.strip().startswith("chmod ")}
    subprocess.run(mend, shell=True, env={**os.environ, "HOME": str(tmp_path)}, check=True)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_nightly_keys_and_defaults_are_those_of_the_config() -> None:
    named = set(re.findall(r"`nightly\.(\w+)`", PAGE))
    assert named <= NightlyConfig.model_fields.keys()
    defaults = validate_config({"name": "shop", "data": {"source": "shop"}}).nightly
    assert f"as a share of the serving model's metric | {defaults.max_loss:g} |" in PAGE
    assert f"beside those whose models serve | {defaults.keep_runs} |" in PAGE


def test_the_driver_is_told_for_the_torch_that_the_image_gets() -> None:
    (pinned,) = re.findall(r"(?m)^torch==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert re.findall(r"torch (\d+\.\d+) is built for CUDA", PAGE) == [pinned], "its wheel names the CUDA that it needs"
