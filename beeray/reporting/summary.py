"""The first lines of the page: the figure that counts, and what the run was."""

from __future__ import annotations

from typing import Any

from beeray.config import Config
from beeray.reporting.measurements import Record

MEBIBYTE = 2**20


def headline_row(measured: list[Record]) -> Record | None:
    """The trained encoder's first row; None where it has none in the split that comes first."""
    first = next((row for row in measured if row["kind"] == "trained"), None)
    return first if first is not None and first["split"] == measured[0]["split"] else None


def tiles(measured: list[Record]) -> list[dict[str, str]]:
    """The trained encoder's metrics in its first test ranking, what they were before, and the best baseline beside.

    Args:
        measured: rows of `measurements.rows`.
    """
    after = headline_row(measured)
    if after is None:
        return []
    here = [row for row in measured if row["key"] == after["key"]]
    before = next((row for row in here if row["kind"] == "before"), None)
    shown = []
    for name, (mean, low, high) in after["metrics"].items():
        note = ""
        if before is not None and name in before["metrics"]:
            old = before["metrics"][name][0]
            note = f"{old:.3f} {before['name'].lower()}" + (f", × {mean / old:.2f}" if old > 0 else "")
        rivals = [(row["metrics"][name][0], row["name"]) for row in here if row["kind"] == "baseline"]
        best = max(rivals, default=None)
        rival = f"best baseline {best[0]:.3f} ({best[1]})" if best else ""
        value = {"name": name, "value": f"{mean:.3f}", "interval": f"{low:.3f} – {high:.3f}"}
        shown.append(value | {"note": note, "rival": rival})
    return shown


def facts(config: Config, record: Record | None) -> list[tuple[str, str]]:
    """What the run was, as names and values."""
    found: list[tuple[str, Any]] = [
        ("encoder", config.encoder.name),
        ("data", ", ".join(config.data.domains or ()) or config.data.domain or config.data.source),
        ("split", config.split.kind),
        ("text length", f"{config.served_seq_length} tokens"),
    ]
    begun = (record or {}).get("init_from")
    if begun is not None:
        counts = f": {begun['old_items']:,} items known, {begun['new_items']:,} new" if "new_items" in begun else ""
        found.insert(1, ("begun with", f"{begun['folder']}{counts}"))
    if record is not None and "training" in record:
        found += _training(config, record)
    return found


def _training(config: Config, record: Record) -> list[tuple[str, str]]:
    training: dict[str, Any] = record["training"]
    found = [
        ("steps", f"{training['steps']:,} of {config.train.batch_size:,} users and {config.train.max_output} items"),
        ("loss", f"{training['first_loss']:.4f} → {training['last_loss']:.4f}"),
        ("training time", f"{training['train_s']:,.1f} s"),
        ("throughput", f"{training['tokens_per_s']:,.0f} tokens/s, {training['items_per_s']:,.0f} items/s"),
        ("workers", str(training["workers"])),
        ("peak memory", f"{training['peak_memory_bytes'] / MEBIBYTE:,.0f} MiB a worker"),
    ]
    if training.get("peak_gpu_memory_bytes"):
        found.append(("peak GPU memory", f"{training['peak_gpu_memory_bytes'] / MEBIBYTE:,.0f} MiB a worker"))
    return found
