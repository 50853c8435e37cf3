"""Kills at random moments of the nightly job: nothing that is published may tell of them.

    PYTHONPATH=tests python tests/verbs/embed_chaos.py --rounds 12 --seed 1

A round starts from one night's publication and types `python -m beeray.embed` for the next night, on a cluster of one
node. At a seeded moment one process gets SIGKILL:

| kind | the process |
|---|---|
| `actor` | the encoder actor's |
| `task` | a Ray worker's that runs a task |
| `driver` | the command's; Ray goes on |
| `machine` | the command's and all of its Ray's, which was started by the command |

When the command did not end well, the same is typed again. Files and counts must be those of a job that nobody
disturbed, and a reader that opens the publication all along must find a whole version each time. The moments
follow from the seed; what a machine does within them does not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from embedding_jobs import Jobs, files_of
from nodes import Cluster, end, running_cluster

from beeray.data.embeddings import open_embeddings
from beeray.data.generated_catalog import GeneratedCatalog
from beeray.runtime.session import init_ray, ray_init_arguments

KINDS = ("actor", "task", "driver", "machine")
LIMIT_S = 900.0
SHARES: dict[str, Any] = {"changed": 0.6, "deleted": 0.05, "added": 0.05}
NUM_FILES = 16
TOKEN_BUDGET = 32
"""So small that the encoder takes one text after the other: units last long enough to be interrupted."""


@dataclass
class Round:
    """What was done in a round, and what came of it.

    Attributes:
        files, delay_s: the moment: so many files of the new version are there, and so much later.
        victim: title of the process that was killed; None: the command had ended before.
        codes: exit code of each attempt.
        kept: files of the new version that the second attempt found, and left as they were.
        already: files of which the second attempt said that they are there already.
        tokens: encoded by the last attempt, as far as it knows.
        reads: versions that the reader found, and how often.
        wrong: all that is not as it would be undisturbed; empty when all is well.
    """

    kind: str
    files: int
    delay_s: float
    victim: str | None = None
    codes: list[int] = field(default_factory=list)
    kept: int = 0
    already: int = 0
    tokens: float = 0.0
    reads: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Reader(threading.Thread):
    """Opens what is published again and again, every byte verified, until it is told to stop."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.found, self.errors = str(path), Counter[str](), Counter[str]()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            self.read()

    def read(self) -> None:
        """Open it once, and count its rows."""
        try:
            published = open_embeddings(self.path)
            rows = published.table(["item_id"]).num_rows
            self.found[published.version] += 1
            if rows != published.num_rows:
                self.errors[f"{published.version} has {rows} rows, not {published.num_rows}"] += 1
        except Exception as error:  # whatever it is, a reader must not see it
            self.errors[f"{type(error).__name__}: {error}"] += 1

    def stop(self) -> None:
        """Let the thread end, and read once more."""
        self._stopped.set()
        self.join()
        self.read()


