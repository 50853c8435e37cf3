"""Twenty million interactions, prepared: wall time, and memory of all processes at once.

MovieLens 20M's shape (138,493 users, 26,744 items, 20,000,263 ratings with timestamps), generated, seeded, once as
parquet and once as one CSV, the original's format; every value is kept, so that nothing is spared by the rules. One
CSV run is split by time, which is the split that looks at timestamps.

    python benchmarks/scale_prepare.py [--interactions N]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from measure import Family, environment, run_verb

from beeray.data.generated_catalog import GeneratedCatalog
from beeray.data.generated_interactions import GeneratedInteractions

RECORD = Path(__file__).resolve().parent / "records" / "scale_prepare.json"
NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS, SEED = 138_493, 26_744, 20_000_263, 1
CASES = (("parquet", "item"), ("csv", "item"), ("csv", "time"))


def main() -> None:
    """Measure, print a table, then the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=int, default=NUM_INTERACTIONS, help="other than the default: a try")
    arguments = parser.parse_args()
    share = arguments.interactions / NUM_INTERACTIONS
    with tempfile.TemporaryDirectory(prefix="beeray-scale-") as work:
        record = measure(Path(work), arguments.interactions, max(1000, int(NUM_USERS * share)))
    if arguments.interactions == NUM_INTERACTIONS:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{'case':<14} {'wall s':>8} {'CPU s':>8} {'peak GiB':>9}")
    for name, case in record["cases"].items():
        print(f"{name:<14} {case['wall_s']:>8.1f} {case['cpu_s']:>8.1f} {case['peak_gib']:>9.2f}")
    print(json.dumps(record))


def measure(work: Path, num_interactions: int, num_users: int) -> dict[str, Any]:
    """Generate the tables and prepare them in every case."""
    made = write_tables(work, GeneratedInteractions(num_users, NUM_ITEMS, num_interactions, SEED))
    cases = {f"{kind}, {split}": prepare(work, kind, split) for kind, split in CASES}
    kept = {case["said"]["interactions"] for case in cases.values()}
    assert kept == {num_interactions}, f"of {num_interactions} interactions the stores hold {kept}"
    fingerprints = len({case["said"]["fingerprint"] for case in cases.values()})
    assert fingerprints == len(cases)
    slowest = max(case["wall_s"] for case in cases.values())
    return {
        "benchmark": "scale_prepare",
        "command": "python benchmarks/scale_prepare.py",
        "headline": {
            **{f"prepare {name}, s": round(case["wall_s"], 1) for name, case in cases.items()},
            "interactions a second": round(num_interactions / slowest),
            "peak memory of all processes, GiB": round(max(case["peak_gib"] for case in cases.values()), 2),
        },
        **environment(),
        "users": num_users,
        "items": NUM_ITEMS,
        "interactions": num_interactions,
        "seed": SEED,
        "generated": made,
        "cases": cases,
    }


def write_tables(work: Path, interactions: GeneratedInteractions) -> dict[str, float]:
    """The interactions as parquet and as one CSV, and a catalog with integer ids; returns seconds and bytes."""
    started = time.monotonic()
    size = interactions.write(work / "parquet")
    table = pq.read_table(work / "parquet")
    (work / "csv").mkdir()
    pyarrow.csv.write_csv(table, work / "csv" / "ratings.csv")
    titles = pa.concat_tables(GeneratedCatalog(NUM_ITEMS, SEED, mean_tokens=16).batches()).column("title")
    pq.write_table(pa.table({"item_id": np.arange(NUM_ITEMS), "title": titles}), work / "catalog.parquet")
    os.sync()
    return {
        "seconds": round(time.monotonic() - started, 1),
        "parquet_mib": round(size / 2**20, 1),
        "csv_mib": round((work / "csv" / "ratings.csv").stat().st_size / 2**20, 1),
    }


def prepare(work: Path, kind: str, split: str) -> dict[str, Any]:
    """One preparation; what it said and what it took."""
    config = {
        "name": f"{kind}-{split}",
        "data": {
            "source": "tables",
            "catalog": {"path": str(work / "catalog.parquet"), "template": "{title}"},
            "interactions": {"path": str(work / kind), "value": "value", "timestamp": "timestamp"},
            "min_value": None,
        },
        "split": {"kind": split, "validation": 0.1, "test": 0.1},
    }
    (work / f"{kind}-{split}.yaml").write_text(json.dumps(config))
    family = Family()
    said, wall_s, cpu_s = run_verb("prepare", "--config", str(work / f"{kind}-{split}.yaml"), cwd=work, family=family)
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "peak_gib": round(family.peak_total_bytes / 2**30, 3),
        "peaks_mib": dict(list(family.peaks_mib().items())[:8]),
        "said": said,
    }


if __name__ == "__main__":
    main()
