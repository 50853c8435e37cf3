"""What a second night costs, and how much memory the job takes, over a million items.

A generated catalog of `--items` short texts is embedded with a tiny encoder of random weights, then that of the
next night, of which 1 % of the texts changed. Encoder seconds are those that actors spent encoding. Memory is
the largest private memory that any process of a kind was seen with.

    python benchmarks/embed_nights.py [--items 1000000]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import Family, environment, run_verb

from beeray import embeddings
from beeray.data.generated_catalog import GeneratedCatalog

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from tiny_encoder import build_tiny_encoder  # noqa: E402

RECORD = ROOT / "benchmarks" / "records" / "embed_nights.json"
ITEMS = 1_000_000
MEAN_TOKENS = 24
LENGTH = 32
CHANGED = 0.01
KEPT = ("rows", "counts", "bytes", "files", "encoded_tokens", "encoder_s", "mean_rows_per_s", "seconds", "drift")


def main() -> None:
    """Measure, print a table, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=ITEMS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beeray-nights-") as work:
        record = measure(Path(work), arguments.items)
    if arguments.items == ITEMS:
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for name in ("first", "second"):
        night = record[name]
        print(
            f"{name:<7} {night['counts']['encoded']:>9,} encoded  {night['encoder_s']:>8,.1f} encoder s  "
            f"{night['wall_s']:>7,.1f} s  driver {night['peak_mib']['driver']:,.0f} MiB  "
            f"largest {max(night['peak_mib'].values()):,.0f} MiB"
        )
    print(f"second / first encoder seconds: {record['encoder_ratio']:.4f} (bar 0.03)")
    print(f"largest process beyond the encoder: {record['largest_mib']:,.0f} MiB (bar 2,048)")
    print(json.dumps(record))


def measure(work: Path, items: int) -> dict[str, Any]:
    """Both nights."""
    build_tiny_encoder(work / "encoder")
    nights: dict[str, Any] = {}
    for number, name in enumerate(("first", "second")):
        catalog = GeneratedCatalog(items, seed=7, night=number, changed=CHANGED, mean_tokens=MEAN_TOKENS)
        catalog.write(str(work / name))
        nights[name] = night(work, name)
    published = embeddings.open(str(work / "embeddings" / "nights"))
    assert published.num_rows == items, published.num_rows
    record = {
        "command": "python benchmarks/embed_nights.py",
        **environment(),
        "items": items,
        "changed": CHANGED,
        "max_seq_length": LENGTH,
        **nights,
        "encoder_ratio": nights["second"]["encoder_s"] / nights["first"]["encoder_s"],
        "largest_mib": max(max(one["peak_mib"].values()) for one in nights.values()),
    }
    return {**record, "headline": headline(record)}


def headline(record: dict[str, Any]) -> dict[str, str]:
    """What the benchmarks' page shows."""
    return {
        "first night, s": f"{record['first']['wall_s']:,.0f}",
        "second night, s": f"{record['second']['wall_s']:,.0f}",
        "encoder seconds, second / first": f"{record['encoder_ratio']:.3f}",
        "largest process, MiB": f"{record['largest_mib']:,.0f}",
    }


def night(work: Path, name: str) -> dict[str, Any]:
    """One night's job; what it said and used."""
    config = {
        "name": "nights",
        "data": {"source": "tables", "catalog": {"path": str(work / name), "template": "{title}. {description}"}},
        "encoder": {"name": str(work / "encoder"), "max_seq_length": LENGTH},
        "embed": {"model": "untouched"},
    }
    path = work / f"{name}.yaml"
    path.write_text(json.dumps(config))
    family = Family()
    said, wall_s, cpu_s = run_verb("embed", "--config", str(path), cwd=work, family=family)
    used = {"wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "peak_mib": family.peaks_mib()}
    return {**{key: said[key] for key in KEPT}, **used}


if __name__ == "__main__":
    main()
