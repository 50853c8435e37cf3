"""The fields of KubeRay's `ray.io/v1` kinds, as its API reference and the Go types behind it document them (v1.6).

https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html. The operator's custom resource definitions are in
no package that could be installed beside the tests, so this is what of them beeray's manifests may use: every field
that the reference knows of these kinds, those that the types do not mark optional, and the values of enumerations. Pods
inside are Kubernetes' own and are validated by its published schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One type: its fields by name, each with a check, and those that must be there.

    A check is a Python type, a set of allowed values, another `Kind`, a list of one `Kind`, or `POD_TEMPLATE`.
    """

    fields: dict[str, Any]
    required: frozenset[str] = field(default_factory=frozenset)


POD_TEMPLATE, RESOURCES, STRINGS = "a pod's template", "a container's resources", "a map of strings"

AUTH = Kind({"mode": {"token", "disabled"}, "secretName": str, "enableK8sTokenAuth": bool})
AUTOSCALER = Kind(
    {
        "resources": RESOURCES,
        "image": str,
        "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
        "securityContext": dict,
        "idleTimeoutSeconds": int,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "version": {"v1", "v2"},
        "env": list,
        "envFrom": list,
        "volumeMounts": list,
    }
)
HEAD = Kind(
    {
        "template": POD_TEMPLATE,
        "headService": dict,
        "enableIngress": bool,
        "resources": STRINGS,
        "labels": STRINGS,
        "rayStartParams": STRINGS,
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
    },
    frozenset({"template"}),
)
WORKERS = Kind(
    {
        "suspend": bool,
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "idleTimeoutSeconds": int,
        "resources": STRINGS,
        "labels": STRINGS,
        "rayStartParams": STRINGS,
        "template": POD_TEMPLATE,
        "scaleStrategy": dict,
        "numOfHosts": int,
    },
    frozenset({"groupName", "minReplicas", "maxReplicas", "template"}),
)
CLUSTER = Kind(
    {
        "upgradeStrategy": dict,
        "authOptions": AUTH,
        "suspend": bool,
        "managedBy": str,
        "autoscalerOptions": AUTOSCALER,
        "headServiceAnnotations": STRINGS,
        "enableInTreeAutoscaling": bool,
        "gcsFaultToleranceOptions": dict,
        "headGroupSpec": HEAD,
        "rayVersion": str,
        "workerGroupSpecs": [WORKERS],
    },
    frozenset({"headGroupSpec"}),
)
JOB = Kind(
    {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": CLUSTER,
        "submitterPodTemplate": POD_TEMPLATE,
        "metadata": STRINGS,
        "clusterSelector": STRINGS,
        "submitterConfig": dict,
        "managedBy": str,
        "deletionStrategy": dict,
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "jobId": str,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "entrypointResources": str,
        "entrypointNumCpus": (int, float),
        "entrypointNumGpus": (int, float),
        "ttlSecondsAfterFinished": int,
        "shutdownAfterJobFinishes": bool,
        "suspend": bool,
        "preRunningDeadlineSeconds": int,
    },
    frozenset({"entrypoint", "rayClusterSpec"}),  # beeray's jobs bring a cluster of their own
)
KINDS = {"RayCluster": CLUSTER, "RayJob": JOB}


def complaints(spec: Any, kind: Kind, where: str = "spec") -> Iterator[str]:
    """What of a spec does not fit its kind."""
    if not isinstance(spec, dict):
        yield f"{where} is {type(spec).__name__}, must be a mapping"
        return
    yield from (f"{where}.{name} is missing" for name in sorted(kind.required - spec.keys()))
    for name, value in spec.items():
        if name not in kind.fields:
            yield f"{where}.{name} is no field of it"
        else:
            yield from _of_value(value, kind.fields[name], f"{where}.{name}")


def _of_value(value: Any, check: Any, where: str) -> Iterator[str]:
    if isinstance(check, Kind):
        yield from complaints(value, check, where)
    elif isinstance(check, list):
        for place, one in enumerate(value):
            yield from complaints(one, check[0], f"{where}[{place}]")
    elif isinstance(check, set):
        if value not in check:
            yield f"{where} is {value!r}, must be one of {', '.join(sorted(check))}"
    elif check == STRINGS:
        if not all(isinstance(one, str) for one in value.values()):
            yield f"{where} must map names to strings (quote numbers)"
    elif check in (POD_TEMPLATE, RESOURCES):
        return
    elif not isinstance(value, check) or (check is int and isinstance(value, bool)):
        yield f"{where} is {value!r}, of the wrong type"


def pod_templates(spec: Any) -> Iterator[dict[str, Any]]:
    """Every pod template inside a manifest of any kind."""
    if isinstance(spec, dict):
        for name, value in spec.items():
            if name == "template" and isinstance(value, dict) and "containers" in value.get("spec", {}):
                yield value
            yield from pod_templates(value)
    elif isinstance(spec, list):
        for one in spec:
            yield from pod_templates(one)
