"""What `beeray.doctor` does: all checks at once, each in a thread with a limit of time, told in one order."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import psutil
import ray

from beeray.config import Config
from beeray.console import Console
from beeray.data.storage import storage_options
from beeray.inputs import located_encoder
from beeray.runtime.doctor.check import Check
from beeray.runtime.doctor.clocks import judge_clocks
from beeray.runtime.doctor.facts import NodeFacts, read_facts
from beeray.runtime.doctor.finding import FAILED, OK, SKIPPED, WARNING, Finding, found, in_one_line
from beeray.runtime.doctor.gang import REMEDIES, Gang, gang_size
from beeray.runtime.doctor.memory import Parameters, judge_disk, judge_memory
from beeray.runtime.doctor.probe import READ_REMEDY, Here, Node, start_probes
from beeray.runtime.doctor.resources import judge_resources
from beeray.runtime.doctor.storage import check_places, free_bytes, nearest_folder
from beeray.runtime.doctor.tracking import check_mlflow
from beeray.runtime.doctor.versions import judge_versions
from beeray.runtime.session import cluster_address, grown, lacking_workers, ray_session
from beeray.runtime.warm_start import find_warm_start

ON_CLUSTER = (
    "resources", "versions", "clocks", "storage", "data", "workers", "collectives", "deepspeed", "gradient", "encoder",
    "memory", "disk",
)  # fmt: skip
"""Checks that need a Ray, in the order in which they are told."""
WIDTH = max(len(name) for name in (*ON_CLUSTER, "mlflow"))


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run every check; returns their findings, and whether none failed."""
    limit_s = arguments.timeout_s
    told = _Told(console)
    with storage_options(config.storage):
        mlflow = Check(
            "mlflow", lambda: check_mlflow(config, limit_s / 2), who="MLflow", remedy="is it up?", limit_s=limit_s
        )
        with ExitStack() as stack:
            joined = ray.is_initialized() or cluster_address(config.cluster) is not None
            begun = time.monotonic()

            def connect() -> Finding:
                stack.enter_context(ray_session(config.cluster, config.storage))
                if arguments.grow and joined and lacking_workers(config.cluster)[1]:
                    console.line(f"waiting up to {config.cluster.placement_timeout_s:g} s for the cluster to grow")
                    stack.enter_context(grown(config.cluster))
                return _ray(joined=joined)

            connected = found(connect, "see cluster.address and ray status")
            told.add("ray", connected, time.monotonic() - begun)
            if connected.status == OK:
                examination = _Examination(config, limit_s, joined=joined)
                stack.callback(examination.stop)
                for check in examination.checks():
                    told.wait(check)
        for name in ON_CLUSTER:
            if name not in told.findings:
                told.add(name, Finding(SKIPPED, "needs ray, which did not pass"), 0.0)
        told.wait(mlflow)
    return told.record(config, time.time() - psutil.Process().create_time())  # imports count: a person waits for them


def begun_with(config: Config) -> str:
    """The encoder that a run begins with, as any worker understands it; errors as `find_warm_start`."""
    warm = find_warm_start(config)
    return located_encoder(config.encoder.name) if warm is None else warm.model


