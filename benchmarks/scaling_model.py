"""Expected step time and efficiency on many GPUs, from a step's arithmetic and what crosses ranks.

    python benchmarks/scaling_model.py                      # the table of docs/scaling.md
    python benchmarks/scaling_model.py --mfu 0.3 --encoder minilm --users 4096

Nothing here is measured on GPUs: peaks and link rates are data sheets', the utilisation is assumed, and the
imbalance of ranks is what `deal_by_tokens` leaves on texts of GoodBooks' lengths, measured here in the same run.
Bytes are those that `beeray.core.traffic` tells and `tests/distributed` counts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beeray.core.batching import deal_by_tokens
from beeray.core.flops import EncoderFlops
from beeray.core.traffic import (
    embeddings_bytes,
    embeddings_gradient_bytes,
    indices_bytes,
    weights_bytes,
)

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "records" / "scaling_model.json"
DOC = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- table: benchmarks/scaling_model.py -->", "<!-- end of table -->"
GPUS_PER_NODE = 8
# quantiles of GoodBooks' 9,891 descriptions in MiniLM's tokens
QUANTILES = ([0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0], [61, 94, 105, 121, 133, 146, 165, 181, 332])


@dataclass(frozen=True)
class Model:
    """An encoder's size: layers, width, inner width, parameters."""

    layers: int
    dim: int
    inner: int
    num_parameters: int

    def flops(self) -> EncoderFlops:
        """Operations of a token and of a pair of tokens, as `count_flops` counts a BERT."""
        weights = 4 * self.dim**2 + 2 * self.dim * self.inner
        return EncoderFlops(2.0 * self.layers * weights, 4.0 * self.layers * self.dim)


ENCODERS = {"mpnet": Model(12, 768, 3072, 109_486_464), "minilm": Model(6, 384, 1536, 22_713_216)}


@dataclass(frozen=True)
class Inputs:
    """What the table is computed from.

    Attributes:
        peak_tflops: bf16, dense (data sheet).
        mfu: share of the peak that the encoder's products reach (assumed).
        vector_tflops: rate of the fp32 loss (data sheet).
        nvlink_gb_per_s, ethernet_gb_per_s: one way, of a GPU and of a node (data sheet).
        link_share: of those rates that collectives reach (assumed).
        nvlink_hop_us, ethernet_hop_us: latency of a hop of a ring (assumed).
        fixed_ms: of a step, whatever its size: launches, the optimizer's loop (assumed).
    """

    encoder: str = "mpnet"
    items: int = 10_000
    users: int = 1024
    items_per_user: int = 50
    recomputed: float = 0.0
    stage: int = 1
    peak_tflops: float = 989.0
    mfu: float = 0.40
    vector_tflops: float = 67.0
    nvlink_gb_per_s: float = 450.0
    ethernet_gb_per_s: float = 12.5
    link_share: float = 0.8
    nvlink_hop_us: float = 3.0
    ethernet_hop_us: float = 15.0
    fixed_ms: float = 5.0


