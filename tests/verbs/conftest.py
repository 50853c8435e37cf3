"""The verbs as anyone types them: real processes, each with a small Ray of its own, on a tiny encoder and catalog."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_encoder import SYLLABLES, build_tiny_encoder

NUM_ITEMS, NUM_USERS, NUM_GROUPS = 120, 150, 6
LIMIT_S = 1200.0  # a machine that others use can be five times slower than the fastest


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The JSON of the last line of stdout."""
        assert self.code == 0, self.err
        record: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return record

    @property
    def complaint(self) -> str:
        """The last line of stderr of a command that a user's mistake stopped; nothing is on stdout."""
        assert self.code == 2, (self.code, self.err)
        assert self.out == ""
        return self.err.splitlines()[-1]


class World:
    """A folder in which commands are typed, with an encoder, two tables and a config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoder = build_tiny_encoder(folder / "encoder", dropout=0.1)
        pq.write_table(pa.table(a_catalog()), folder / "catalog.parquet")
        self.write_interactions("interactions")
        (folder / "tiny.yaml").write_text(yaml.safe_dump(a_config(self.encoder)), encoding="utf-8")

    def write_interactions(self, name: str, num_rows: int | None = None) -> Path:
        """Write the interactions, or the first of them."""
        path = self.folder / f"{name}.parquet"
        pq.write_table(pa.table(some_interactions()).slice(0, num_rows), path)
        return path

    def write_grown_tables(self, num_new: int) -> None:
        """Both tables with so many items more, three of which every user has bought."""
        draw = np.random.default_rng(8)
        catalog, interactions = a_catalog(), some_interactions()
        new = [f"item-{item:03d}" for item in range(NUM_ITEMS, NUM_ITEMS + num_new)]
        texts = [f"{title} {SYLLABLES[place]}" for place, title in enumerate(catalog["title"][:num_new])]
        table = {"sku": [*catalog["sku"], *new], "title": [*catalog["title"], *texts]}
        pq.write_table(pa.table(table), self.folder / "grown-catalog.parquet")
        pairs = [(f"user-{user:03d}", str(one)) for user in range(NUM_USERS) for one in draw.choice(new, 3, False)]
        bought = {
            "buyer": interactions["buyer"] + [user for user, _ in pairs],
            "sku": interactions["sku"] + [item for _, item in pairs],
        }
        pq.write_table(pa.table(bought), self.folder / "grown.parquet")

    def start(self, verb: str, *arguments: str, config: str = "tiny.yaml") -> subprocess.Popen[str]:
        """Start `python -m beeray.<verb> --config <config> <arguments>` in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", f"beeray.{verb}", "--config", config, *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PWD": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, verb: str, *arguments: str, config: str = "tiny.yaml", limit_s: float = LIMIT_S) -> Done:
        """Run a command to its end; what it started ends with it, in time too late as well."""
        return self.finish(self.start(verb, *arguments, config=config), limit_s)

    def finish(self, process: subprocess.Popen[str], limit_s: float = LIMIT_S) -> Done:
        """Wait for a started command."""
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.kill(process)
            raise
        return Done(process.returncode, out, err)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL a command, then what of its descendants is left."""
        driver = psutil.Process(process.pid)
        descendants = driver.children(recursive=True)
        end([driver])
        end(descendants)
        process.communicate()

    def wait_until(self, condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Poll until a condition holds; fails when the command ends before it, or the time is over."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert process.poll() is None, f"the command ended with {process.returncode}: {process.communicate()[1]}"
            if time.monotonic() > deadline:
                self.kill(process)
                raise TimeoutError("the condition did not come true in time")
            time.sleep(0.02)

    def path(self, name: str) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / name

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        """The trained weights of a run."""
        return load_file(self.path(name) / "model" / "model.safetensors")

    def distance(self, one: str, other: str) -> float:
        """Largest difference of any trained weight of two runs."""
        left, right = self.parameters(one), self.parameters(other)
        assert left.keys() == right.keys() and left
        return max(float((left[name] - right[name]).abs().max()) for name in left)

    def steps(self, name: str) -> list[int]:
        """The step of every whole line of a run's steps.jsonl, as they were written."""
        path = self.path(name) / "steps.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        return [int(json.loads(line)["step"]) for line in lines]


def a_catalog() -> dict[str, list[str]]:
    """120 items in 6 groups; all but one of an item's words are of its group's twenty; some texts exceed 16 tokens."""
    draw = np.random.default_rng(1)
    texts = []
    for item in range(NUM_ITEMS):
        words = np.array(SYLLABLES)[20 * (item % NUM_GROUPS) :][:20]
        own = draw.choice(words, int(draw.integers(3, 19)), replace=False)
        texts.append(" ".join([*own, str(draw.choice(SYLLABLES))]))
    return {"sku": [f"item-{item:03d}" for item in range(NUM_ITEMS)], "title": texts}


def some_interactions() -> dict[str, list[str]]:
    """150 users with 10 items each, eight of one group."""
    draw = np.random.default_rng(2)
    pairs = []
    for user in range(NUM_USERS):
        group = np.arange(user % NUM_GROUPS, NUM_ITEMS, NUM_GROUPS)
        chosen = {*draw.choice(group, 8, replace=False).tolist(), *draw.integers(0, NUM_ITEMS, 2).tolist()}
        pairs += [(f"user-{user:03d}", f"item-{item:03d}") for item in sorted(chosen)]
    return {"buyer": [user for user, _ in pairs], "sku": [item for _, item in pairs]}


def a_config(encoder: Path) -> dict[str, Any]:
    """Two workers, ZeRO-1, dropout on, three epochs of five steps."""
    return {
        "data": {
            "source": "tables",
            "catalog": {"path": "catalog.parquet", "item_id": "sku", "template": "{title}"},
            "interactions": {"path": "interactions.parquet", "user_id": "buyer", "item_id": "sku"},
            "store": "stores/shared",
            "num_buckets": 2,
        },
        "split": {"kind": "item", "validation": 12, "test": 12},
        "encoder": {"name": str(encoder), "max_seq_length": 16, "dropout": 0.1},
        "train": {
            "lr": 2e-3,
            "epsilon": 1e-5,  # keys' biases have no gradient but rounding, which a smaller epsilon would blow up
            "optimizer": "adamw",
            "scheduler": "cosine",
            "epochs": 3,
            "batch_size": 30,
            "max_output": 60,
            "token_budget": 256,
        },
        "evaluate": {"recall_at": [5], "ndcg_at": [10], "num_bootstrap": 50},
        "cluster": {"num_workers": 2, "threads_per_worker": 1, "object_store_mib": 100},
        "deepspeed": {"stage": 1},
        "tracking": {"log_model": False},
        "report": {"enabled": False},  # it takes seconds of every command; the run `first` has it
    }


def end(processes: list[psutil.Process]) -> None:
    """Kill those of the processes that still run, and wait until they are gone."""
    for process in processes:
        try:
            process.kill()  # psutil refuses when the pid has gone to another process meanwhile
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=60)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One folder for all runs of the session; the store is prepared by the first."""
    folder = tmp_path_factory.mktemp("verbs")
    yield World(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def trained(world: World) -> Done:
    """The run `first`: to its end, without interruption, with the model logged to MLflow and its report."""
    done = world.run("train", "name=first", "tracking.log_model=true", "report.enabled=true")
    assert done.code == 0, done.err
    return done
