"""What lies between a night's verbs, without Ray: which models are spared, what is gone on with, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import sha256, write_publication

from beeray.config import Config, validate_config
from beeray.console import Console
from beeray.data.manifest import MANIFEST
from beeray.runtime.nights import Night, Nights
from beeray.verbs import nightly


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return a_config(tmp_path)


def a_config(folder: Path, **sections: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "shop",
        "runs_dir": str(folder / "runs"),
        "data": {"source": "shop", "store": str(folder / "store")},
        "embed": {"path": str(folder / "embeddings")},
    }
    return validate_config(tree | sections)


def a_console() -> tuple[Console, io.StringIO]:
    shown = io.StringIO()
    return Console(shown, shown), shown


def publish(config: Config, model: str) -> None:
    """Have a model serve."""
    path = write_publication(Path(config.embeddings_path), ["a", "b"], np.eye(2, dtype=np.float32))
    (manifest,) = path.glob(f"versions/*/{MANIFEST}")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"model": {"name": model, "fingerprint": "f"}}))
    (path / "latest").write_text(json.dumps({"version": manifest.parent.name, "manifest_sha256": sha256(manifest)}))


def test_telling_of_an_old_night_spares_the_run_that_serves_now(tmp_path: Path) -> None:
    config = a_config(tmp_path, nightly={"keep_runs": 1})
    nights, (console, shown) = Nights(config), a_console()
    for day in ("01", "02", "03", "04"):
        nights.keep(Night(f"2026-01-{day}", "store-a", None, {"publish": True}, {"": "v"}))
        (tmp_path / "runs" / f"shop-2026-01-{day}" / "model").mkdir(parents=True)
    publish(config, str(tmp_path / "runs" / "shop-2026-01-03" / "model"))
    first = nights.kept("2026-01-01")
    assert first is not None
    nightly._told(config, nights, first, console)
    left = sorted(one.name for one in (tmp_path / "runs").glob("shop-*"))
    assert left == ["shop-2026-01-01", "shop-2026-01-03", "shop-2026-01-04"], shown.getvalue()
