"""The nightly manifest's pod: its script is typed with a stand-in for `ray` that keeps jobs as Ray's own does."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.dashboard.modules.job import cli, job_manager, job_supervisor

from beeray.nightly import EXIT_REFUSED

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
RAY = """#!/bin/sh
# a job is a file with its state: succeeded, stopped, lost, failed CODE or running NEXT; "running on" ends when stopped
echo "$*" >> "$FOLDER/typed"
for id; do case $id in --submission-id=*) id=${id#*=}; break ;; esac; done
job=$FOLDER/jobs/$id
case $2 in
  submit)
    if [ "$ANSWERS" = no ]; then echo "ConnectionError: no cluster answers"; exit 1; fi
    if [ -e "$job" ]; then echo "ValueError: Job with submission_id $id already exists. Please use …"; exit 1; fi
    echo "$SUBMITTED" > "$job" ;;
  logs)
    echo "a log: Status message: Job entrypoint command failed with exit code 7"
    while [ "$(cat "$job")" = "running on" ]; do sleep 0.05; done
    case $(cat "$job") in "running "*) sed -i "s/^running //" "$job" ;; esac ;;
  stop) echo stopped > "$job" ;;
  status)
    case $(cat "$job") in
      succeeded) echo "Job '$id' succeeded" ;;
      stopped) echo "Job '$id' was stopped" ;;
      lost) echo "Job '$id' failed"; echo "Status message: the driver's node died" ;;
      failed*) echo "Job '$id' failed"
        code=$(sed 's/failed //' "$job")
        echo "2026 INFO cli.py:89 -- Status message: Job entrypoint command failed with exit code $code, last logs:"
        echo "a log: Status message: Job entrypoint command failed with exit code 7" ;;
      *) echo "Status for job '$id': RUNNING" ;;
    esac ;;
esac
"""


def job_spec() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((KUBERAY / "nightly-cronjob.yaml").read_text(encoding="utf-8"))["spec"]
    return spec


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = job_spec()["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    return dict(only)


def cluster_name() -> str:
    (cluster,) = yaml.safe_load_all((KUBERAY / "raycluster.yaml").read_text(encoding="utf-8"))
    return str(cluster["metadata"]["name"])


class Night:
    """A night's jobs on a cluster, and its pods one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, folder / "jobs"
        self.jobs.mkdir()
        for program, does in {"ray": RAY, "sleep": "#!/bin/sh\nexec /bin/sleep 0.01\n"}.items():
            (folder / program).write_text(does)
            (folder / program).chmod(0o755)

    def start(self, submitted: str, answers: str = "yes") -> subprocess.Popen[bytes]:
        """A pod; a job that it submits becomes what is given."""
        environment = {
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "FOLDER": str(self.folder),
            "NIGHT": "night",
            "SUBMITTED": submitted,
            "ANSWERS": answers,
        }
        words = [*container()["command"], *container()["args"]]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)

    def pod(self, submitted: str, **given: str) -> int:
        """Exit code of a pod."""
        return self.start(submitted, **given).wait(timeout=60)

    def typed(self, verb: str) -> list[list[str]]:
        lines = [line.split() for line in (self.folder / "typed").read_text().splitlines()]
        return [words for words in lines if words[:2] == ["job", verb]]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path)


def test_the_job_is_submitted_as_it_stands_in_the_manifest_and_followed_to_its_end(night: Night) -> None:
    assert night.pod("running succeeded") == 0
    (submitted,) = night.typed("submit")
    assert submitted == ["job", "submit", "--no-wait", "--submission-id=night-1", *container()["args"]]
    assert night.typed("logs") == [["job", "logs", "--follow", "night-1"]]


def test_a_connection_that_breaks_off_is_taken_up_again(night: Night) -> None:
    assert night.pod("running running failed 3") == EXIT_REFUSED
    assert len(night.typed("logs")) == 2
    assert len(night.typed("submit")) == 1


@pytest.mark.parametrize("code", [1, 2, 3, 143])
def test_the_pod_ends_with_the_jobs_own_code(night: Night, code: int) -> None:
    assert night.pod(f"running failed {code}") == code


def test_the_pod_ends_badly_where_no_job_could_be_submitted_or_its_driver_was_lost(night: Night) -> None:
    assert night.pod("succeeded", answers="no") == 1
    assert not list(night.jobs.iterdir())
    assert night.pod("running lost") == 1