def step_seconds(inputs: Inputs, world_size: int, link: str) -> dict[str, float]:
    """Seconds of the parts of a step, nothing overlapped, and the bytes a rank sends."""
    model = ENCODERS[inputs.encoder]
    lengths = np.interp(np.random.default_rng(0).random(inputs.items), *QUANTILES).astype(np.int32)
    shares = deal_by_tokens(lengths, world_size, 65_536)
    held = [lengths[shares.of_rank(rank)].astype(np.int64) for rank in range(world_size)]
    fullest = max(held, key=lambda one: int(one.sum()))
    flops = model.flops().of_step(int(fullest.sum()), int(np.square(fullest).sum()))
    encode_s = flops * (1 + inputs.recomputed / 3) / (inputs.peak_tflops * inputs.mfu * 1e12)
    users = -(-inputs.users // world_size)
    loss_s = 12.0 * users * inputs.items * model.dim / (inputs.vector_tflops * 0.5 * 1e12)
    sent = {
        "indices": indices_bytes(min(inputs.items, users * inputs.items_per_user), world_size),
        "embeddings": embeddings_bytes(shares.counts, model.dim),
        "embeddings_gradient": embeddings_gradient_bytes(shares.counts, model.dim, by_all_reduce=False),
        "weights": weights_bytes(model.num_parameters, world_size, inputs.stage),
    }
    rate = (inputs.nvlink_gb_per_s if link == "nvlink" else inputs.ethernet_gb_per_s) * inputs.link_share * 1e9
    hop_s = (inputs.nvlink_hop_us if link == "nvlink" else inputs.ethernet_hop_us) / 1e6
    hops = (5 * (world_size - 1)) if world_size > 1 else 0
    crossing = {name: value for name, value in sent.items() if name != "indices"}  # those are sent while a step runs
    network_s = sum(crossing.values()) / rate + hops * hop_s
    return {
        "encode_s": encode_s,
        "loss_s": loss_s,
        "fixed_s": inputs.fixed_ms / 1e3,
        "network_s": network_s,
        "step_s": encode_s + loss_s + inputs.fixed_ms / 1e3 + network_s,
        "imbalance": float(fullest.sum() / lengths.sum() * world_size - 1),
        **{f"sent_{name}_bytes": value for name, value in sent.items()},
    }


def cases(inputs: Inputs) -> list[dict[str, Any]]:
    """One GPU, a node, and eight nodes over either link; then what helps where it breaks."""
    asked = [
        ("as configured", inputs, 1, "nvlink"),
        ("as configured", inputs, 8, "nvlink"),
        ("as configured", inputs, 64, "nvlink"),
        ("as configured", inputs, 8, "ethernet"),
        ("as configured", inputs, 64, "ethernet"),
    ]
    larger = Inputs(**{**asdict(inputs), "items": 8 * inputs.items, "users": 8 * inputs.users})
    faster = Inputs(**{**asdict(inputs), "ethernet_gb_per_s": 8 * inputs.ethernet_gb_per_s})
    both = Inputs(**{**asdict(larger), "ethernet_gb_per_s": faster.ethernet_gb_per_s})
    asked += [
        ("8 × items and users", larger, 64, "ethernet"),
        ("8 NICs a node", faster, 64, "ethernet"),
        ("both", both, 64, "ethernet"),
    ]
    rows = []
    for label, chosen, world_size, link in asked:
        alone = step_seconds(chosen, 1, "nvlink")["step_s"]
        parts = step_seconds(chosen, world_size, link)
        efficiency = alone / (world_size * parts["step_s"])
        rows.append({"case": label, "gpus": world_size, "link": link, "efficiency": efficiency, **parts})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| case | GPUs | link | encode ms | loss ms | fixed ms | network ms | step ms | MB sent a rank | efficiency |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        sent = sum(value for name, value in row.items() if name.startswith("sent_")) / 1e6
        parts = " | ".join(f"{1e3 * row[f'{name}_s']:,.1f}" for name in ("encode", "loss", "fixed", "network", "step"))
        link = "—" if row["gpus"] == 1 else row["link"]
        lines.append(f"| {row['case']} | {row['gpus']} | {link} | {parts} | {sent:,.0f} | {row['efficiency']:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Compute, print, and write record and doc unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in asdict(Inputs()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--write", action="store_true", help="write the record and the doc's table")
    arguments = vars(parser.parse_args())
    write = arguments.pop("write")
    inputs = Inputs(**arguments)
    rows = cases(inputs)
    shown = table(rows)
    at_64 = {row["link"]: row["efficiency"] for row in rows[:5] if row["gpus"] == 64}
    record = {
        "benchmark": "scaling_model",
        "headline": {"efficiency_8_nvlink": rows[1]["efficiency"], "efficiency_64_ethernet": at_64["ethernet"]},
        "measured_on_gpus": False,
        "inputs": asdict(inputs),
        "rows": rows,
    }
    print(shown)
    if write:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
        text = DOC.read_text()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        DOC.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
