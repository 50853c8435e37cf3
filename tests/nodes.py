"""A Ray cluster of several nodes on this machine: head and worker as own processes, on loopback, with a token.

Each has an address of its own, as machines have: a driver joins the node of its address, the head, and would else join
any, so that a worker node's end would be that of the driver's own node.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
START_S = 400.0


@dataclass
class Cluster:
    """A cluster of nodes that are processes of this machine.

    Attributes:
        folder: short, since sockets lie in it; each node has a temporary folder of its own in it, since in one they
            would unpack jobs over each other's heads.
        environment: of nodes and of whoever talks to them; `RAY_ADDRESS` is the dashboard's, as for `ray job submit`.
        address: of the cluster itself, for whoever joins it.
        dashboard_port: on loopback.
        cpus: of every node.
        processes: `ray start --block` of each node that was started, the head's first.
    """

    folder: Path
    environment: dict[str, str]
    address: str
    dashboard_port: int
    cpus: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def head(self) -> int:
        """Pid of `ray start --head`."""
        return self.processes[0].pid

    def run(self, *words: str, limit_s: float = 300.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Type a command in the checkout."""
        return subprocess.run(
            words,
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def start_node(self, *first: str) -> None:
        """Start a node and wait until it has joined; the first one is the head.

        Args:
            first: further words of the head's command.
        """
        number, alive = len(self.processes), sum(one.poll() is None for one in self.processes)
        agent, metrics = free_ports(2)
        own = [
            *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
            *(f"--temp-dir={self.folder / f'ray{number}'}", f"--num-cpus={self.cpus}", "--block"),
            *(f"--object-store-memory={120 * 2**20}", f"--node-ip-address=127.0.0.{number + 1}"),
        ]
        joined = list(first) or [f"--address={self.address}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *joined, *own]
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        with open(self.folder / "nodes.log", "ab") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        wait_for_nodes(environment, self.address, alive + 1, process)

    def raylet(self, number: int) -> psutil.Process:
        """The raylet of a node; RuntimeError where it has ended."""
        for one in psutil.Process(self.processes[number].pid).children(recursive=True):
            if one.name() == "raylet":
                return one
        raise RuntimeError(f"node {number} has no raylet")

    def replace_last(self) -> int:
        """SIGKILL for the last node's raylet, and another node in its place; returns the number of what went.

        A raylet that was given notice and has nothing left to do may have gone by itself, for which `ray start --block`
        does not end.
        """
        number = len(self.processes) - 1
        try:
            self.raylet(number).kill()
        except (RuntimeError, psutil.NoSuchProcess):
            end([self.processes[number]])
        self.processes[number].wait(timeout=300)
        self.start_node()
        return number

    def give_notice(self, deadline_s: int) -> None:
        """Tell the last node that its machine will be taken away, as clouds do; nothing happens to it."""
        words = self.raylet(len(self.processes) - 1).cmdline()
        (node_id,) = [word.partition("=")[2] for word in words if word.startswith("--node_id=")]
        done = self.run(
            *("ray", "drain-node", f"--address={self.address}", f"--node-id={node_id}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"),
            f"--deadline-remaining-seconds={deadline_s}",
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def end(self) -> None:
        """End the nodes and all that they started, by their pids."""
        end(self.processes)


@contextmanager
def running_cluster(
    folder: Path, *, num_nodes: int = 2, cpus: int = 3, environment: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """Nodes of so many CPUs each until the context ends; they are ended by their pids, whatever happens.

    Args:
        environment: further variables of nodes and commands.
    """
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    gcs, dashboard, client = free_ports(3)
    variables = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    cluster = Cluster(folder, variables, f"127.0.0.1:{gcs}", dashboard, cpus)
    head = ("--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}")
    try:
        cluster.start_node(*head, f"--ray-client-server-port={client}")
        for _ in range(num_nodes - 1):
            cluster.start_node()
        yield cluster
    finally:
        cluster.end()


def wait_for_nodes(environment: dict[str, str], address: str, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many nodes have joined."""
    ask = "import ray, sys; ray.init(sys.argv[1], logging_level=50); print(sum(one['Alive'] for one in ray.nodes()))"
    deadline = time.monotonic() + START_S
    while True:
        done = subprocess.run(
            [sys.executable, "-c", ask, address], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.strip() == str(count):
            return
        assert process.poll() is None, "a node ended at once; see nodes.log"
        assert time.monotonic() < deadline, f"{count} nodes did not come up: {done.stdout} {done.stderr[-2000:]}"
        time.sleep(1)


def free_ports(number: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def end(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """SIGKILL for started nodes or commands and all that they started, at once."""
    everyone: list[psutil.Process] = []
    for process in processes:
        try:
            node = psutil.Process(process.pid)
            everyone += [node, *node.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for one in everyone:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(everyone, timeout=60)
    for process in processes:
        process.wait(timeout=20)