def test_a_job_that_is_stopped_is_no_success(night: Night) -> None:
    assert night.pod("running stopped") == 143


@pytest.mark.parametrize(("ends", "code"), [("succeeded", 0), ("failed 2", 2), ("failed 3", 3)])
@pytest.mark.parametrize("state", ["running ", ""])
def test_the_job_of_a_pod_that_was_taken_away_is_followed_and_no_second_one_put_beside_it(
    night: Night, state: str, ends: str, code: int
) -> None:
    (night.jobs / "night-1").write_text(f"{state}{ends}\n")
    assert night.pod("succeeded") == code
    assert [path.name for path in night.jobs.iterdir()] == ["night-1"]


@pytest.mark.parametrize("before", ["failed 1", "stopped", "lost", "running failed 1", "running stopped"])
def test_an_attempt_that_came_to_nothing_is_followed_by_the_next(night: Night, before: str) -> None:
    (night.jobs / "night-1").write_text(f"{before}\n")
    assert night.pod("failed 1") == 1
    assert night.pod("running succeeded") == 0
    assert sorted(path.name for path in night.jobs.iterdir()) == ["night-1", "night-2", "night-3"]


def test_a_pod_that_is_told_to_end_has_its_job_stopped_first(night: Night) -> None:
    process = night.start("running on")
    deadline = time.monotonic() + 60
    while not (night.folder / "typed").is_file() or not night.typed("logs"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert night.typed("stop") == [["job", "stop", "night-1"]]
    assert (night.jobs / "night-1").read_text() == "stopped\n"


def test_ray_says_what_the_pod_looks_for() -> None:
    said = inspect.getsource(cli._log_job_status)
    for words in ("Job '{job_id}' succeeded", "Job '{job_id}' was stopped", "Job '{job_id}' failed"):
        assert words in said
    assert 'f"Status message: {info.message}"' in said
    manager = " ".join(inspect.getsource(job_manager).split())
    assert 'f"Job with submission_id {submission_id} already exists. "' in manager
    supervisor = " ".join(inspect.getsource(job_supervisor).split())
    assert re.search(r'"Job entrypoint command " f"failed with exit code \{return_code\}, "', supervisor)


def test_options_that_the_pod_types_are_rays() -> None:
    script = container()["command"][-2]
    for verb, words in re.findall(r"ray job (\w+)([^;&)|]*)", script):
        known = {option for parameter in cli.job_cli_group.commands[verb].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", words)) <= known


def test_the_pod_talks_to_the_clusters_head_with_the_operators_token() -> None:
    env = {one["name"]: one for one in container()["env"]}
    assert env["RAY_API_SERVER_ADDRESS"]["value"] == f"http://{cluster_name()}-head-svc:8265"
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": cluster_name(), "key": "auth_token"}


def test_a_night_is_named_by_its_kubernetes_job_whichever_pod_it_has() -> None:
    env = {one["name"]: one for one in container()["env"]}
    named = re.findall(r"\$\((\w+)\)", env["NIGHT"]["value"])
    labels = [env[name]["valueFrom"]["fieldRef"]["fieldPath"] for name in named]
    assert labels == [f"metadata.labels['batch.kubernetes.io/{label}']" for label in ("job-name", "controller-uid")]
    assert list(env).index("NIGHT") > max(list(env).index(name) for name in named), "Kubernetes fills in earlier ones"


def test_what_is_tried_again() -> None:
    job = job_spec()["jobTemplate"]["spec"]
    first, second = job["podFailurePolicy"]["rules"]
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}, (
        "a pod that is evicted"
    )
    assert second["action"] == "FailJob"
    assert second["onExitCodes"] == {"containerName": "submit", "operator": "In", "values": [2, EXIT_REFUSED, 143]}
    assert pod()["restartPolicy"] == "Never", "Kubernetes takes no such policy otherwise"
    assert job["backoffLimit"] > 0, "anything else is tried again"
    assert job_spec()["concurrencyPolicy"] == "Forbid"


def test_the_pod_outlives_the_stopping_of_its_job() -> None:
    environment = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text(encoding="utf-8"))["env_vars"]
    assert pod()["terminationGracePeriodSeconds"] > int(environment["RAY_JOB_STOP_WAIT_TIME_S"])
