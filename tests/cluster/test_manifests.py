"""KubeRay and Kubernetes manifests: every field is one that its kind has, and what they name is there."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from kuberay_fields import KINDS, complaints, pod_templates
from ray._private.services import determine_plasma_store_config
from ray._private.utils import resolve_object_store_memory
from ray.scripts.scripts import drain_node

from beeray.config import Config, load_config
from beeray.config.paths import ROOT as ROOT_VARIABLE
from beeray.config.paths import found
from beeray.runtime.tracking import URI_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
KUBERNETES = "1.30"
SECRETS = re.compile(r"(?i)password|aws_secret|access_key|auth_token\s*[:=]|begin [a-z ]*private key")


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [one for path in MANIFESTS for one in documents(path) if one["kind"] == kind]
    return found


def check_by_kubernetes(document: dict[str, Any]) -> None:
    """Kubernetes' published schemas, with no field allowed that they do not know."""
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(document, KUBERNETES, strict=True)


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": template["spec"]}


def test_there_is_a_manifest_of_every_kind() -> None:
    kinds = [one["kind"] for path in MANIFESTS for one in documents(path)]
    assert sorted(kinds) == ["CronJob", "PersistentVolumeClaim", "RayCluster", "RayJob"]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_rays_kinds_use_fields_that_they_have(kind: str) -> None:
    document = manifest(kind)
    assert document["apiVersion"] == "ray.io/v1"
    assert document["metadata"]["name"]
    assert list(complaints(document["spec"], KINDS[kind])) == []


@pytest.mark.parametrize("kind", ["CronJob", "PersistentVolumeClaim"])
def test_kubernetes_own_kinds_are_valid_by_its_schemas(kind: str) -> None:
    check_by_kubernetes(manifest(kind))


def test_the_shared_disk_names_a_class_of_the_users() -> None:
    """Without one a claim takes the default class, which seldom is for several nodes."""
    assert manifest("PersistentVolumeClaim")["spec"]["storageClassName"]
    lines = (ROOT / "cluster" / "kuberay" / "storage.yaml").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if "storageClassName" in line]
    assert "# (yours)" in line


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "CronJob"])
def test_pods_inside_are_valid_by_kubernetes_schemas(kind: str) -> None:
    templates = list(pod_templates(manifest(kind)["spec"]))
    assert len(templates) == {"RayCluster": 3, "RayJob": 3, "CronJob": 1}[kind]
    for template in templates:
        check_by_kubernetes(as_pod(template))


def test_a_field_that_no_kind_has_is_noticed() -> None:
    spec = copy.deepcopy(manifest("RayJob")["spec"])
    spec["backofLimit"] = spec.pop("backoffLimit")
    spec["submissionMode"] = "K8sMode"
    spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName")
    spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 2
    assert sorted(complaints(spec, KINDS["RayJob"])) == [
        "spec.backofLimit is no field of it",
        "spec.rayClusterSpec.headGroupSpec.rayStartParams must map names to strings (quote numbers)",
        "spec.rayClusterSpec.workerGroupSpecs[0].groupName is missing",
        "spec.submissionMode is 'K8sMode', must be one of HTTPMode, InteractiveMode, K8sJobMode, SidecarMode",
    ]


def test_a_pods_misspelt_field_is_noticed() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    pod = as_pod(copy.deepcopy(next(pod_templates(manifest("RayCluster")["spec"]))))
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(validate.ValidationError):
        check_by_kubernetes(pod)


def clusters() -> list[dict[str, Any]]:
    return [manifest("RayCluster")["spec"], manifest("RayJob")["spec"]["rayClusterSpec"]]


