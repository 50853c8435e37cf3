"""The commands that are disturbed, and what each of them leaves: everything that must not depend on what happened."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from nodes import Cluster, end
from numpy.typing import NDArray
from s3_server import S3Server
from safetensors.torch import load_file
from tiny_encoder import SYLLABLES, build_tiny_encoder

VERBS = ("prepare", "train", "tune", "embed")
LIMIT_S = 1200.0
NUM_ITEMS, NUM_USERS, NUM_EMBEDDED = 120, 2000, 2000
TOLERANCE = 1e-6
"""Of trained weights, losses and metrics; a resumed run's are within 1e-7."""
Outcome = dict[str, str | NDArray[np.float64]]
"""Names of things, and what they hold, as far as it must always be the same."""


class Typed:
    """A command that was typed.

    Attributes:
        name: of its run.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self._process, self._log = name, process, log

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self._process.poll() is not None

    def wait(self) -> tuple[int, str]:
        """Its exit code and the last line it said; TimeoutExpired when it hangs."""
        code = self._process.wait(timeout=LIMIT_S)
        return code, (self.said() or [""])[-1]

    def said(self) -> list[str]:
        """The lines that it said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()

    def kill(self) -> None:
        """SIGKILL for the command alone."""
        self._process.kill()

    def end(self) -> None:
        """Kill whatever of it is left."""
        end([self._process])


