"""The GPU benchmarks at tiny size on a CPU, and the epochs that one of them times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from own_process import run_python
from tiny_encoder import ListTokens

from beeray.core.plan import StepPlanner
from beeray.core.step import StepSettings

GPU = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
sys.path.insert(0, str(GPU))
from epochs import ITEMS_PER_USER, NUM_USERS, draw_users, plans, steps_an_epoch  # noqa: E402


def test_every_user_is_in_one_step_of_every_epoch_and_goodbooks_has_53_of_them() -> None:
    assert steps_an_epoch(NUM_USERS, 1024) == 53
    generator = np.random.default_rng(0)
    users = draw_users(10, 300, generator)
    users = type(users)(users.indptr, users.indices, np.arange(10, dtype=np.int32))
    planner = StepPlanner(ListTokens([[2, 3]] * 300), np.arange(300, dtype=np.int32), StepSettings(max_output=40))
    made = list(plans(planner, users, 4, 2, generator))
    assert [(plan.epoch, plan.step, plan.step_in_epoch) for plan in made] == [
        (0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 3, 0), (1, 4, 1), (1, 5, 2),
    ]  # fmt: skip
    assert [plan.users.num_users for plan in made] == [4, 4, 2, 4, 4, 2]
    seen = [plan.users.user_index for plan in made]
    assert all(sorted(np.concatenate(seen[first : first + 3])) == list(range(10)) for first in (0, 3))
    assert not np.array_equal(np.concatenate(seen[:3]), np.concatenate(seen[3:]))


def test_users_have_distinct_items_and_as_many_as_those_of_goodbooks() -> None:
    users = draw_users(400, 12_000, np.random.default_rng(0))
    assert users.num_users == 400 and users.indices.max() < 12_000
    assert len(users.indices) / 400 == pytest.approx(ITEMS_PER_USER, rel=0.03)
    assert all(len(set(one)) == len(one) for one in np.split(users.indices, users.indptr[1:-1]))
    popular = np.bincount(users.indices, minlength=12_000)
    assert popular[:100].sum() > 5 * popular[-100:].sum()


@pytest.mark.long
def test_both_benchmarks_run_without_a_gpu(tmp_path: Path) -> None:
    small = ("--layers", "2", "--hidden", "64", "--matrix", "256", "--dry")
    epochs = ("--epochs", "2", "--training-users", "40", "--limit-s", "60")
    sizes = {
        "step": ("--items", "48", "--users", "16", "--steps", "2", *epochs),
        "embed": ("--texts", "60", "--repeats", "1"),
    }
    for name, size in sizes.items():
        done = run_python(str(GPU / f"{name}.py"), *small, *size, cwd=tmp_path, limit_s=600)
        assert done.returncode == 0, done.stderr[-2000:]
        record = json.loads(done.stdout.splitlines()[-1])
        assert record["benchmark"] == f"gpu_{name}" and record["tokens_per_s"] > 0
        if name == "step":
            assert record["kept_against_recomputed"] < 1e-5
            assert record["items"] == 48 and record["recomputed_tokens"] == 0
            assert record["epochs_steps"] == record["epochs_steps_timed"] == 6 and not record["epochs_extrapolated"]
            assert record["epochs_minutes"] == pytest.approx(sum(record["epochs_step_s"]["all"]) / 60, rel=1e-2)
            assert "2 epochs, min" in record["headline"]
