"""The page of a sweep: parallel coordinates of its trials, and the metric of every epoch; one file, nothing fetched."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from beeray.config import Dimension
from beeray.runtime.sweep.folder import COMPLETE, FAILED, INVALID, RUNNING, STOPPED, Trial, best_of, ranked
from beeray.runtime.sweep.table import shown
from beeray.runtime.whole_files import write_whole

SCALE = [[0.0, "#d5dce6"], [0.5, "#6f9bd1"], [1.0, "#0b3275"]]
"""The best is what is darkest."""
COLOURS = {COMPLETE: "#2f6db5", STOPPED: "#a3acb8", FAILED: "#c0392b", RUNNING: "#d98e1f"}
BEST_COLOUR = "#c26a00"
NUM_TICKS = 6
AXIS_PX = 150
"""Room for the name of an axis; a narrower window scrolls."""
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1.25rem; color: #222; }
h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .25rem; }
p.note { color: #666; margin: .25rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12rem; }
.number { text-align: right; }
tr.best td { font-weight: 600; }
.scroll { overflow-x: auto; }
"""


def write_page(
    path: Path, title: str, trials: list[Trial], space: dict[str, Dimension], metric: str, mode: str
) -> None:
    """Write the page, whole or not at all."""
    write_whole(path, sweep_page(title, trials, space, metric, mode))


def sweep_page(title: str, trials: list[Trial], space: dict[str, Dimension], metric: str, mode: str) -> str:
    """The page as HTML, plotly's script included."""
    best = best_of(trials, mode)
    counts = [
        f"{sum(one.status == status for one in trials)} {status}" for status in (COMPLETE, STOPPED, FAILED, INVALID)
    ]
    said = f"{len(trials)} trials: {', '.join(one for one in counts if not one.startswith('0 '))}."
    if best is not None:
        said += f" Best {metric}: {best.metric:.4f} ({best.name})."
    measured = [one for one in trials if _has_metric(one)]
    figures = []
    if measured:
        figures = [
            "<h2>What was tried</h2>",
            f'<p class="note">A line is a trial, the darker the better the {escape(metric)} it came to. Drag along an '
            "axis to keep a part of it; drag an axis by its name to move it.</p>",
            f'<div class="scroll"><div style="min-width:{AXIS_PX * (len(space) + 1)}px">',
            _html(coordinates(measured, space, metric, mode), script=True),
            "</div></div>",
            "<h2>Epoch by epoch</h2>",
            '<p class="note">A line is a trial; one that ran to its end is ranked by its last epoch.</p>',
            _html(curves(measured, metric, best), script=False),
        ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1><p>{escape(said)}</p>",
            *figures,
            "<h2>Trials</h2>",
            _table(trials, list(space), metric, mode, best),
            "</body></html>\n",
        ]
    )


def coordinates(trials: list[Trial], space: dict[str, Dimension], metric: str, mode: str) -> go.Figure:
    """Parallel coordinates: an axis a key, and the metric last."""
    values = [float(trial.metric or 0.0) for trial in trials]
    axes = [axis(key, dimension, [trial.values[key] for trial in trials]) for key, dimension in space.items()]
    low, high = min(values), max(values)
    line = {"color": values, "colorscale": SCALE, "reversescale": mode == "min", "cmin": low, "cmax": high}
    line["showscale"] = False
    room = 0.0 if low < high else 0.01
    last = {"label": metric, "values": values} | _linear(low - room, high + room)
    figure = go.Figure(go.Parcoords(line=line, dimensions=[*axes, last], labelfont={"size": 13}))
    figure.update_layout(height=420, margin={"l": 60, "r": 90, "t": 60, "b": 30}, font={"size": 12})
    return figure


