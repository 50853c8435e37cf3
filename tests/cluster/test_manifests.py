"""KubeRay and Kubernetes manifests: every field is one that its kind has, and what they name is there."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from kuberay_fields import KINDS, complaints, pod_templates

from beeray.config import load_config

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
    submitted = manifest("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    return {
        "CronJob": submitted[submitted.index("--") + 1 :],
        "RayJob": shlex.split(manifest("RayJob")["spec"]["entrypoint"]),
    }


@pytest.mark.parametrize("kind", ["CronJob", "RayJob"])
def test_the_commands_in_them_have_a_verb_and_a_valid_config_on_the_shared_disk(kind: str) -> None:
    command = entrypoints()[kind]
    assert command[:2] == ["python", "-m"]
    assert (ROOT / Path(*command[2].split("."))).with_suffix(".py").is_file()
    words = " ".join(command[3:]).replace("--config=", "--config ").split()
    config = load_config(words[words.index("--config") + 1], [one for one in words if "=" in one])
    shared = [str(config.run_dir), *(str(source.path) for source in (config.data.domains or {}).values())]
    if kind == "RayJob":
        shared.append(config.store_path)
        assert config.cluster.use_gpu and config.train.checkpoint_every_steps
    else:
        shared.append(config.embeddings_path)
    assert all(path.startswith("/shared/") for path in shared), shared
    assert config.cluster.placement_timeout_s >= 600, "a GPU node takes minutes to come"


def test_the_nightly_pod_talks_to_the_clusters_head_with_the_operators_token() -> None:
    (container,) = next(pod_templates(manifest("CronJob")["spec"]))["spec"]["containers"]
    name = manifest("RayCluster")["metadata"]["name"]
    assert f"--address=http://{name}-head-svc:8265" in container["command"]
    env = {one["name"]: one for one in container["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": name, "key": "auth_token"}
    assert manifest("CronJob")["spec"]["concurrencyPolicy"] == "Forbid"


@pytest.mark.parametrize("folder", ["cluster", "cluster/kuberay", "jobs"])
def test_no_secret_stands_in_a_file(folder: str) -> None:
    for path in (one for one in (ROOT / folder).iterdir() if one.is_file()):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if SECRETS.search(line)]
        assert [line for line in lines if "~/.ray/auth_token" not in line and "secretKeyRef" not in line] == []
