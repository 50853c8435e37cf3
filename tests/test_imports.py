"""The arrow of imports points one way, and `core` needs nothing of the cluster.

core     knows beeray.core and beeray.errors; torch, numpy, scipy, sentence-transformers and what that stands on
data     knows no encoder, no runtime
runtime  knows no file formats
verbs    know everybody; nobody knows the verbs
commands know the config and the console: what a verb needs is imported when the config is valid
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_process import run_python
from tiny_encoder import build_tiny_encoder

PACKAGE = Path(__file__).resolve().parents[1] / "beeray"
WITH_CONFIG = (
    *("prepare", "train", "evaluate", "baselines", "protocol", "tune", "embed", "index", "nightly", "demo"),
    *("report", "doctor"),
)
WITHOUT_CONFIG = ("compare",)
COMMANDS = [f"beeray.{verb}" for verb in WITH_CONFIG + WITHOUT_CONFIG]
VERBS = [*COMMANDS, "beeray.verbs"]
CONFIG_ROOMS = ["beeray.chatter", "beeray.config", "beeray.console", "beeray.errors", "beeray.stream", *COMMANDS]
"""Imported before a config is known to be valid, so they import nothing that takes seconds."""
SLOW_LIBRARIES = ["torch", "ray", "mlflow", "deepspeed", "transformers", "sentence_transformers", "pyarrow", "numpy"]
CORE_LIBRARIES = {"torch", "numpy", "scipy", "sentence_transformers", "transformers"}
ENCODER_LIBRARIES = ["torch", "transformers", "sentence_transformers"]
FILE_FORMATS = ["pyarrow.parquet", "pyarrow.csv", "pyarrow.feather", "pyarrow.dataset", "pyarrow.orc", "pyarrow.json"]


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str, package: str) -> set[str]:
    """Dotted names that a source imports anywhere, in functions and under TYPE_CHECKING too.

    `from a.b import c` gives `a.b` and `a.b.c`, since c may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def forbidden(module: str, names: set[str]) -> list[str]:
    """Those of a module's imports that go against the arrow."""
    refused: list[str] = [] if any(within(module, verb) for verb in VERBS) else list(VERBS)
    if any(within(module, room) for room in CONFIG_ROOMS):
        refused += [*SLOW_LIBRARIES, "beeray.core", "beeray.data", "beeray.runtime", "beeray.verbs"]
    if within(module, "beeray.data"):
        refused += ["beeray.core", "beeray.runtime", *ENCODER_LIBRARIES]
    if within(module, "beeray.runtime"):
        refused += FILE_FORMATS
    found = {name for name in names if any(within(name, other) for other in refused)}
    if within(module, "beeray.core"):
        found |= {name for name in names if not allowed_in_core(name)}
    return sorted(found)


def allowed_in_core(name: str) -> bool:
    root = name.split(".")[0]
    if root == "beeray":
        return within(name, "beeray.core") or within(name, "beeray.errors")
    return root in CORE_LIBRARIES or root in sys.stdlib_module_names


def modules() -> Iterator[tuple[str, set[str]]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        name = module_name(file)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        yield name, imported_names(file.read_text(), package)


def test_every_import_follows_the_arrow() -> None:
    walked = dict(modules())
    assert {"beeray.core.step", "beeray.data.store", "beeray.runtime.worker", "beeray.config"} <= walked.keys()
    assert {name: forbidden(name, names) for name, names in walked.items() if forbidden(name, names)} == {}


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("beeray.core.step", "import ray", ["ray"]),
        ("beeray.core.step", "def late():\n    import deepspeed.comm as comm", ["deepspeed.comm"]),
        ("beeray.core.step", "import pyarrow as pa", ["pyarrow"]),
        ("beeray.core.step", "from beeray.config import Config", ["beeray.config", "beeray.config.Config"]),
        ("beeray.core.step", "from ..data import store", ["beeray.data", "beeray.data.store"]),
        ("beeray.core.step", "from beeray import config", ["beeray", "beeray.config"]),
        ("beeray.data.store", "from beeray.core.batching import Tokens", ["beeray.core.batching"]),
        ("beeray.data.store", "import sentence_transformers", ["sentence_transformers"]),
        ("beeray.data.store", "from ..runtime import feed", ["beeray.runtime"]),
        ("beeray.runtime.feed", "import pyarrow.parquet as pq", ["pyarrow.parquet"]),
        ("beeray.runtime.feed", "from pyarrow import csv", ["pyarrow.csv"]),
        ("beeray.runtime.feed", "if TYPE_CHECKING:\n    from beeray import train", ["beeray.train"]),
        ("beeray.config", "import beeray.demo", ["beeray.demo"]),
        ("beeray.console", "from .evaluate import run_evaluate", ["beeray.evaluate"]),
        ("beeray.runtime.feed", "from beeray.verbs.train import execute", ["beeray.verbs.train"]),
        ("beeray.config.loading", "import torch", ["torch"]),
        ("beeray.train", "def late():\n    import ray.data", ["ray.data"]),
        ("beeray.train", "from beeray.verbs.train import execute", ["beeray.verbs.train"]),
    ],
)
def test_an_import_against_the_arrow_is_found(module: str, source: str, found: list[str]) -> None:
    caught = forbidden(module, imported_names(source, module.rpartition(".")[0]))
    assert set(found) <= set(caught)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("beeray.core.step", "import math\nimport torch.distributed as dist\nfrom beeray.core.gather import rank"),
        ("beeray.core.encoder", "from sentence_transformers import SentenceTransformer\nimport beeray.errors"),
        ("beeray.data.store", "import pyarrow.parquet as pq\nimport ray.data\nfrom beeray.config import Config"),
        ("beeray.runtime.feed", "import pyarrow as pa\nfrom beeray.core.user_items import UserItems\nimport deepspeed"),
        ("beeray.verbs.train", "from beeray.runtime.worker import run_rank\nfrom beeray.verbs.prepare import prepare"),
        ("beeray.trainer", "import beeray.embedding"),
    ],
)
def test_an_import_along_the_arrow_is_let_through(module: str, source: str) -> None:
    assert forbidden(module, imported_names(source, module.rpartition(".")[0])) == []