def axis(key: str, dimension: Dimension, values: list[Any]) -> dict[str, Any]:
    """One axis: a logarithm for a logarithmic range, places for choices, else the value itself."""
    if dimension.kind == "choice":
        places = list(range(len(dimension.probes)))
        own = [dimension.probes.index(value) for value in values]
        names = [shown(value) for value in dimension.probes]
        span = [0, max(1, len(places) - 1)]
        return {"label": key, "values": own, "tickvals": places, "ticktext": names, "range": span}
    low, high = dimension.bounds
    if not dimension.kind.startswith("log"):
        return {"label": key, "values": list(values)} | _linear(low, high)
    ticks = log_ticks(low, high)
    return {
        "label": key,
        "values": [math.log10(value) for value in values],
        "range": [math.log10(low), math.log10(high)],
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:.2g}" for tick in ticks],
    }


def _linear(low: float, high: float) -> dict[str, Any]:
    step = (high - low) / (NUM_TICKS - 1)
    ticks = [low + place * step for place in range(NUM_TICKS)]
    return {"range": [low, high], "tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within a range (only the powers where it is wide); its ends if none is."""
    factors = (1, 2, 5) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
    within = [tick for tick in ticks if low <= tick <= high]
    return within if len(within) > 1 else [low, high]


def curves(trials: list[Trial], metric: str, best: Trial | None) -> go.Figure:
    """The metric of every epoch of every trial, the best one last and so on top."""
    figure = go.Figure()
    named: set[str] = set()
    for trial in sorted(trials, key=lambda one: one is best):
        epochs = sorted(trial.epochs)
        colour = BEST_COLOUR if trial is best else COLOURS[trial.status]
        kind = f"{trial.name}, the best" if trial is best else trial.status
        values = "<br>".join(f"{key} {shown(value)}" for key, value in trial.values.items())
        figure.add_scatter(
            x=epochs,
            y=[trial.epochs[epoch] for epoch in epochs],
            name=kind,
            legendgroup=kind,
            showlegend=kind not in named,
            mode="lines+markers",
            line={"color": colour, "width": 3 if trial is best else 1.5},
            marker={"size": 7, "symbol": "x" if trial.status == STOPPED else "circle"},
            hovertemplate=f"{trial.name}, {trial.status}<br>{values}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>",
        )
        named.add(kind)
    figure.update_layout(
        height=380,
        template="plotly_white",
        margin={"l": 70, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        xaxis={"title": "epoch", "dtick": 1 if max(max(one.epochs, default=1) for one in trials) <= 20 else None},
        yaxis={"title": metric},
        showlegend=True,
    )
    return figure


def _has_metric(trial: Trial) -> bool:
    return trial.metric is not None and math.isfinite(trial.metric)


def _is_number(trials: list[Trial], key: str) -> bool:
    return all(isinstance(trial.values.get(key), int | float) for trial in trials)


def _html(figure: go.Figure, *, script: bool) -> str:
    return str(
        figure.to_html(full_html=False, include_plotlyjs=script, config={"displayModeBar": False, "responsive": True})
    )


def _table(trials: list[Trial], keys: list[str], metric: str, mode: str, best: Trial | None) -> str:
    names = ("trial", "status", metric, "epochs", *keys, "why")
    numeric = {2, 3, *(place for place, key in enumerate(keys, 4) if _is_number(trials, key))}

    def cell_of(kind: str, place: int, text: str) -> str:
        marked = ' class="number"' if place in numeric else ""
        return f"<{kind}{marked}>{escape(text)}</{kind}>"

    head = "".join(cell_of("th", place, name) for place, name in enumerate(names))
    rows = []
    for trial in ranked(trials, mode):
        figure = f"{trial.metric:.4f}" if trial.metric is not None else ""
        own = [shown(trial.values.get(key)) for key in keys]
        cells = [trial.name, trial.status, figure, str(len(trial.epochs)), *own, trial.reason or ""]
        marked = ' class="best"' if trial is best else ""
        rows.append(f"<tr{marked}>{''.join(cell_of('td', place, cell) for place, cell in enumerate(cells))}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
