"""Embedding texts on one GPU: tokens per second, and the share of the card's own bf16 matrix rate.

A BERT-shaped encoder of random weights (110M parameters) embeds texts of GoodBooks' lengths in length-sorted token
batches, with budgets from small to large, as the job's actors do. With `--job` the whole job runs, too (needs Ray):
a generated catalog → parquet. Prints a short table and writes the record.

    python benchmarks/gpu/embed.py [--job]                                       # on a GPU
    python benchmarks/gpu/embed.py --layers 2 --hidden 64 --texts 500 --dry      # anywhere
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from device import device_name, first_device, matrix_rate, peak_memory_gib, publish, versions, wait_for  # noqa: E402
from tiny_encoder import SPECIAL, SYLLABLES  # noqa: E402

from beeray.core.batching import FlatTokens  # noqa: E402
from beeray.core.embedding import embed_items  # noqa: E402
from beeray.core.encoder import Encoder, cast_to_bf16, load_encoder  # noqa: E402

RECORD = ROOT / "benchmarks" / "records" / "gpu_embed.json"
VOCABULARY = 30_522
MAX_TOKENS = 384
BUDGETS = (16_384, 65_536, 262_144)
PUBLIC_RECORD = 1.4e6
"""Tokens per second that have been published for one H200."""


def build_encoder(folder: Path, layers: int, hidden: int) -> Path:
    """A SentenceTransformer folder of random weights."""
    words = [*SPECIAL, *SYLLABLES, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        max_position_embeddings=512,
    )
    bare = folder / "bare"
    BertModel(config).save_pretrained(bare)
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}, do_lower_case=True).save_pretrained(bare)
    model = SentenceTransformer(
        modules=[Transformer(str(bare), max_seq_length=MAX_TOKENS), Pooling(hidden)], device="cpu"
    )
    model.save(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


def random_texts(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids with the lengths of GoodBooks' descriptions (mean 134, 99th percentile 181)."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.normal(134, 20, number), 16, 332).astype(np.int32)
    return generator.integers(5, VOCABULARY, int(lengths.sum())).astype(np.int32), lengths


def work_per_token(model: SentenceTransformer, mean_tokens: float) -> float:
    """Multiplications and additions of a token's forward pass: two a weight outside of embeddings, and attention."""
    network = model[0].model
    weights = sum(
        p.numel() for name, p in network.named_parameters() if "embeddings" not in name and "pooler" not in name
    )
    return 2.0 * weights + 4.0 * network.config.num_hidden_layers * network.config.hidden_size * mean_tokens


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"layers": 12, "hidden": 768, "texts": 100_000, "repeats": 3, "matrix": 8192}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--job", action="store_true", help="also the whole job, on Ray")
    parser.add_argument("--dry", action="store_true", help="write no record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-gpu-") as work:
        record = measure(Path(work), arguments)
    publish(record, RECORD, dry=arguments.dry)


def measure(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one device."""
    device = first_device()
    folder = build_encoder(work, arguments.layers, arguments.hidden)
    model = load_encoder(str(folder), max_seq_length=MAX_TOKENS, device=device)
    cast_to_bf16(model)
    encoder = Encoder(model).eval()
    ids, lengths = random_texts(arguments.texts)
    tokens, items = FlatTokens(ids, lengths, 0), np.arange(len(lengths), dtype=np.int32)
    rates: dict[str, list[float]] = {}
    for budget in BUDGETS:
        for _ in range(arguments.repeats + 1):
            wait_for(device)
            started = time.perf_counter()
            with torch.inference_mode():
                embed_items(encoder, tokens, items, max_seq_length=MAX_TOKENS, token_budget=budget, device=device).cpu()
            rates.setdefault(str(budget), []).append(float(lengths.sum()) / (time.perf_counter() - started))
    best = max(float(np.median(rate[1:])) for rate in rates.values())
    peak = matrix_rate(device, torch.bfloat16, arguments.matrix if device.type == "cuda" else 1024)
    return {
        "benchmark": "gpu_embed",
        "device": device_name(device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "texts": len(lengths),
        "mean_tokens": float(lengths.mean()),
        "tokens_per_s": best,
        "of_public_record": best / PUBLIC_RECORD,
        "matrix_rate": peak,
        "share_of_matrix_rate": best * work_per_token(model, float(lengths.mean())) / peak,
        "rates_by_token_budget": {budget: {"all": rate} for budget, rate in rates.items()},
        "job": whole_job(work, folder, arguments.texts, device) if arguments.job else {},
        "peak_memory_gib": peak_memory_gib(device),
        "versions": versions(),
        "arguments": vars(arguments),
    }


def whole_job(work: Path, encoder: Path, items: int, device: torch.device) -> dict[str, Any]:
    """`beeray.embed` over a generated catalog; what it said."""
    from beeray.data.generated_catalog import GeneratedCatalog

    GeneratedCatalog(items, seed=7).write(str(work / "catalog"))
    config = {
        "name": "gpu",
        "data": {"source": "tables", "catalog": {"path": str(work / "catalog"), "template": "{title}. {description}"}},
        "encoder": {"name": str(encoder), "max_seq_length": MAX_TOKENS},
        "embed": {"model": "untouched", "precision": "bf16"},
        "cluster": {"use_gpu": device.type == "cuda"},
    }
    (work / "gpu.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "beeray.embed", "--config", str(work / "gpu.yaml"), f"runs_dir={work / 'runs'}"]
    done = subprocess.run(
        [*command, f"embed.path={work / 'published'}"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    return {key: said[key] for key in ("rows", "encoded_tokens", "encoder_s", "steady_tokens_per_s", "seconds")}


if __name__ == "__main__":
    main()
