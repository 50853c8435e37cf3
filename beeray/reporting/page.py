"""From a run's folder to its page: one HTML file that fetches nothing.

Everything that comes from data goes through Jinja's escaping or, as JSON, through `embedded_json`; scripts run only by
their hash (Content-Security-Policy), so that a text which slipped through could neither run nor call home. plotly.js
is the bulk of the file (4.8 MB); an item adds 0.8 kB, so 2,000 items make 6.4 MB, and 8 MB at most.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from beeray.config import Config, load_config
from beeray.data.report_items import REPORT_FOLDER
from beeray.errors import ConfigError
from beeray.reporting.curves import training_curves, validation_curves
from beeray.reporting.explorer import explorer_data
from beeray.reporting.measurements import RANKINGS, Record, collect_measurements, described, rows
from beeray.reporting.summary import facts, headline_row, tiles

SCRIPTS = ("theme.js", "measured.js", "curves.js", "explorer.js", "map.js", "start.js")
TEMPLATE = "report.html.j2"


def report_page(
    config: Config, folder: Path, record: Record | None, steps: list[Record], validation: list[Record]
) -> str:
    """The page as HTML.

    Args:
        folder: the run's.
        record: its metrics.json; None for one that was only evaluated.
        steps, validation: its step and validation records.
    """
    measurements, notes = collect_measurements(folder, record)
    measured = rows(measurements)
    tables, headline = _tables(measured), headline_row(measured)
    explorer = explorer_data(folder / REPORT_FOLDER, layout=config.report.layout, seed=config.seed)
    data = {
        "rows": measured,
        "rankings": RANKINGS,
        "curves": training_curves(steps),
        "validation": validation_curves(validation),
        "explorer": explorer,
    }
    scripts = [_plotly(), "(() => {\n'use strict';\n" + "\n".join(_page_file(name) for name in SCRIPTS) + "\n})();\n"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("beeray.reporting", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        name=config.name,
        policy=content_policy(scripts),
        style=Markup(_page_file("report.css")),
        scripts=[Markup(script) for script in scripts],
        data=embedded_json(data),
        tiles=tiles(measured),
        tiles_of=next((table for table in tables if headline is not None and table["key"] == headline["key"]), None),
        facts=facts(_config_of(folder) or config, record),
        tables=tables,
        kept=(record or {}).get("neighbours_kept"),
        notes=notes,
        curves=bool(steps),
        head=(record or {}).get("head"),
        explorer=explorer,
        num_items=len(explorer["items"]["id"]) if explorer else 0,
        config_text=_config_text(folder),
    )


def embedded_json(value: Any) -> Markup:
    """JSON that may stand in a script element: no `<`, `>`, `&` or line separator of Unicode in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def content_policy(scripts: Iterable[str]) -> str:
    """A Content-Security-Policy that fetches nothing and runs these inline scripts alone."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plotly() -> str:
    script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    return script.replace("\r\n", "\n").replace("\r", "\n")  # as the browser reads it, which the hash is of


def _page_file(name: str) -> str:
    return resources.files("beeray.reporting").joinpath("page", name).read_text(encoding="utf-8")


def _config_of(folder: Path) -> Config | None:
    """The config that the run was trained with; None where it was only evaluated, or is of another version."""
    path = folder / "config.yaml"
    try:
        return load_config(str(path)) if path.is_file() else None
    except ConfigError:
        return None


def _config_text(folder: Path) -> str:
    path = folder / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _tables(measured: list[Record]) -> list[dict[str, Any]]:
    """Rows that may be held against each other, with the columns that any of them has."""
    groups: dict[str, list[Record]] = {}
    for row in measured:
        groups.setdefault(row["key"], []).append(row)
    tables = []
    for key, members in groups.items():
        split, ranking, domain, of = (members[0][name] for name in ("split", "ranking", "domain", "of"))
        names = list(dict.fromkeys(name for row in members for name in row["metrics"]))
        learned = split == "validation" and any(row["learned_validation"] for row in members)
        more = "".join(f" · {part}" for part in (domain, of) if part)
        title = f"{split}{' (trained on)' if learned else ''} · {described(ranking)}{more}"
        best = {name: max(row["metrics"].get(name, [-1.0])[0] for row in members) for name in names}
        lengths = [row["shown"]["k"] for row in reversed(members) if "k" in row["shown"]]
        tables.append(
            {
                "key": key,
                "title": title,
                "names": names,
                "rows": members,
                "best": best,
                "users": max(row["users"] for row in members),
                "candidates": max(row["candidates"] for row in members),
                "kept": max(row.get("kept", 0) for row in members),
                "k": lengths[0] if lengths else None,
                "other_k": len(set(lengths)) > 1,
            }
        )
    return tables
