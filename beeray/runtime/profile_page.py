"""The page that sums a profile up: one file, no scripts, nothing fetched."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beeray.runtime.profile import ProfileSummary

COLOURS = {
    "wait": "#c0392b",
    "table": "#8e6bbf",
    "encode": "#2f6db5",
    "gather": "#d98e1f",
    "loss": "#3a9d5d",
    "backward": "#5b9bd5",
    "optimizer": "#7a8a99",
    "report": "#b8b8b8",
}
MEANINGS = {
    "wait": "the next step's plan (users, items, padded token ids) was not ready",
    "table": "the catalog's table embedded anew (items: catalog)",
    "encode": "forward pass of this rank's items",
    "gather": "all-gather of the rows of E, waiting for slower ranks included",
    "loss": "users × items scores and their loss",
    "backward": "gradients, recomputed forward passes, gradients' reduce-scatter and reduction",
    "optimizer": "clipping, update, all-gather of sharded weights",
    "report": "waiting for the device and for all ranks' losses",
}
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p.note { color: #777; margin: .25rem 0 1.5rem; }
.bar { display: flex; height: 2.2rem; border-radius: 4px; overflow: hidden; }
.bar span { min-width: 1px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.name { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }
td.meaning { color: #777; }
"""


def profile_page(summary: ProfileSummary, trace: str) -> str:
    """The page as HTML.

    Args:
        trace: name of the trace's file beside the page.
    """
    total = sum(summary.part_ms.values())
    steps = f"{summary.num_steps} step{'s' if summary.num_steps != 1 else ''}"
    note = (
        f"{total:,.1f} ms a step, mean of {steps} under the profiler, which slows them. "
        f'The whole trace is in <a href="{escape(trace)}">{escape(trace)}</a>: open it in ui.perfetto.dev.'
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(summary.title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>Where a step's time goes</h1><p>{escape(summary.title)}</p>",
            f'<p class="note">{note}</p>',
            _bar(summary.part_ms, total),
            _parts(summary, total),
            "<h2>Costliest operations</h2>",
            _operations(summary),
            "</body></html>\n",
        ]
    )


def _bar(part_ms: dict[str, float], total: float) -> str:
    pieces = [
        f'<span style="width:{100 * value / max(total, 1e-9):.3f}%;background:{COLOURS[part]}" '
        f'title="{part}: {value:,.1f} ms"></span>'
        for part, value in part_ms.items()
    ]
    return f'<div class="bar" role="img" aria-label="shares of a step">{"".join(pieces)}</div>'


def _parts(summary: ProfileSummary, total: float) -> str:
    on_device = bool(summary.device_ms)
    head = '<tr><th>part</th><th class="number">ms a step</th><th class="number">share</th>'
    head += ('<th class="number">GPU ms</th>' if on_device else "") + "<th>what it is</th></tr>"
    rows = []
    for part, value in summary.part_ms.items():
        device = f'<td class="number">{summary.device_ms[part]:,.1f}</td>' if on_device else ""
        rows.append(
            f'<tr><td><span class="key" style="background:{COLOURS[part]}"></span>{part}</td>'
            f'<td class="number">{value:,.2f}</td><td class="number">{100 * value / max(total, 1e-9):.1f} %</td>'
            f'{device}<td class="meaning">{escape(MEANINGS[part])}</td></tr>'
        )
    return f"<h2>Parts</h2><table>{head}{''.join(rows)}</table>"


def _operations(summary: ProfileSummary) -> str:
    head = '<tr><th>operation</th><th class="number">calls a step</th><th class="number">ms a step</th></tr>'
    rows = [
        f'<tr><td class="name">{escape(name)}</td><td class="number">{calls:,.0f}</td>'
        f'<td class="number">{value:,.2f}</td></tr>'
        for name, calls, value in summary.operations
    ]
    return f"<table>{head}{''.join(rows)}</table>"
