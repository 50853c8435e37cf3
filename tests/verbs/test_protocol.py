"""The protocols on real data at a smoke size: time split on MovieLens small, zero-shot from GoodBooks to MovieLens."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from own_process import run_python
from tiny_encoder import build_tiny_encoder

from beeray.config import CONFIGS_DIR, Baseline, load_config
from beeray.data.store import Store
from beeray.errors import ConfigError
from beeray.verbs.baselines import digest
from beeray.verbs.protocol import source_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TIME, ZERO_SHOT = "time_split-smoke", "zero_shot-smoke"
FEW = ("train.max_steps=2", "train.max_output=64", "encoder.max_seq_length=16", "train.batch_size=16")
QUICK = ("baselines.elsa.epochs=1", "baselines.frozen_head={steps: 2, max_output: 64, units: 4}")
SMALL = "cluster={num_workers: 1, object_store_mib: 100}"
WITHOUT_TEXT = ["popularity", "item_knn", "ease", "elsa"]
QUICKER = "baselines.which=[popularity,item_knn,ease,elsa]"
"""Those of the encoder need workers of their own, which take a while to start."""


class Laboratory:
    """A folder in which protocols are typed."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.encoder = build_tiny_encoder(folder / "encoder", dropout=0.0)

    def type_command(self, verb: str, config: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        return run_python(
            *("-m", f"beeray.{verb}", "--config", f"protocols/{config}"),
            *(f"encoder.name={self.encoder}", f"data.path={self.data}/ml-latest-small", *FEW, *QUICK, SMALL),
            *overrides,
            cwd=self.folder,
            limit_s=1200,
            OMP_NUM_THREADS="1",
        )

    def record(self, verb: str, config: str, *overrides: str) -> dict[str, Any]:
        done = self.type_command(verb, config, *overrides)
        assert done.returncode == 0, done.stderr
        record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return record

    def run_of(self, config: str) -> Path:
        return self.folder / "runs" / config


@pytest.fixture(scope="module")
def laboratory(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("protocols"), real_data)


@pytest.fixture(scope="module")
def time_split(laboratory: Laboratory) -> dict[str, Any]:
    return laboratory.record("protocol", TIME, QUICKER)


def tables(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {table["ranking"]: table for table in record["comparison"]["tables"]}


def test_a_time_split_is_trained_scored_and_compared_strictly_first(
    laboratory: Laboratory, time_split: dict[str, Any]
) -> None:
    assert (time_split["protocol"], time_split["trained_on"]) == ("time_split", TIME)
    assert list(tables(time_split)) == ["catalog", "filtered"]
    assert [one["name"] for one in time_split["comparison"]["systems"]] == [
        TIME,
        *(f"baseline-{name}" for name in WITHOUT_TEXT),
    ]
    assert time_split["comparison"]["hypotheses"] == 4 * 2 * 3
    scores = pq.read_table(laboratory.run_of(TIME) / "scores.parquet").to_pandas().set_index("user_index")
    own = tables(time_split)["catalog"]["metrics"]["ndcg@100"][0]
    chosen = scores[(scores["split"] == "test") & (scores["ranking"] == "catalog")]
    assert own["mean"] == pytest.approx(chosen["ndcg@100"].mean())
    assert own["low"] <= own["mean"] <= own["high"] and 0 < own["mean"] < 1


def test_filtered_drops_what_is_not_of_the_window_from_the_first_of_the_catalog_and_flatters(
    laboratory: Laboratory, time_split: dict[str, Any]
) -> None:
    store = Store.open(str(laboratory.folder / "stores" / TIME))
    within = set()
    for path in store.user_paths():
        for row in pq.read_table(path, columns=["item_indices", "splits"]).to_pylist():
            within |= {item for item, label in zip(row["item_indices"], row["splits"], strict=True) if label == 2}
    assert store.items_within("test").tolist() == sorted(within)
    metrics = json.loads((laboratory.run_of(TIME) / "metrics.json").read_text())["metrics"]["test"]
    assert (metrics["catalog"]["candidates"], metrics["filtered"]["candidates"]) == (6169, 6169)
    assert metrics["filtered"]["kept"] == len(within) and "kept" not in metrics["catalog"]
    for folder in (".", *(f"evaluations/baseline-{name}" for name in WITHOUT_TEXT)):
        scores = pq.read_table(laboratory.run_of(TIME) / folder / "scores.parquet").to_pandas()
        scores = scores[scores["split"] == "test"].set_index(["user_index", "ranking"])["ndcg@100"].unstack()
        # targets are of the window, so what is dropped before one is none: it stays in the list and only moves up
        assert (scores["filtered"] >= scores["catalog"] - 1e-12).all()
        assert scores["filtered"].mean() > scores["catalog"].mean()
        # and one behind the first 100 is not found, so a user who has nothing there has nothing here
        assert ((scores["filtered"] > 0) == (scores["catalog"] > 0)).all()


def test_baselines_are_real_competitors_and_not_fitted_twice(
    laboratory: Laboratory, time_split: dict[str, Any]
) -> None:
    ndcg = {row["system"]: row["mean"] for row in tables(time_split)["catalog"]["metrics"]["ndcg@100"]}
    assert min(ndcg[f"baseline-{name}"] for name in ("popularity", "item_knn", "ease")) > 0.05  # chance: 0.005
    assert len(set(ndcg.values())) == len(ndcg)
    store = Store.open(str(laboratory.folder / "stores" / TIME))
    assert store.training_interactions(False).nnz == store.meta.interactions["train"]
    folder = laboratory.run_of(TIME) / "evaluations" / "baseline-popularity"
    record = json.loads((folder / "metrics.json").read_text())
    assert record["label"] == "baseline-popularity" and record["store_fingerprint"] == store.meta.fingerprint
    written = (folder / "scores.parquet").stat().st_mtime_ns
    again = laboratory.record("baselines", TIME, QUICKER)
    assert again["fitted"] == [] and (folder / "scores.parquet").stat().st_mtime_ns == written
    assert again["baselines"]["popularity"] == record
    assert again["comparison"] == time_split["comparison"]


@pytest.mark.long
def test_ease_is_left_out_where_it_does_not_fit_and_refused_where_it_was_asked_for(
    laboratory: Laboratory, time_split: dict[str, Any]
) -> None:
    done = laboratory.type_command("baselines", TIME, QUICKER, "baselines.ease.max_items=10")
    assert done.returncode == 0 and "ease is left out: baselines.ease.max_items is 10: " in done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert list(record["baselines"]) == [name for name in WITHOUT_TEXT if name != "ease"]
    done = laboratory.type_command("baselines", TIME, "--only", "ease", "baselines.ease.max_items=10")
    assert (done.returncode, done.stdout) == (2, "") and "max_items is 10: " in done.stderr.splitlines()[-1]


def test_other_settings_another_store_or_seed_are_fitted_again() -> None:
    def of(*overrides: str, name: Baseline = "item_knn", fingerprint: str = "aaaa") -> str:
        return digest(name, load_config(f"protocols/{TIME}", overrides), fingerprint)

    assert of() == of("baselines.ease.l2=7", "train.lr=1", "name=other", "evaluate.users_per_block=7")
    changes = ["baselines.item_knn.neighbours=3", "seed=7", "evaluate.ndcg_at=[10]", "train.with_validation=true"]
    assert len({of(), of(fingerprint="bbbb"), *(of(change) for change in changes)}) == 6
    assert of("encoder.max_seq_length=16") == of()
    assert of("encoder.max_seq_length=16", name="untouched") != of(name="untouched")


@pytest.fixture(scope="module")
def source(laboratory: Laboratory) -> str:
    overrides = [f"encoder.name={laboratory.encoder}", f"data.path={laboratory.data}/goodbooks-sample", *FEW, SMALL]
    return f"protocol.overrides={json.dumps(overrides)}"


def test_zero_shot_scores_an_encoder_where_it_never_trained(laboratory: Laboratory, source: str) -> None:
    record = laboratory.record("protocol", ZERO_SHOT, source, "baselines.which=[popularity,frozen_head]")
    assert (record["protocol"], record["trained_on"]) == ("zero_shot", "cold_start-smoke")
    names = [one["name"] for one in record["comparison"]["systems"]]
    assert names[0].startswith("model-") and names[1:] == ["baseline-popularity", "baseline-frozen_head"]
    assert record["model"] == str(laboratory.run_of("cold_start-smoke") / "model")
    rows = tables(record)["held_out"]["metrics"]["ndcg@100"]
    assert len({row["mean"] for row in rows}) == 3 and min(row["mean"] for row in rows) > 0
    # popularity cannot rank new films: of t targets a random order has 20 t / candidates among its first 20
    popularity = record["baselines"]["popularity"]
    assert popularity["scores_new_items"] is False
    candidates = popularity["metrics"]["test"]["held_out"]["candidates"]
    scores = pq.read_table(popularity["scores"]).to_pandas()
    assert scores[scores["ranking"] == "held_out"]["recall@20"].min() == pytest.approx(20 / candidates)
    assert scores[scores["ranking"] == "catalog"]["ndcg@100"].max() == 0.0


@pytest.mark.long
def test_zero_shot_is_compared_with_the_encoder_before_training(laboratory: Laboratory, source: str) -> None:
    record = laboratory.record("protocol", ZERO_SHOT, source, "baselines.which=[untouched,frozen_head]")
    names = [one["name"] for one in record["comparison"]["systems"]]
    assert names[1:] == ["baseline-untouched", "baseline-frozen_head"]
    assert len({row["mean"] for row in tables(record)["held_out"]["metrics"]["ndcg@100"]}) == 3


def test_a_baseline_that_there_is_not_is_refused_in_one_line(laboratory: Laboratory) -> None:
    done = laboratory.type_command("baselines", TIME, "--only", "eases")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "beeray baselines: --only 'eases': no such baseline; there are: popularity, item_knn, ease, elsa, untouched, "
        "frozen_head"
    ]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("protocol.train_on=protocols/time_split-smoke", "its run has the name of this one, 'time_split-smoke'"),
        ("protocol.train_on=protocols/nowhere", "'protocols/nowhere': no such file"),
        ("protocol.overrides=['seed=2']", "protocol.train_on, which is not set"),
        ("protocol={train_on: protocols/cold_start-smoke, overrides: [seeds=2]}", "did you mean 'seed'"),
        (
            "protocol={train_on: protocols/cold_start-smoke, overrides: [data.store=stores/time_split-smoke]}",
            "its store is this config's",
        ),
    ],
)
def test_a_source_that_does_not_fit_is_refused(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        source_config(load_config(f"protocols/{TIME}", [override]))


@pytest.mark.parametrize("path", sorted((CONFIGS_DIR / "protocols").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_protocol_is_a_valid_config_named_after_its_file(path: Path) -> None:
    config = load_config(f"protocols/{path.stem}")
    assert config.name == path.stem
    assert (source_config(config) is not None) == (path.stem in ("zero_shot", ZERO_SHOT))