class Workplace:
    """A folder with an encoder, tables and a config, in which commands are typed.

    Args:
        folder: on a disk that all nodes see.
        server: the bucket itself.
        storage_url: where commands reach it.
        cluster: what they join.
    """

    def __init__(self, folder: Path, server: S3Server, storage_url: str, cluster: Cluster) -> None:
        self.folder, self.server, self.storage_url, self.cluster = folder, server, storage_url, cluster
        words = len(SYLLABLES)
        items = {
            f"item-{item}": [SYLLABLES[(7 * item + step) % words] for step in range(6)] for item in range(NUM_ITEMS)
        }
        self._write("catalog", sku=list(items), title=[" ".join(text) for text in items.values()])
        bought = [(user, (user + 7 * step) % NUM_ITEMS) for user in range(NUM_USERS) for step in range(10)]
        self._write("bought", buyer=[f"user-{user}" for user, _ in bought], sku=[f"item-{item}" for _, item in bought])
        many = {f"item-{row}": f"{SYLLABLES[row % words]} {SYLLABLES[row // words]}" for row in range(NUM_EMBEDDED)}
        self._write("many", sku=list(many), title=list(many.values()))
        (folder / "tiny.yaml").write_text(yaml.safe_dump(self._config()), encoding="utf-8")
        typed = self.type("prepare", "shared")
        code, said = typed.wait()
        if code:
            raise RuntimeError(f"prepare ends with {code}: {said}")

    def _write(self, name: str, **columns: list[str]) -> None:
        pq.write_table(pa.table(columns), self.folder / f"{name}.parquet")

    def _config(self) -> dict[str, object]:
        return {
            "runs_dir": str(self.folder / "runs"),
            "storage": {"endpoint_url": self.storage_url},
            "data": {
                "source": "tables",
                "catalog": {"path": str(self.folder / "catalog.parquet"), "item_id": "sku", "template": "{title}"},
                "interactions": {"path": str(self.folder / "bought.parquet"), "user_id": "buyer", "item_id": "sku"},
                "store": self.server.path("stores", "shared"),
                "num_buckets": 4,
            },
            "split": {"kind": "item", "validation": 12, "test": 12},
            "encoder": {
                "name": str(build_tiny_encoder(self.folder / "encoder", dropout=0.1)),
                "max_seq_length": 16,
                "dropout": 0.1,
            },
            "train": {
                "lr": 2e-3,
                "epsilon": 1e-5,
                "optimizer": "adamw",
                "epochs": 3,
                "max_steps": 40,
                "batch_size": 30,
                "max_output": 60,
                "checkpoint_every_steps": 4,
            },
            "evaluate": {
                "recall_at": [5],
                "ndcg_at": [10],
                "num_bootstrap": 50,
                "splits": ["test"],
                "full_catalog": False,
            },
            "cluster": {
                "address": self.cluster.address,
                "num_workers": 2,
                "cpus_per_worker": 1,
                "threads_per_worker": 1,
            },
            "tune": {"space": {"train.lr": {"choice": [5e-4, 2e-3]}}, "num_trials": 2, "max_concurrent": 1, "seed": 1},
            "embed": {
                "model": "untouched",
                "num_actors": 2,
                "rows_per_file": 200,
                "token_budget": 64,
                "threads_per_actor": 1,
            },
            "tracking": {"log_model": False},
            "report": {"enabled": False},
        }

    def type(self, verb: str, name: str, *overrides: str) -> Typed:
        """Start a command of a run's name."""
        own = {
            "prepare": (f"data.store={self.server.path('stores', name)}",),
            "train": (),
            "tune": ("cluster.num_workers=1", "train.max_steps=20", "train.epochs=1"),
            "embed": (
                f"data.catalog.path={self.folder / 'many.parquet'}",
                f"embed.path={self.server.path('vectors', name)}",
            ),
        }[verb]
        environment = {key: value for key, value in self.cluster.environment.items() if key != "RAY_ADDRESS"}
        log = self.folder / f"{name}.log"
        with open(log, "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", f"beeray.{verb}", "--config", "tiny.yaml", f"name={name}", *own, *overrides],
                cwd=self.folder,
                env={**environment, "PWD": str(self.folder)},
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )
        return Typed(name, process, log)

    def outcome(self, verb: str, name: str) -> Outcome:
        """What a finished command left."""
        return {"prepare": self._store, "train": self._run, "tune": self._sweep, "embed": self._vectors}[verb](name)

    def _store(self, name: str) -> Outcome:
        start = f"stores/{name}/"
        keys = self.server.list_keys(start)
        return {key.removeprefix(start): hashlib.sha256(self.server.get(key)).hexdigest()[:16] for key in keys}

    def _vectors(self, name: str) -> Outcome:
        """Files of the one version, and whatever lies beside it."""
        start = f"vectors/{name}/"
        keys = [key.removeprefix(start) for key in self.server.list_keys(start)]
        (manifest_key,) = [key for key in keys if key.endswith("_manifest.json")]
        version, _, _ = manifest_key.rpartition("/")
        manifest = json.loads(self.server.get(start + manifest_key))
        files = {one["path"]: one["sha256"] for one in manifest["files"]}
        left = " ".join(key.replace(version, "VERSION") for key in keys)
        return {"keys": left, "counts": json.dumps(manifest["counts"]), **files}

    def _run(self, name: str) -> Outcome:
        run = self.folder / "runs" / name
        weights = load_file(run / "model" / "model.safetensors")
        lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
        losses = {one["step"]: one["loss"] for one in lines}  # of steps done twice the later line counts
        client = mlflow.MlflowClient(f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("beeray")
        assert experiment is not None
        tracked = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
        return {
            **{f"weight {key}": value.double().numpy() for key, value in weights.items()},
            "steps": " ".join(map(str, losses)),
            "losses": np.array(list(losses.values())),
            **numbers_of(json.loads((run / "metrics.json").read_text())["metrics"]),
            "runs in MLflow": " ".join(one.info.status for one in tracked),
            "checkpoints left": str((run / "checkpoints").exists()),
        }

    def _sweep(self, name: str) -> Outcome:
        with open(self.folder / "runs" / name / "trials.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        best = yaml.safe_load((self.folder / "runs" / name / "best.yaml").read_text())["train"]
        return {
            "trials": json.dumps([(row["trial"], row["status"], row["train.lr"], row["reason"]) for row in rows]),
            "metric": np.array([float(row["validation/ndcg@10"] or "nan") for row in rows]),
            "best": json.dumps(best),
        }


def numbers_of(tree: dict[str, Any], above: str = "") -> Outcome:
    """The numbers of a tree, by path."""
    found: Outcome = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= numbers_of(value, f"{above}{key}/")
        else:
            found[f"{above}{key}"] = np.array(value, dtype=np.float64) if isinstance(value, float) else str(value)
    return found


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """What two outcomes have not in common, a line each."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        one, other = expected.get(name), found.get(name)
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape:
            furthest = float(np.abs(one - other).max(initial=0.0))
            if not furthest <= TOLERANCE:
                lines.append(f"{name} differs by {furthest:.2g}")
        elif isinstance(one, np.ndarray) or isinstance(other, np.ndarray) or one != other:
            lines.append(f"{name}: {_shown(other)}, not {_shown(one)}")
    return lines


def _shown(value: str | NDArray[np.float64] | None) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else f"numbers of shape {value.shape}"
