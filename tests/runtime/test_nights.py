"""Which night a command works on, what it remembers, and what is removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beeray.config import Config, validate_config
from beeray.errors import ConfigError, RunError
from beeray.runtime.nights import Night, Nights
from beeray.runtime.run_folder import RunFolder
from beeray.verbs.embed import published_model

REFUSED, PASSED = {"publish": False}, {"publish": True}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tree = {"name": "shop", "runs_dir": str(tmp_path), "data": {"source": "shop"}, "nightly": {"keep_runs": 2}}
    return validate_config(tree)


def test_a_night_is_read_back_as_it_was_kept(config: Config) -> None:
    nights = Nights(config)
    night = nights.keep(Night("2026-01-02", "store-a", {"name": "/runs/old/model", "fingerprint": "f"}))
    assert nights.kept("2026-01-02") == night
    assert nights.keep(night, verdict=PASSED, published={"": "v1"}) == nights.kept("2026-01-02")
    assert nights.kept("2026-01-03") is None


def test_the_last_model_that_was_published_is_of_the_last_night_that_was_not_refused(config: Config) -> None:
    nights = Nights(config)
    assert nights.published_model() is None
    nights.keep(Night("2026-01-02", "store-a", None, PASSED, {"": "v1"}))
    nights.keep(Night("2026-01-03", "store-b", None, PASSED, {"": "v2"}))
    nights.keep(Night("2026-01-04", "store-c", None, REFUSED, None, {"": "v3"}))
    nights.keep(Night("2026-01-05", "store-d", None, PASSED))
    assert nights.published_model() == config.run_dir.parent / "shop-2026-01-03" / "model"


@pytest.mark.parametrize(
    ("night", "store", "chosen"),
    [
        (Night("2026-01-02", "store-a", None), "store-a", "2026-01-02"),  # killed before midnight, submitted after it
        (Night("2026-01-02", "store-a", None, PASSED), "store-a", "2026-01-02"),  # judged, not yet published
        (Night("2026-01-02", "store-a", None, PASSED), "store-b", "2026-01-02"),  # one domain may be published already
        (Night("2026-01-02", "store-a", None, REFUSED), "store-b", "2026-01-02"),
        (Night("2026-01-02", "store-a", None), "store-b", "2026-01-03"),  # the tables have moved on
        (
            Night("2026-01-02", "store-a", None, REFUSED),
            "store-a",
            "2026-01-02",
        ),  # not embedded yet
        (Night("2026-01-02", "store-a", None, REFUSED, None, {"": "v1"}), "store-a", "2026-01-03"),
        (Night("2026-01-02", "store-a", None, PASSED, {"": "v1"}), "store-a", "2026-01-03"),
    ],
)
def test_an_unfinished_night_goes_on_after_midnight_while_its_tables_are_the_same_or_once_judged(
    config: Config, night: Night, store: str, chosen: str
) -> None:
    nights = Nights(config)
    nights.keep(night)
    assert nights.chosen(None, "2026-01-03", store) == chosen
    assert nights.chosen("2025-12-31", "2026-01-03", store) == "2025-12-31"


def test_another_night_of_a_day_that_was_killed_is_not_given_up_for_the_first(config: Config) -> None:
    """Its tables have changed again: it begins anew, and the first of the day is finished."""
    nights = Nights(config)
    nights.keep(Night("2026-01-03", "store-a", None, PASSED, {"": "v1"}))
    nights.keep(Night("2026-01-03-2", "store-b", None))
    assert nights.chosen(None, "2026-01-03", "store-c") == "2026-01-03-2"
    assert nights.chosen(None, "2026-01-04", "store-c") == "2026-01-04"


@pytest.mark.parametrize(
    ("kept", "store", "chosen"),
    [
        (["2026-01-03"], "store-a", "2026-01-03"),  # told again
        (["2026-01-03"], "store-b", "2026-01-03-2"),  # resubmitted in the morning, and on time in the evening
        (["2026-01-03", "2026-01-03-2"], "store-b", "2026-01-03-3"),
        ([f"2026-01-03-{number}" for number in range(2, 11)], "store-b", "2026-01-03-11"),
        (["2026-01-02-2"], "store-b", "2026-01-03"),
        (["2026-01-04"], "store-b", "2026-01-04-2"),  # called by the date of a time zone ahead
    ],
)
def test_new_tables_of_the_same_day_make_another_night(
    config: Config, kept: list[str], store: str, chosen: str
) -> None:
    nights = Nights(config)
    for name in kept:
        nights.keep(Night(name, "store-a", None, REFUSED, None, {"": "v1"}))
    assert nights.chosen(None, "2026-01-03", store) == chosen
    assert nights.chosen(chosen, "2026-01-03", store) == chosen, "it can be asked for"


@pytest.mark.parametrize("asked", ["2026-13-01", "2026-01-03-1", "2026-01-03-0", "2026-01-33", "２０２６-01-03"])
def test_a_night_must_be_a_day_of_the_calendar(config: Config, asked: str) -> None:
    with pytest.raises(ConfigError, match="must be a date"):
        Nights(config).chosen(asked, "2026-01-03", "store-a")


def test_a_night_to_come_is_refused_and_that_of_a_time_zone_ahead_is_not(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"--night '2036-01-03': is in the future \(today is 2026-01-03\)"):
        Nights(config).chosen("2036-01-03", "2026-01-03", "store-a")
    assert Nights(config).chosen("2026-01-04", "2026-01-03", "store-a") == "2026-01-04"


def test_a_night_that_is_no_date_and_a_damaged_file_are_refused_in_a_line(config: Config) -> None:
    nights = Nights(config)
    with pytest.raises(ConfigError, match="--night 'tonight': must be a date"):
        nights.chosen("tonight", "2026-01-03", "store-a")
    nights.keep(Night("2026-01-02", "store-a", None))
    (nights.folder / "2026-01-02.json").write_text("{")
    with pytest.raises(RunError, match="remove it, and the night begins anew"):
        nights.kept("2026-01-02")


def test_two_commands_do_not_work_on_the_nights_of_one_name(config: Config) -> None:
    again = Nights(config).locked()
    with Nights(config).locked(), pytest.raises(RunError, match="is being done by another command"), again:
        pass


def test_a_run_of_that_name_that_starts_over_leaves_nights_and_their_lock(config: Config) -> None:
    nights, run = Nights(config), RunFolder(config)
    night = nights.keep(Night("2026-01-02", "store-a", None))
    run.claim("store-a")
    with nights.locked():
        run.clear()
        with pytest.raises(RunError, match="is being done by another command"), Nights(config).locked():
            pass
    assert nights.kept("2026-01-02") == night
    assert [path.name for path in run.path.iterdir()] == ["nights"]


def leave_runs(config: Config, verdicts: dict[str, dict[str, Any] | None]) -> Path:
    """Leave a night's file and run for each day; returns the folder of runs."""
    nights, runs = Nights(config), config.run_dir.parent
    for day, verdict in verdicts.items():
        published = {"": "v"} if verdict is PASSED else None
        refreshed = {"": "v"} if verdict is REFUSED else None
        nights.keep(Night(f"2026-01-{day}", "store-a", None, verdict, published, refreshed))
        (runs / f"shop-2026-01-{day}" / "model").mkdir(parents=True)
    return runs


