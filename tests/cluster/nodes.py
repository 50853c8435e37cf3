"""A Ray cluster of several nodes on this machine: head and worker as own processes, on loopback, with a token."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        environment: of whoever talks to it; `RAY_ADDRESS` is the dashboard's, as for `ray job submit`.
        dashboard_port: on loopback.
        head: pid of `ray start --head`.
    """

    environment: dict[str, str]
    dashboard_port: int
    head: int

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


@contextmanager
def running_cluster(folder: Path, *, num_nodes: int = 2, cpus: int = 3) -> Iterator[Cluster]:
    """Nodes of so many CPUs each until the context ends; they are ended by their pids, whatever happens.

    Args:
        folder: short, since sockets lie in it.
    """
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    gcs, dashboard, client, *agents = free_ports(3 + 2 * num_nodes)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    sizes = [f"--num-cpus={cpus}", f"--object-store-memory={120 * 2**20}", "--block", "--node-ip-address=127.0.0.1"]
    head = [
        *("--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        f"--ray-client-server-port={client}",
    ]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with open(folder / "nodes.log", "ab") as log:
            for node in range(num_nodes):
                own = [
                    f"--dashboard-agent-listen-port={agents[2 * node]}",
                    f"--metrics-export-port={agents[2 * node + 1]}",
                    f"--temp-dir={folder / f'ray{node}'}",  # in one both would unpack jobs over each other's heads
                ]
                joined = head if node == 0 else [f"--address=127.0.0.1:{gcs}"]
                command = [sys.executable, "-m", "ray.scripts.scripts", "start", *joined, *own, *sizes]
                processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
                wait_for_nodes(environment, f"127.0.0.1:{gcs}", node + 1, processes[-1])
        yield Cluster({**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}, dashboard, processes[0].pid)
    finally:
        end(processes)


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


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End started nodes and all that they started."""
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
    psutil.wait_procs(everyone, timeout=20)
    for process in processes:
        process.wait(timeout=20)
