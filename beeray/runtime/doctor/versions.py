"""Versions alike on all nodes: workers of two versions unpickle each other's objects wrongly, or hang."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from beeray.runtime.doctor.facts import NodeFacts
from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding

MAY_DIFFER = {"numpy", "pyarrow", "NVIDIA driver"}
"""What differs between machines without breaking a run, mostly."""
OF_GPUS = ("CUDA of torch", "NVIDIA driver")
"""What only nodes with GPUs need to have alike: the others' image has neither."""
ABSENT = ("none", "not installed")


def judge_versions(here: NodeFacts, nodes: Sequence[NodeFacts], silent: Mapping[str, str] | None = None) -> Finding:
    """Compare every node with this command, and say which differ in what.

    Builds of one torch (`+cpu`, `+cu130`) are one version; nodes with GPUs are compared with each other in CUDA.

    Args:
        here: the machine and environment of this command.
        nodes: what could be read of the nodes.
        silent: nodes on which beeray could not be run, with why.
    """
    for name, reason in (silent or {}).items():
        return Finding(
            FAILED,
            f"node {name}: beeray cannot be run there ({reason}); install beeray and constraints.txt on every node, "
            "or submit the job with --working-dir . from the checkout",
        )
    differing: list[tuple[str, str, str, list[str]]] = []
    for package in here.versions:
        ours, compared = _version(here, package), nodes
        if package in OF_GPUS:  # a command may run where there is no GPU: nodes are compared with each other
            compared = [node for node in nodes if node.num_gpus or _version(node, package) not in ABSENT]
            ours = _commonest(compared, package) or ours
        theirs = {node.name: _version(node, package) for node in compared}
        others = [name for name, version in theirs.items() if version != ours]
        if others:
            differing.append((package, ours, theirs[others[0]], others))
    if not differing:
        told = ", ".join(f"{name} {here.versions[name]}" for name in ("torch", "ray", "deepspeed", "beeray"))
        alike = f"alike on {len(nodes)} nodes" if len(nodes) > 1 else "alike in the command and on its node"
        return Finding(OK, f"{alike}: Python {here.versions['python']}, {told}", {"versions": dict(here.versions)})
    differing.sort(key=lambda one: one[0] in MAY_DIFFER)
    said = "; ".join(
        f"{package} is {ours} {'mostly' if package in OF_GPUS else 'here'} and {other} on node {names[0]}"
        + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for package, ours, other, names in differing
    )
    grave = any(package not in MAY_DIFFER for package, *_ in differing)
    remedy = "install the versions of constraints.txt, and the same beeray, on every node (or use one image for all)"
    measured = {"differing": [package for package, *_ in differing]}
    return Finding(FAILED if grave else WARNING, f"{said}; {remedy}", measured)


def _version(node: NodeFacts, package: str) -> str:
    version = node.versions.get(package, "not installed")
    return version.partition("+")[0] if package == "torch" else version


def _commonest(nodes: Sequence[NodeFacts], package: str) -> str:
    counted = Counter(_version(node, package) for node in nodes)
    present = [version for version, _ in counted.most_common() if version not in ABSENT]
    return present[0] if present else ""