def test_runs_of_old_nights_go_but_never_the_serving_one(config: Config) -> None:
    runs = leave_runs(config, {"01": PASSED, "02": REFUSED, "03": None, "04": REFUSED, "05": REFUSED})
    nights = Nights(config)
    (runs / "shop-2026-01-01b").mkdir()
    told_of, serves = (str(runs / f"shop-2026-01-{day}" / "model") for day in ("05", "01"))
    told: list[str] = []
    assert nights.prune([told_of, serves], told.append) == ["shop-2026-01-02", "shop-2026-01-03"]
    left = sorted(one.name for one in runs.iterdir() if one.name.startswith("shop-"))
    assert left == [f"shop-2026-01-{day}" for day in ("01", "01b", "04", "05")] and not told
    assert nights.kept("2026-01-03") is None and nights.kept("2026-01-02") is not None, (
        "what was abandoned is forgotten"
    )


def test_an_unfinished_night_stays_while_no_later_one_is_finished(config: Config) -> None:
    leave_runs(config, {"01": PASSED, "02": None, "03": None, "04": None})
    assert Nights(config).prune([], [].append) == ["shop-2026-01-01"]


def test_a_model_that_serves_by_another_name_of_its_folder_stays(config: Config, tmp_path: Path) -> None:
    runs = leave_runs(config, {"01": PASSED, "02": REFUSED, "03": REFUSED})
    (tmp_path / "other").symlink_to(runs)
    assert Nights(config).prune([str(tmp_path / "other" / "shop-2026-01-01" / "model")], [].append) == []


def test_a_run_that_cannot_be_removed_is_told_in_a_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    leave_runs(config, {"01": PASSED, "02": REFUSED, "03": REFUSED})
    monkeypatch.setattr("shutil.rmtree", refuse)
    told: list[str] = []
    assert Nights(config).prune([], told.append) == []
    (line,) = told
    assert "shop-2026-01-01 cannot be removed (Permission denied); remove it, or" in line


def test_embedding_by_itself_takes_the_last_model_that_nightly_training_published(config: Config) -> None:
    with pytest.raises(RunError, match=r"shop/model is not there, so the run is not finished"):
        published_model(config, None)
    own = config.run_dir / "model"
    own.mkdir(parents=True)
    assert published_model(config, None) == str(own)
    Nights(config).keep(Night("2026-01-02", "store-a", None, PASSED, {"": "v1"}))
    with pytest.raises(RunError, match=r"shop-2026-01-02/model, the last model that .* is gone; bring it back"):
        published_model(config, None)
    tonight = config.run_dir.parent / "shop-2026-01-02" / "model"
    tonight.mkdir(parents=True)
    assert published_model(config, None) == str(tonight)
    assert published_model(config, "some-hub/encoder") == "some-hub/encoder"
