"""A small process on every node: tells what the machine is, writes and reads there. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from beeray.config import Config
from beeray.runtime.doctor.facts import NodeFacts, read_facts
from beeray.runtime.doctor.finding import Finding, found

READ_REMEDY = "check data.* in the config, and that every node may read it"


@ray.remote(num_cpus=0)
class NodeProbe:
    """One node, seen from a process on it."""

    def facts(self, name: str, num_gpus: float) -> NodeFacts:
        """See `read_facts`."""
        return read_facts(name, num_gpus)

    def work(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of beeray's here."""
        return what(*arguments)

    def data(self, config: Config) -> Finding:
        """See `check_data`."""
        from beeray.runtime.doctor.tables import check_data

        return found(lambda: check_data(config), READ_REMEDY)


@dataclass(frozen=True)
class Node:
    """A node of the cluster and the probe on it; a `storage.Reach`."""

    name: str
    probe: Any
    num_gpus: float

    def call(self, work: Callable[..., str], *arguments: str) -> Callable[[], str]:
        """See `Reach`; the limit of time is the check's."""
        reference = self.probe.work.remote(work, *arguments)
        return lambda: str(ray.get(reference))


class Here:
    """This process, as a `storage.Reach`."""

    name = "this command"

    def call(self, work: Callable[..., str], *arguments: str) -> Callable[[], str]:
        """See `Reach`; the work is done at once."""
        result = work(*arguments)
        return lambda: result


def start_probes() -> list[Node]:
    """A probe on every node that is alive."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        Node(
            _name(node, alive),
            NodeProbe.options(  # type: ignore[attr-defined]
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            ).remote(),
            node["Resources"].get("GPU", 0.0),
        )
        for node in alive
    ]


def _name(node: dict[str, Any], alive: list[dict[str, Any]]) -> str:
    """Its address, and where several nodes have one, a piece of its id."""
    address = str(node["NodeManagerAddress"])
    several = sum(other["NodeManagerAddress"] == address for other in alive) > 1
    return f"{address} ({node['NodeID'][:6]})" if several else address
