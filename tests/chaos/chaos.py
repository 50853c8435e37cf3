"""Faults at random moments of every verb, on a cluster of two nodes with its store in a bucket.

    make chaos            # PYTHONPATH=tests python tests/chaos/chaos.py --rounds 24 --seed 1

A round types one command (`beeray.prepare`, `train`, `tune` or `embed`), does one thing to it at a seeded moment, and,
if the command did not end well, types the same again. What it leaves must be what an undisturbed command leaves.

| fault | what happens |
|---|---|
| `worker` | SIGKILL for one of the command's Ray workers: a training worker, or what runs a task or an actor |
| `raylet` | SIGKILL for the second node's raylet; another node takes its place |
| `notice` | the second node is told that it goes in ten seconds, and goes; another node takes its place |
| `driver` | SIGKILL for the command; the cluster goes on |
| `store` | the bucket cannot be reached for some seconds, or until the command gives up |

Verbs and faults come in turn, so that 20 rounds have every pair; moments follow from the seed, what a machine does
within them does not. `tests/verbs/embed_chaos.py` does the same to the nightly job in more detail.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
from cut_proxy import Proxy, running_proxy
from nodes import Cluster, running_cluster
from s3_server import running_s3
from typed_commands import VERBS, Outcome, Typed, Workplace, differences

FAULTS = ("worker", "raylet", "driver", "store", "notice")
EARLIEST, LATEST = 0.15, 0.75
"""Moments, as shares of the time that the undisturbed command took, on a cluster that was just as busy."""
LONGEST_CUT_S, NOTICE_S = 20.0, 10
TRIES = 3
OF_RAY_ITSELF = ("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv", "ray::_")
POLL_S = 0.05
FORESEEN = {0, 2}
"""Exit codes of a disturbed command: it went on by itself, or one line says what to do; 1 is a defect of ours."""


@dataclass
class Round:
    """What was done in a round, and what came of it.

    Attributes:
        moment: seconds after the command began; half of what was drawn where the command had ended by then.
        victim: what was killed or cut; None: the command had ended before.
        codes: exit code of each attempt.
        said: last line of an attempt that did not end well.
        wrong: all that is not as it would be undisturbed; empty when all is well.
    """

    verb: str
    fault: str
    moment: float
    victim: str | None = None
    codes: list[int] = field(default_factory=list)
    said: str = ""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Chaos:
    """A cluster, a bucket, and what each verb leaves when nobody disturbs it.

    Args:
        place: where commands are typed.
    """

    def __init__(self, place: Workplace, cluster: Cluster, proxy: Proxy) -> None:
        self.place, self.cluster, self.proxy = place, cluster, proxy
        self._undisturbed: dict[str, tuple[Outcome, float]] = {}
        self._rounds = 0

    def undisturbed(self, verb: str) -> tuple[Outcome, float]:
        """What a verb leaves, and the seconds that it takes, when nothing happens to it."""
        if verb not in self._undisturbed:
            started = time.monotonic()
            typed = self.place.type(verb, f"undisturbed-{verb}")
            code, said = typed.wait()
            if code:
                raise RuntimeError(f"{verb} ends with {code}, undisturbed: {said}")
            self._undisturbed[verb] = self.place.outcome(verb, typed.name), time.monotonic() - started
        return self._undisturbed[verb]

    def play(self, verb: str, fault: str, draw: np.random.Generator) -> Round:
        """One round."""
        expected, takes_s = self.undisturbed(verb)
        played = Round(verb, fault, round(takes_s * float(draw.uniform(EARLIEST, LATEST)), 1))
        choice, cut_s = int(draw.integers(1 << 30)), float(draw.uniform(1, LONGEST_CUT_S))
        started = time.monotonic()
        for _ in range(TRIES):
            self._rounds += 1
            typed = self.place.type(verb, f"round-{self._rounds}")
            try:
                played.victim = self._strike(played, typed, choice, cut_s)
                code, said = typed.wait()
            finally:
                typed.end()
                self.proxy.mend()
            if played.victim is not None:
                break
            played.moment = round(played.moment / 2, 1)
        played.codes.append(code)
        if not foreseen(fault, code):
            played.wrong.append(f"disturbed, it ends with {code}: {said}")
        if code:
            played.said = said
            again = self.place.type(verb, typed.name)
            code, said = again.wait()
            played.codes.append(code)
            if code:
                played.wrong.append(f"typed again, it ends with {code}: {said}")
        if not played.wrong:
            played.wrong = differences(expected, self.place.outcome(verb, typed.name))
        played.seconds = round(time.monotonic() - started, 1)
        return played

    def _strike(self, played: Round, typed: Typed, choice: int, cut_s: float) -> str | None:
        """Do it when the moment has come; returns what was struck, None when the command ended before."""
        deadline = time.monotonic() + played.moment
        while time.monotonic() < deadline:
            if typed.ended:
                return None
            time.sleep(POLL_S)
        if played.fault == "driver":
            typed.kill()
            return "command"
        if played.fault == "raylet":
            return f"raylet of node {self.cluster.replace_last()}"
        if played.fault == "notice":
            self.cluster.give_notice(NOTICE_S)
            time.sleep(NOTICE_S)
            return f"node {self.cluster.replace_last()}, told before"
        if played.fault == "store":
            self.proxy.cut()
            threading.Timer(cut_s, self.proxy.mend).start()
            return f"bucket, {cut_s:.1f} s"
        while not typed.ended:
            workers = sorted(workers_of(self.cluster), key=lambda one: (one[0], one[1].pid))
            if workers:
                title, worker = workers[choice % len(workers)]
                worker.kill()
                return title
            time.sleep(POLL_S)
        return None


def foreseen(fault: str, code: int) -> bool:
    """Whether a command that this was done to may end so; one that is killed may have ended a moment before."""
    return code in FORESEEN or (fault == "driver" and code == -signal.SIGKILL)


def workers_of(cluster: Cluster) -> Iterator[tuple[str, psutil.Process]]:
    """Ray workers of any node that run something, with what they call themselves."""
    for process in cluster.processes:
        try:
            everyone = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        for one in everyone:
            try:
                title = " ".join(one.cmdline()).strip()
            except psutil.NoSuchProcess:
                continue
            if title.startswith("ray::") and not title.startswith(OF_RAY_ITSELF):
                yield title, one


@contextmanager
def chaos_in(folder: Path) -> Iterator[Chaos]:
    """A cluster with its bucket, in a folder whose name is short."""
    with (
        running_s3() as server,
        running_proxy(int(server.url.rpartition(":")[2])) as proxy,
        running_cluster(folder, cpus=2, environment=server.environment) as cluster,
    ):
        yield Chaos(Workplace(folder, server, proxy.url, cluster), cluster, proxy)


def pairs(rounds: int, verbs: list[str], faults: list[str]) -> Iterator[tuple[str, str]]:
    """Verb and fault of every round: all pairs, in an order in which both change from one to the next."""
    for number in range(rounds):
        lap, place = divmod(number, len(verbs))
        yield verbs[place], faults[(place + lap) % len(faults)]


def main() -> int:
    """The program: a JSON line a round, and one for all."""
    parser = argparse.ArgumentParser(description="Faults at random moments of every verb.")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--after", type=int, default=0, help="rounds that were played before: their pairs are left out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--keep", action="store_true", help="leave the folder, and name it")
    arguments = parser.parse_args()
    draw = np.random.default_rng(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="ch-"))
    faults: Counter[str] = Counter()
    rounds: list[Round] = []
    try:
        with chaos_in(folder) as chaos:
            planned = pairs(arguments.after + arguments.rounds, arguments.verbs, arguments.faults)
            for verb, fault in islice(planned, arguments.after, None):
                played = chaos.play(verb, fault, draw)
                rounds.append(played)
                faults[f"{verb}: {fault}"] += played.victim is not None
                print(json.dumps(asdict(played)), flush=True)
    finally:
        if arguments.keep:
            print(folder, file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    differing = sum(bool(one.wrong) for one in rounds)
    typed_again = sum(len(one.codes) > 1 for one in rounds)
    summary = {
        "rounds": len(rounds),
        "faults": faults.total(),
        "by_fault": dict(sorted(faults.items())),
        "went_on_by_themselves": len(rounds) - typed_again,
        "typed_again": typed_again,
        "rounds_that_differ": differing,
    }
    print(json.dumps(summary))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
