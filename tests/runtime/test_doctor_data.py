"""A store that is there is opened and compared with the config; one of other rules is told, and nothing is prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from beeray.config import Config, validate_config
from beeray.data.preparation import ensure_store
from beeray.runtime.doctor.tables import check_data

pytestmark = pytest.mark.usefixtures("ray_session")


def a_config(folder: Path, **changes: object) -> Config:
    shop = {"num_users": 60, "num_series": 2}
    data = {"source": "shop", "shop": shop, "store": str(folder / "store"), "num_buckets": 1}
    return validate_config({"name": "stored", "data": data, "split": {"validation": 5, "test": 5}, **changes})


def test_a_prepared_store_is_up_to_date_until_the_rules_change(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    store, prepared = ensure_store(config, lambda stage, done, total: None)
    assert prepared
    finding = check_data(config)
    assert finding.status == "ok"
    said = f"store {config.store_path}: {store.meta.num_users:,} users, {store.meta.num_items:,} items"
    assert finding.said == f"{said}, up to date"
    other = check_data(a_config(tmp_path, seed=7))
    assert other.status == "warning"
    assert other.said.startswith(f"{said}, prepared from other tables, rules or another split than the config's")
    assert "run beeray.prepare first, or name another data.store to keep this one" in other.said
    assert check_data(config) == finding, "looking at it with another config changed nothing"