@pytest.mark.parametrize("place", [0, 1])
def test_clusters_scale_gpus_from_none_share_a_disk_and_ask_for_the_token(place: int) -> None:
    spec = clusters()[place]
    assert spec["rayVersion"] == ray.__version__
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["authOptions"] == {"mode": "token"}
    gpu = next(group for group in spec["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert gpu["minReplicas"] == 0 < gpu["maxReplicas"]
    (container,) = gpu["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for template in pod_templates(spec):
        mounted = {one["name"]: one["mountPath"] for one in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounted["shared"] == "/shared"
        claims = [
            one["persistentVolumeClaim"]["claimName"] for one in template["spec"]["volumes"] if "emptyDir" not in one
        ]
        assert claims == [manifest("PersistentVolumeClaim")["metadata"]["name"]]
    assert manifest("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def as_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def objects_folder(memory: int, shared_memory: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where Ray keeps its objects in a pod of so much memory with a /dev/shm of that size, by Ray's own functions."""
    monkeypatch.setattr(ray._common.utils, "get_system_memory", lambda: memory)
    monkeypatch.setattr(ray._private.utils, "get_shared_memory_bytes", lambda: shared_memory)
    size = resolve_object_store_memory(memory)
    return str(determine_plasma_store_config(size, temp_dir=str(folder))[0])


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_rays_objects_fit_into_a_pods_shared_memory(
    place: int, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = list(pod_templates(clusters()[place]))[group]["spec"]
    (container,) = pod["containers"]
    (mounted,) = [one["name"] for one in container["volumeMounts"] if one["mountPath"] == "/dev/shm"]
    (volume,) = [one["emptyDir"] for one in pod["volumes"] if one["name"] == mounted]
    assert volume["medium"] == "Memory"
    memory, shared_memory = as_bytes(container["resources"]["limits"]["memory"]), as_bytes(volume["sizeLimit"])
    assert shared_memory <= memory / 2, "what lies in it counts as the pod's memory"
    assert objects_folder(memory, shared_memory, tmp_path, monkeypatch) == "/dev/shm"


def test_rays_objects_would_be_on_the_disk_of_a_large_pod_with_too_little_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert objects_folder(as_bytes("48Gi"), as_bytes("8Gi"), tmp_path, monkeypatch) == str(tmp_path)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_every_pod_that_may_hold_a_driver_can_take_mlflows_address_from_a_secret(
    kind: str,
) -> None:
    (path,) = [path for path in MANIFESTS if documents(path)[0]["kind"] == kind]
    text = path.read_text(encoding="utf-8").replace(f"# - {{name: {URI_VARIABLE},", f"- {{name: {URI_VARIABLE},")
    for template in pod_templates(yaml.safe_load(text)["spec"]):
        check_by_kubernetes(as_pod(template))
        (entry,) = [one for one in template["spec"]["containers"][0]["env"] if one["name"] == URI_VARIABLE]
        secret = entry["valueFrom"]["secretKeyRef"]
        page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
        assert f"kubectl create secret generic {secret['name']} --from-literal={secret['key']}=" in page


def test_images_are_targets_of_the_dockerfile() -> None:
    targets = set(re.findall(r"(?m)^FROM \S+ AS (\S+)$", (ROOT / "cluster" / "Dockerfile").read_text()))
    images = {
        container["image"]
        for kind in ("RayCluster", "RayJob", "CronJob")
        for template in pod_templates(manifest(kind)["spec"])
        for container in template["spec"]["containers"]
    }
    assert images == {"beeray:cpu", "beeray:cuda"}
    assert {image.partition(":")[2] for image in images} <= targets


def entrypoints() -> dict[str, list[str]]:
    """The beeray command of every manifest, word by word."""
    submitted = manifest("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"]
    return {
        "CronJob": submitted[submitted.index("--") + 1 :],
        "RayJob": shlex.split(manifest("RayJob")["spec"]["entrypoint"]),
    }


def config_of(command: list[str]) -> Config:
    words = " ".join(command[3:]).replace("--config=", "--config ").split()
    return load_config(words[words.index("--config") + 1], [one for one in words if "=" in one])


@pytest.fixture
def in_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`BEERAY_ROOT` as every pod has it: the shared disk."""
    pods = [template["spec"]["containers"][0] for spec in clusters() for template in pod_templates(spec)]
    named = {one["value"] for pod in pods for one in pod["env"] if one["name"] == ROOT_VARIABLE}
    assert named == {"/shared"}
    assert all(any(one["name"] == ROOT_VARIABLE for one in pod["env"]) for pod in pods)
    monkeypatch.setenv(ROOT_VARIABLE, named.pop())
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_pod")
@pytest.mark.parametrize("kind", ["CronJob", "RayJob"])
def test_the_commands_in_them_have_a_verb_and_a_valid_config_on_the_shared_disk(kind: str) -> None:
    command = entrypoints()[kind]
    assert command[:2] == ["python", "-m"]
    assert (ROOT / Path(*command[2].split("."))).with_suffix(".py").is_file()
    config = config_of(command)
    shared = [str(config.run_dir), *(found(str(one.path)) for one in (config.data.domains or {}).values())]
    if kind == "RayJob":
        shared.append(config.store_path)
        assert config.cluster.use_gpu and config.train.checkpoint_every_steps
    else:
        shared.append(config.embeddings_path)
        gpus = next(one for one in clusters()[0]["workerGroupSpecs"] if one["groupName"] == "gpu")
        assert 1 < (config.embed.num_actors or 1) <= gpus["maxReplicas"], "unset, nodes that are to come do not count"
    assert all(str(path).startswith("/shared/") for path in shared), shared
    assert config.cluster.placement_timeout_s >= 600, "a GPU node takes minutes to come"


@pytest.mark.usefixtures("in_a_pod")
def test_the_training_job_and_the_documented_command_are_one_run() -> None:
    """Other paths of tables, though they are the same folders, would be refused as another config of that name."""
    documented = "python -m beeray.train --config goodlens.yaml"
    assert f"    ray job submit --working-dir . -- {documented}\n" in (ROOT / "docs" / "cluster.md").read_text()
    typed, job = config_of(documented.split()), config_of(entrypoints()["RayJob"])
    assert job.run_dir == typed.run_dir
    assert job.result_keys() == typed.result_keys()


def test_a_clusters_worth_of_training_is_not_submitted_again() -> None:
    assert manifest("RayJob")["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("place", [0, 1])
def test_a_gpu_pod_that_goes_has_its_node_told_to_ray_and_gives_training_time_to_save(
    place: int, tmp_path: Path
) -> None:
    gpu = next(group for group in clusters()[place]["workerGroupSpecs"] if group["groupName"] == "gpu")
    pod = gpu["template"]["spec"]
    sh, option, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    for pid, words in {"1": "ray\0start\0--block", "7": "/x/raylet\0--node_id=abc123\0--maximum=1"}.items():
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "cmdline").write_text(f"{words}\0")
    for program, does in {"ray": "exit $ENDS", "sleep": ":"}.items():
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@" >> {tmp_path}/typed\n{does}\n')
        (tmp_path / program).chmod(0o755)
    script = script.replace("/proc/", f"{tmp_path}/proc/")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "FQ_RAY_IP": "head"}
    subprocess.run([sh, option, script], env={**environment, "ENDS": "0"}, check=True)
    told, slept = (tmp_path / "typed").read_text().splitlines()
    assert told.startswith("ray drain-node --address=head:6379 --node-id=abc123 --reason=DRAIN_NODE_REASON_PREEMPTION ")
    options = dict(word[2:].split("=", 1) for word in told.split() if word.startswith("--"))
    known = {name.removeprefix("--") for parameter in drain_node.params for name in parameter.opts}
    assert options.keys() <= known
    assert slept == f"sleep {options['deadline-remaining-seconds']}"
    told_within = int(re.findall(r"timeout (\d+) ray", script)[0])
    assert told_within + int(slept.split()[1]) < pod["terminationGracePeriodSeconds"]
    (tmp_path / "typed").unlink()
    subprocess.run([sh, option, script], env={**environment, "ENDS": "1"}, check=False)
    assert len((tmp_path / "typed").read_text().splitlines()) == 1, "a cluster that is gone is not waited for"


@pytest.mark.parametrize("folder", ["cluster", "cluster/kuberay", "jobs"])
def test_no_secret_stands_in_a_file(folder: str) -> None:
    for path in (one for one in (ROOT / folder).iterdir() if one.is_file()):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if SECRETS.search(line)]
        assert [line for line in lines if "~/.ray/auth_token" not in line and "secretKeyRef" not in line] == []