class Chaos:
    """One night published, the next one's catalog, and what an undisturbed job makes of it.

    Ray must be running in this process, where undisturbed commands are run.

    Args:
        folder: new.
        cluster: on which commands are disturbed.
        num_items: of the first night.
    """

    def __init__(self, folder: Path, cluster: Cluster, num_items: int = 4000) -> None:
        self.cluster = cluster
        rows_per_file = math.ceil(num_items / NUM_FILES)
        self.jobs = Jobs(folder, {"embed": {"rows_per_file": rows_per_file, "token_budget": TOKEN_BUDGET}})
        for night, name in enumerate(("first", "second")):
            GeneratedCatalog(num_items, 9, night, mean_tokens=16, **SHARES).write(folder / name, num_files=4)
        self.before = self._embed("data.catalog.path=first", "embed.path=base", "embed.token_budget=2048")["version"]
        shutil.copytree(folder / "base", folder / "undisturbed")
        record = self._embed("data.catalog.path=second", "embed.path=undisturbed")
        self.tokens: float = record["encoded_tokens"]
        self.undisturbed = self.jobs.published("undisturbed")
        self._rounds = 0

    def _embed(self, *arguments: str) -> dict[str, Any]:
        return self.jobs.embed(*arguments).record

    def play(self, kind: str, draw: np.random.Generator, least_files: int = 0) -> Round:
        """One round.

        Args:
            least_files: files of the new version that are there before the kill, at least.
        """
        moment = int(draw.integers(least_files, NUM_FILES - 3)), round(float(draw.uniform(0, 0.3)), 3)
        played, started = Round(kind, *moment), time.monotonic()
        self._rounds += 1
        name = f"round-{self._rounds}"
        path = self.jobs.folder / name
        shutil.copytree(self.jobs.folder / "base", path)
        command = ["data.catalog.path=second", f"embed.path={name}", f"name={name}"]
        reader = Reader(path)
        reader.start()
        try:
            self._disturb(played, path, command)
            if played.codes != [0]:
                self._again(played, path, command)
        finally:
            reader.stop()
        played.reads = dict(reader.found)
        played.wrong += [f"reader, {number} times: {error}" for error, number in reader.errors.items()]
        self._compare(played, name, reader)
        played.seconds = round(time.monotonic() - started, 1)
        return played

    def _disturb(self, played: Round, path: Path, command: list[str]) -> None:
        outside = os.environ if played.kind == "machine" else self.cluster.environment
        joined = [] if played.kind == "machine" else [f"cluster.address={self.cluster.address}"]
        environment = {name: value for name, value in outside.items() if name != "RAY_ADDRESS"}
        process = self.jobs.start(*joined, *command, environment=environment)
        try:
            played.victim = strike(played, process, self.cluster, lambda: self._moment_has_come(played, path))
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            end([process])
        played.codes.append(process.returncode)
        if process.returncode == 0:
            played.tokens = json.loads(out)["encoded_tokens"]
        elif process.returncode > 0:
            print(err[-2000:], file=sys.stderr)

    def _moment_has_come(self, played: Round, path: Path) -> bool:
        if not list(path.glob("work/*/job.json")):
            return False
        return len(self._parts(path)) >= played.files

    def _parts(self, path: Path) -> dict[str, tuple[int, int]]:
        """Files of the version that is being made, and what tells whether they were written again."""
        parts = [one for one in path.glob("versions/*/part-*.parquet") if one.parent.name != self.before]
        return {one.name: (one.stat().st_ino, one.stat().st_mtime_ns) for one in parts}

    def _again(self, played: Round, path: Path, command: list[str]) -> None:
        there = self._parts(path)
        ended = self.jobs.embed(*command)
        played.codes.append(ended.code)
        if ended.code:
            played.wrong.append(f"typed again: {ended.err.splitlines()[-1]}")
            return
        now = self._parts(path)
        played.kept = sum(now.get(name) == stamp for name, stamp in there.items())
        said = re.search(r"^(\d+) of \d+ files are there already$", ended.err, flags=re.MULTILINE)
        played.already = int(said[1]) if said else 0
        played.tokens = ended.record["encoded_tokens"]

    def _compare(self, played: Round, name: str, reader: Reader) -> None:
        """Put down all that differs from the undisturbed job."""
        wrong = played.wrong
        if played.victim is None:
            wrong.append("nothing was killed: the command had ended")
        published, expected = self.jobs.published(name), self.undisturbed
        if files_of(published) != files_of(expected):
            differing = set(files_of(published)) ^ set(files_of(expected))
            wrong.append(f"files differ: {sorted({file for file, _, _ in differing})}")
        if published.manifest.counts != expected.manifest.counts:
            wrong.append(f"counts are {published.manifest.counts}, not {expected.manifest.counts}")
        if published.manifest.previous != self.before:
            wrong.append(f"previous is {published.manifest.previous}")
        if set(reader.found) != {self.before, published.version}:
            wrong.append(f"the reader found {sorted(reader.found)}")
        left = sorted(one.name for one in (self.jobs.folder / name).iterdir() if not one.name.startswith("."))
        if left != ["latest", "versions"]:
            wrong.append(f"left behind: {left}")
        names = {"_manifest.json", *(file.path for file in published.manifest.files)}
        if odd := {one.name for one in Path(published.folder).iterdir()} - names:
            wrong.append(f"left behind in the version: {sorted(odd)}")
        experiment = self.jobs.client.get_experiment_by_name("beeray")
        assert experiment is not None
        runs = self.jobs.client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
        if [run.info.status for run in runs] != ["FINISHED"]:
            wrong.append(f"MLflow runs: {[run.info.status for run in runs]}")


def strike(played: Round, process: subprocess.Popen[str], cluster: Cluster, moment: Any) -> str | None:
    """Wait for the moment and kill the first process of the round's kind; returns its title.

    Returns None when the command ends before.
    """
    while not moment():
        if process.poll() is not None:
            return None
        time.sleep(0.01)
    time.sleep(played.delay_s)
    if played.kind == "machine":
        end([process])
        return "command and Ray"
    if played.kind == "driver":
        process.kill()
        return "command"
    raylet = cluster.raylet(0)
    while process.poll() is None:
        for worker in raylet.children():
            title = title_of(worker)
            if title.startswith("ray::") and kind_of(title) == played.kind:
                worker.kill()
                return title
    return None


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; nothing once it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""


def kind_of(title: str) -> str | None:
    """Which kind of victim a Ray worker is."""
    if title.startswith("ray::MapWorker"):
        return "actor"
    work = ("Map", "Read", "Write", "deal", "prepare_unit", "write_and_tell")
    return "task" if any(word in title for word in work) else None


def main() -> int:
    """The program: a JSON line a round, and one for all."""
    parser = argparse.ArgumentParser(description="Kill parts of the nightly job at random moments.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="in turn")
    arguments = parser.parse_args()
    draw = np.random.default_rng(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    init_ray(ray_init_arguments(num_cpus=2, object_store_mib=256))
    faults: Counter[str] = Counter()
    wrong = 0
    try:
        (folder / "ray").mkdir()
        with running_cluster(folder / "ray", num_nodes=1, cpus=2) as cluster:
            (folder / "work").mkdir()
            chaos = Chaos(folder / "work", cluster, arguments.items)
            for number in range(arguments.rounds):
                played = chaos.play(arguments.kinds[number % len(arguments.kinds)], draw)
                faults[played.kind] += played.victim is not None
                wrong += bool(played.wrong)
                print(json.dumps(asdict(played)), flush=True)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"rounds": arguments.rounds, "faults": dict(faults), "rounds_that_differ": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