class _Told:
    """What was told so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.findings: dict[str, tuple[Finding, float]] = {}

    def wait(self, check: Check) -> None:
        self.add(check.name, *check.wait())

    def add(self, name: str, finding: Finding, seconds: float) -> None:
        self.findings[name] = finding, round(seconds, 2)
        self.console.line(f"{finding.status:<7}  {name:<{WIDTH}}  {seconds:5.1f} s  {finding.said}")

    def record(self, config: Config, seconds: float) -> dict[str, Any]:
        """The record of the command, with a last line on what came out."""
        of = {status: [name for name, (one, _) in self.findings.items() if one.status == status] for status in
              (OK, WARNING, FAILED, SKIPPED)}  # fmt: skip
        counts = ", ".join(f"{len(names)} {status}" for status, names in of.items() if names)
        self.console.line(f"doctor {config.name}: {counts} in {seconds:.1f} s")
        return {
            "config": config.name,
            "passed": not of[FAILED],
            "failed": of[FAILED],
            "warnings": of[WARNING],
            "seconds": round(seconds, 1),
            "checks": [
                {"name": name, "status": one.status, "seconds": took, "said": one.said, **one.measured}
                for name, (one, took) in self.findings.items()
            ],
        }


def _ray(*, joined: bool) -> Finding:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cpus = ray.cluster_resources().get("CPU", 0.0)
    how = "joined a cluster" if joined else "started one here"
    said = f"Ray {ray.__version__}: {how} of {len(nodes)} node{'s' if len(nodes) > 1 else ''}, {cpus:g} CPU"
    return Finding(OK, said, {"nodes": len(nodes), "joined": joined})


class _Examination:
    """The checks that need a Ray. What one learns and another needs is kept here."""

    def __init__(self, config: Config, limit_s: float, *, joined: bool) -> None:
        self.config, self.limit_s, self.joined = config, limit_s, joined
        self.free: dict[str, float] = ray.available_resources()
        self.nodes: list[Node] = start_probes()
        self.gang: Future[Gang] = Future()
        self.facts: list[NodeFacts] = []
        self.parameters = Parameters(held=0, trained=0)

    def checks(self) -> Iterator[Check]:
        """All of them begun at once, in the order in which they are to be told."""
        begin = self._begin
        resources = begin("resources", self._resources, "Ray", "see ray status")
        workers = begin("workers", self._workers, "the workers", REMEDIES["workers"], times=2)
        probe = "a node's probe", "see ray status and that node's logs"
        versions = begin("versions", self._versions, *probe)
        clocks = begin("clocks", self._clocks, *probe, after=[versions])
        storage = begin("storage", self._storage, "runs_dir or data.store", "is a mount or an object store mute?")
        data = begin("data", self._data, "the tables or the store", READ_REMEDY)
        gang_checks = [workers]
        for name, check in self._of_gang().items():
            gang_checks.append(begin(name, check, f"the workers' {name}", REMEDIES[name], [gang_checks[-1]]))
        # last of what the workers do, one thing after the other: a model hub that is mute keeps nothing else waiting
        who, remedy = "the encoder on its way in", REMEDIES["encoder"]
        encoder = begin("encoder", self._encoder, who, remedy, [workers], gang_checks)
        memory = begin("memory", self._memory, "the nodes", "look at the nodes", [encoder], [versions])
        disk = begin("disk", self._disk, "the disk of runs_dir", "look at the disk of runs_dir", [encoder], [versions])
        yield from (resources, versions, clocks, storage, data, *gang_checks, encoder, memory, disk)

    def _begin(
        self,
        name: str,
        work: Callable[[], Finding],
        who: str,
        remedy: str,
        needs: Sequence[Check] = (),
        after: Sequence[Check] = (),
        times: float = 1,
    ) -> Check:
        return Check(name, work, who=who, remedy=remedy, limit_s=times * self.limit_s, needs=needs, after=after)

    def _resources(self) -> Finding:
        return judge_resources(self.config.cluster, self.free, joined=self.joined)

    def _versions(self) -> Finding:
        asked = {node.name: node.probe.facts.remote(node.name, node.num_gpus) for node in self.nodes}
        facts: list[NodeFacts] = []
        silent: dict[str, str] = {}
        for name, reference in asked.items():
            try:
                facts.append(ray.get(reference))
            except ray.exceptions.RayError as error:
                silent[name] = in_one_line(error)
        here = read_facts("this command")
        self.facts = facts or [here]
        return judge_versions(here, facts, silent)

    def _clocks(self) -> Finding:
        readings = []
        for node in self.nodes:
            asked = time.time()
            clock = float(ray.get(node.probe.work.remote(time.time)))
            readings.append((node.name, asked, time.time(), clock))
        return judge_clocks(readings)

    def _storage(self) -> Finding:
        return check_places(self.config, [Here(), *self.nodes])

    def _data(self) -> Finding:
        finding: Finding = ray.get(self.nodes[-1].probe.data.remote(self.config))
        return finding

    def _workers(self) -> Finding:
        cluster = self.config.cluster
        placeable, _ = lacking_workers(cluster)
        gang = Gang(self.config, gang_size(cluster, len(self.nodes), placeable), whole=placeable > 0)
        self.gang.set_result(gang)
        return gang.start(self.limit_s)

    def _of_gang(self) -> dict[str, Callable[[], Finding]]:
        """What the workers do together, one thing after the other."""
        in_time = max(1.0, self.limit_s - 5.0)  # torch's own error comes before ours
        return {
            "collectives": lambda: self.gang.result().collectives(in_time),
            "deepspeed": lambda: self.gang.result().deepspeed(),
            "gradient": lambda: self.gang.result().gradient(),
        }

    def _encoder(self) -> Finding:
        finding = self.gang.result().encoder(begun_with(self.config))
        held, trained = (int(finding.measured.get(name, 0)) for name in ("parameters", "trained_parameters"))
        self.parameters = Parameters(held, trained)
        return finding

    def _memory(self) -> Finding:
        return judge_memory(self.config, self.parameters, self._known(), self.gang.result().gpu_free_bytes())

    def _disk(self) -> Finding:
        runs = nearest_folder(str(self.config.run_dir))
        return judge_disk(self.config, self.parameters, self._known(), free_bytes(runs))

    def _known(self) -> list[NodeFacts]:
        """Facts of the nodes that answered; of this one alone where no answer has come in time."""
        return self.facts or [read_facts("this command")]

    def stop(self) -> None:
        """End the workers and probes, however stuck they are."""
        if self.gang.done():
            self.gang.result().stop()
        for node in self.nodes:
            ray.kill(node.probe)