@pytest.mark.parametrize(
    "verb",
    [path.stem for path in sorted((PACKAGE / "verbs").glob("[a-z]*.py")) if path.stem not in WITHOUT_CONFIG],
)
def test_a_mistake_in_the_config_is_told_before_anything_slow_is_imported(verb: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("data: {source: shop}\ntrain: {epoch: 3}\n")
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['{verb}', '--config', 'wrong.yaml']\n"
        f"try:\n    runpy.run_module('beeray.{verb}', run_name='__main__')\n"
        "except SystemExit as end:\n    print('exit', end.code)\n"
        f"print('loaded', sorted({SLOW_LIBRARIES!r} & sys.modules.keys()))\n"
    ).replace(f"{SLOW_LIBRARIES!r} &", f"set({SLOW_LIBRARIES!r}) &")
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert done.stdout.splitlines() == ["exit 2", "loaded []"], done.stderr
    assert "unknown key 'train.epoch'; did you mean 'train.epochs'?" in done.stderr


STEP_WITHOUT_THE_CLUSTER = """
import importlib, importlib.util, pkgutil, sys

BLOCKED = {"ray", "deepspeed", "mlflow", "pydantic"}
find_spec = importlib.util.find_spec
# who only asks whether a package is there hears that it is not, as on a machine without it
importlib.util.find_spec = lambda name, package=None: None if name in BLOCKED else find_spec(name, package)

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
        return None

sys.meta_path.insert(0, Blocker())
for name in sorted(BLOCKED):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        print("blocked", name)

import numpy as np
import torch
import beeray.core
for module in pkgutil.iter_modules(beeray.core.__path__, "beeray.core."):
    importlib.import_module(module.name)
from beeray.core.encoder import Encoder, load_encoder
from beeray.core.optimizers import build_optimizer
from beeray.core.step import StepSettings, TrainingStep
from beeray.core.user_items import UserItems

torch.set_num_threads(1)

class Tokens:
    pad_token_id = 0
    def lengths(self, max_seq_length):
        return np.full(12, 4, dtype=np.int32)
    def gather(self, items, max_seq_length):
        ids = np.stack([np.array([2, 10 + item, 40 + item, 3]) for item in items])
        return ids.astype(np.int64).ravel(), np.full(len(items), 4, dtype=np.int32)

encoder = Encoder(load_encoder(sys.argv[1], max_seq_length=16)).train()
optimizer = build_optimizer(encoder, "adamw", lr=1e-3, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.01)
step = TrainingStep(encoder, Tokens(), np.arange(12, dtype=np.int32), StepSettings(max_output=8, token_budget=12))
users = UserItems(np.array([0, 3, 6]), np.array([0, 1, 2, 5, 6, 7], dtype=np.int32))
before = encoder.model[0].model.embeddings.word_embeddings.weight.detach().clone()
result = step.loss(users, epoch=0, step=0)
result.loss.backward()
optimizer.step()
moved = (encoder.model[0].model.embeddings.word_embeddings.weight - before).abs().max().item()
print("items", result.num_items, "finite", bool(torch.isfinite(result.loss)), "moved", moved > 1e-4)
print("loaded", sorted(BLOCKED & sys.modules.keys()))
"""


def test_a_whole_training_step_runs_where_ray_deepspeed_mlflow_and_pydantic_cannot_be_imported(tmp_path: Path) -> None:
    encoder = build_tiny_encoder(tmp_path / "encoder")
    done = subprocess.run(
        [sys.executable, "-c", STEP_WITHOUT_THE_CLUSTER, str(encoder)],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "blocked deepspeed",
        "blocked mlflow",
        "blocked pydantic",
        "blocked ray",
        "items 8 finite True moved True",
        "loaded []",
    ]


def test_workers_import_deepspeed_without_mlflow(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom beeray.runtime.engine import import_deepspeed\nmodule = import_deepspeed()\n"
        "print(module.__name__, 'mlflow' in sys.modules)\n"
        "import mlflow\nprint(mlflow.__name__, import_deepspeed() is module)"
    )
    done = run_python("-c", program, cwd=tmp_path, limit_s=300, PYTHONPATH=str(PACKAGE.parent))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == ["deepspeed False", "mlflow True"]


def test_scores_on_their_way_to_the_driver_open_without_torch_or_ray() -> None:
    """The actor between workers and driver opens them; with torch it took seconds and a quarter of a gigabyte."""
    program = "import sys, beeray.runtime.split_scores; print(sorted({'torch', 'ray', 'scipy'} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("verb", ["train", "evaluate", "baselines", "compare", "report", "prepare"])
def test_a_verb_is_imported_without_torch(verb: str) -> None:
    """Its driver may never need it: workers open the encoder, and an earlier command made the tokens."""
    program = f"import sys, beeray.verbs.{verb}; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout == "False\n", done.stderr
