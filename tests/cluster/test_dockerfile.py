"""The node image: what is copied is there, what is installed is pinned, what is started exists; nobody is root."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from own_process import run_python

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
KNOWN = {"ARG", "FROM", "RUN", "WORKDIR", "ENV", "COPY", "USER", "CMD"}
TARGETS = ["cpu", "cuda"]
ARGUMENTS = "before the first stage"


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of every stage, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    found: dict[str, list[tuple[str, str]]] = {}
    name = ARGUMENTS
    for instruction in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = instruction.partition(" ")
        if word == "FROM":
            name = rest.rpartition(" AS ")[2]
        found.setdefault(name, []).append((word, " ".join(rest.split())))
    return found


def of(target: str, word: str) -> list[str]:
    return [rest for one, rest in stages()[target] if one == word]


def test_it_has_a_target_for_cpus_and_one_for_cuda_of_known_instructions() -> None:
    assert list(stages()) == [ARGUMENTS, *TARGETS]
    assert {word for stage in stages().values() for word, _ in stage} <= KNOWN


def test_both_targets_have_one_python_pinned_to_its_patch_since_ray_refuses_nodes_of_another() -> None:
    pinned = dict(one.split("=", 1) for one in of(ARGUMENTS, "ARG"))
    bases = {of(target, "FROM")[0].rpartition(" AS ")[0] for target in TARGETS}
    (image,) = {re.sub(r"\$\{(\w+)\}", lambda name: pinned[name[1]], base) for base in bases}
    assert re.fullmatch(r"python:3\.12\.\d+-slim-\w+", image)
    for target in TARGETS:
        (made,) = [rest for rest in of(target, "RUN") if "-m venv" in rest]
        installed = made.partition("apt-get install")[2].partition("&&")[0]
        assert "python" not in installed, f"{target} would have the distribution's Python beside its own"


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_copied_is_in_the_checkout_and_passes_the_dockerignore(target: str) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [source for rest in of(target, "COPY") for source in rest.split()[:-1]]
    assert {"beeray", "configs", "jobs", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), f"{source} is left out by .dockerignore"


@pytest.mark.parametrize("target", TARGETS)
def test_every_requirement_that_is_installed_is_pinned(target: str) -> None:
    pins = {
        canonical(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = [rest for rest in of(target, "RUN") if "pip install" in rest]
    commands = [shlex.split(one) for one in install.split("&&")]
    assert all(one[3:5] == ["--constraint", "constraints.txt"] for one in commands), "an install without constraints"
    assert commands[0][-1] == "torch", "torch goes first"
    for one in commands:
        assert "--no-deps" in one or not any(word.startswith("--index-url") for word in one), (
            "an index of torch alone has not every pinned version of what torch needs"
        )
    assert "--no-deps" not in commands[-1], "what torch needs comes with the rest"
    place = commands[-1].index("--editable") + 1
    extras = re.fullmatch(r"\.\[(.*)\]", commands[-1][place])
    assert extras is not None
    further = commands[-1][place + 1 :]
    assert "boto3" in further, "Ray's launcher starts machines of AWS from the head"
    required = [*project["dependencies"], *further]
    for extra in extras[1].split(","):
        required += project["optional-dependencies"][extra]
    names = {canonical(re.split(r"[\[<>=!~ ;]", one)[0]) for one in required}
    assert len(names) > 15
    assert names - pins == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root_and_no_secret_or_private_index_is_baked_in(target: str) -> None:
    instructions = stages()[target]
    words = [word for word, _ in instructions]
    assert instructions[words.index("USER")][1] == "beeray"
    assert "RUN" not in words[words.index("USER") :], "what is run after USER is no longer root's"
    (made,) = [rest for rest in of(target, "RUN") if "useradd" in rest]
    assert "--uid 1000" in made, "the uid that the manifests run as"
    text = DOCKERFILE.read_text()
    assert not re.search(r"(?i)token=|password|secret|trusted-host", text.replace("RAY_AUTH_MODE=token", ""))
    assert set(re.findall(r"https?://[^/\s]+", text)) <= {"https://download.pytorch.org"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_login_shell_has_the_images_python_too_since_the_launcher_types_in_one(target: str, tmp_path: Path) -> None:
    (made,) = [rest for rest in of(target, "RUN") if "-m venv" in rest]
    (written,) = [one.strip() for one in made.split("&&") if "/etc/profile.d/" in one]
    profile = tmp_path / "beeray.sh"
    subprocess.run(written.replace("/etc/profile.d/beeray.sh", str(profile)), shell=True, check=True)
    debians = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"  # what /etc/profile sets before profile.d
    done = subprocess.run(
        ["sh", "-c", f'{debians}; . "{profile}"; echo "$PATH"'], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("/opt/venv/bin:/usr/local/bin:")


@pytest.mark.parametrize("target", TARGETS)
def test_the_cluster_asks_for_a_token_and_stops_jobs_patiently(target: str) -> None:
    settings = environment(target)
    assert settings["RAY_AUTH_MODE"] == "token"
    assert int(settings["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS[:1])
def test_the_command_it_starts_with_runs(target: str) -> None:
    (command,) = of(target, "CMD")
    python, *arguments = json.loads(command)
    assert python == "python"
    done = run_python(*arguments, cwd=ROOT, limit_s=300)
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout


def environment(target: str) -> dict[str, str]:
    (settings,) = of(target, "ENV")
    return dict(one.split("=", 1) for one in settings.split())


def test_both_targets_install_alike_and_cuda_asks_for_the_driver_as_well() -> None:
    same = [[one for one in stages()[target] if one[0] not in ("FROM", "RUN", "ENV")] for target in TARGETS]
    assert same[0] == same[1]
    driver = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    assert environment("cuda") == environment("cpu") | driver
