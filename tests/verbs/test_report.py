"""The report that training leaves, and the command that writes it again from the folder alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from own_process import run_python
from sentence_transformers import SentenceTransformer

from beeray.config import load_config
from beeray.data.store import Store
from beeray.runtime.tracking import tracking_uri

if TYPE_CHECKING:
    from conftest import Done, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WITHOUT_RAY = """
import sys
from beeray.report import main
code = main(sys.argv[1:])
print("loaded", sorted({"ray", "torch", "deepspeed", "mlflow"} & sys.modules.keys()))
sys.exit(code)
"""


def data_of(page: Path) -> dict[str, Any]:
    """The data that a report's scripts read."""
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    (text,) = re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.DOTALL)
    record: dict[str, Any] = json.loads(text)
    return record


def test_training_leaves_a_report_of_its_metrics_steps_and_items(world: World, trained: Done) -> None:
    assert trained.record["report"] == str(world.path("first") / "report.html")
    data = data_of(world.path("first") / "report.html")
    row = next(row for row in data["rows"] if row["name"] == "Trained" and row["ranking"] == "held_out")
    measured = trained.record["metrics"]["test"]["held_out"]
    assert row["metrics"]["ndcg@10"] == [measured["ndcg@10"][name] for name in ("mean", "low", "high")]
    assert row["shown"]["coverage"] == measured["coverage@5"] > 0
    assert len(data["curves"]["loss"]) == trained.record["training"]["steps"]
    store = Store.open(str(world.folder / "stores" / "shared"))
    items = data["explorer"]["items"]
    assert items["id"] == store.item_ids().to_pylist()
    new = [users == 0 for users in items["training_users"]]
    assert new == (store.item_labels() != 0).tolist() and sum(new) == 24


@pytest.mark.parametrize(("name", "model"), [("original", "encoder"), ("trained", "runs/first/model")])
def test_what_workers_kept_is_what_each_encoder_makes_of_the_items(
    world: World, trained: Done, name: str, model: str
) -> None:
    texts = data_of(world.path("first") / "report.html")["explorer"]["items"]["text"]
    encoder = SentenceTransformer(str(world.folder / model), device="cpu")
    encoder.max_seq_length = 16
    expected = encoder.encode(texts, normalize_embeddings=True)
    kept = np.load(world.path("first") / "report" / f"{name}.npy").astype(np.float32)
    np.testing.assert_allclose(kept, expected, atol=2e-3)  # half precision
    other = np.load(world.path("first") / "report" / f"{'trained' if name == 'original' else 'original'}.npy")
    assert np.abs(other.astype(np.float32) - expected).max() > 0.01


def test_mlflow_has_the_report(world: World, trained: Done) -> None:
    uri = tracking_uri(load_config(str(world.folder / "tiny.yaml"), [f"runs_dir={world.folder / 'runs'}"]))
    artifacts = mlflow.MlflowClient(uri).list_artifacts(trained.record["mlflow_run_id"])
    assert "report.html" in [artifact.path for artifact in artifacts]


def test_a_folder_that_was_moved_is_reported_anew_without_ray_torch_or_store(
    world: World, trained: Done, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "42"
    shutil.copytree(world.path("first"), moved, ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    done = run_python("-c", WITHOUT_RAY, str(moved), cwd=tmp_path, limit_s=600)
    assert done.returncode == 0, done.stderr
    record, loaded = done.stdout.splitlines()
    assert loaded == "loaded []"
    assert json.loads(record)["report"] == str(moved / "report.html")
    again, first = data_of(moved / "report.html"), data_of(world.path("first") / "report.html")
    assert again["explorer"]["items"] == first["explorer"]["items"]
    assert again["curves"] == first["curves"]


def test_a_run_that_scores_nothing_has_both_encoders_in_its_explorer(world: World) -> None:
    done = world.run(
        *("train", "name=unscored", "evaluate.splits=[]", "report.enabled=true", "train.max_steps=2"),
        "cluster.num_workers=1",
    )
    assert done.record["metrics"] == {}
    explorer = data_of(world.path("unscored") / "report.html")["explorer"]
    assert sorted(explorer["encoders"]) == ["original", "trained"]
    assert explorer["encoders"]["original"]["cosines"] != explorer["encoders"]["trained"]["cosines"]
