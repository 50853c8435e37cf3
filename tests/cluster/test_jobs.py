"""Scripts for schedulers: each is its verb, and names the command that submits it, whose options Ray has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from own_process import run_python
from ray.dashboard.modules.job.cli import submit

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.py"))
VERBS = {
    "train": "train",
    "tune": "tune",
    "evaluate": "evaluate",
    "reembed_catalog": "embed",
    "continue_nightly": "nightly",
}
BUILT = [one for one in JOBS if (ROOT / "beeray" / f"{VERBS[one.stem]}.py").is_file()]


def command_in(text: str) -> list[str]:
    """The words of a `ray job submit` command in a docstring, without what is in brackets."""
    found = re.search(r"^    (ray job submit .*?)$(?!\s*\\)", text.replace("\\\n", " "), re.MULTILINE)
    assert found is not None
    return shlex.split(re.sub(r"\[[^\]]*\]", "", found[1]))


def test_there_is_a_script_a_job() -> None:
    assert {one.stem for one in JOBS} == VERBS.keys()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_script_is_thin_and_calls_its_verb(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"from beeray.{VERBS[path.stem]} import main\n" in text


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_command_in_a_script_submits_it_with_options_that_ray_has(path: Path) -> None:
    words = command_in(path.read_text(encoding="utf-8"))
    place = words.index("--")
    options, entrypoint = words[3:place], words[place + 1 :]
    known = {option for parameter in submit.params for option in parameter.opts}
    assert {one for one in options if one.startswith("--")} <= known
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given == {"--working-dir": ".", "--runtime-env": "jobs/runtime_env.yaml", "--entrypoint-num-cpus": "1"}
    assert entrypoint[:4] == ["python", f"jobs/{path.name}", "--config", "goodlens.yaml"]
    assert all("=" in word for word in entrypoint[4:])  # test_submitted_paths.py checks them
    assert (ROOT / "configs" / "goodlens.yaml").is_file()


def test_the_runtime_environment_installs_nothing_and_has_no_credentials() -> None:
    tree = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text(encoding="utf-8"))
    assert list(tree) == ["env_vars"]
    assert all(isinstance(value, str) for value in tree["env_vars"].values()), "Ray takes strings alone"
    assert int(tree["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


@pytest.mark.slow
def test_every_script_runs_from_another_folder(tmp_path: Path) -> None:
    calls = "\n".join(
        f"sys.argv = [{str(path)!r}, '--help']\n"
        f"try:\n    runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "except SystemExit as ended:\n    assert ended.code == 0"
        for path in BUILT
    )
    done = run_python("-c", f"import runpy, sys\n{calls}", cwd=tmp_path, limit_s=300)
    assert done.returncode == 0, done.stderr
    assert [f"python -m beeray.{VERBS[path.stem]}" in done.stdout for path in BUILT] == [True] * len(BUILT)
