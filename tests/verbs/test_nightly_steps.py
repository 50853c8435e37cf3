"""What lies between a night's verbs, without Ray: which models are spared, what is gone on with, what is refused."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import sha256, write_publication

from beeray.config import Config, validate_config
from beeray.console import Console
from beeray.data.manifest import MANIFEST
from beeray.data.store import Store
from beeray.data.store_meta import StoreMeta
from beeray.errors import ConfigError, DivergedError, RunError
from beeray.runtime.nights import Night, Nights
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.run_start import TrainInputs
from beeray.runtime.startup import Startup
from beeray.runtime.steps import UserShare
from beeray.runtime.tracking import Untracked
from beeray.verbs import evaluate, nightly, train


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


def trained(config: Config, store: str) -> RunFolder:
    """Leave a night's run, finished, that learned from a store."""
    run = RunFolder(config)
    run.claim(store)
    run.model.mkdir()
    run.finish({train.TRACKED: None})
    return run


def leave_store(config: Config, fingerprint: str) -> None:
    """Leave a store's meta.json, as whoever prepared it last did."""
    meta = StoreMeta(fingerprint, "item", ["shop"], 2, 1, 2, {}, {}, {}, {})
    Path(config.store_path).mkdir(exist_ok=True)
    (Path(config.store_path) / "meta.json").write_text(json.dumps(dataclasses.asdict(meta)))


def begun(config: Config, now: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Night, str]:
    """Which night is worked on by tables of a fingerprint, and what was said."""
    console, shown = a_console()
    monkeypatch.setattr(nightly, "store_fingerprint", lambda config: now)
    arguments = argparse.Namespace(night="2026-01-02", fresh=False)
    return nightly._begun(config, Nights(config), arguments, console), shown.getvalue()


def test_a_finished_run_is_not_trained_again_when_its_tables_change(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = Nights(config)
    night = nights.keep(Night("2026-01-02", "store-a", None))
    run = trained(nightly._tonight(config, nights, night.name, None), "store-a")
    leave_store(config, "store-a")
    assert begun(config, "store-b", monkeypatch)[0] == night and run.finished() is not None
    leave_store(config, "store-b")  # of another command: the users that it would be judged by are gone
    night, said = begun(config, "store-b", monkeypatch)
    assert night.store_fingerprint == "store-b" and run.finished() is None and "begins anew" in said


def test_an_unfinished_run_begins_anew_when_its_tables_change(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    nights = Nights(config)
    nights.keep(Night("2026-01-02", "store-a", None))
    run = RunFolder(nightly._tonight(config, nights, "2026-01-02", None))
    run.claim("store-a")
    leave_store(config, "store-a")
    night, _ = begun(config, "store-b", monkeypatch)
    assert night.store_fingerprint == "store-b" and not run.begun


def test_both_models_are_scored_on_the_store_that_the_run_learned_from(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights, (console, _) = Nights(config), a_console()
    serving = {"name": "/models/old", "fingerprint": "f"}
    night = nights.keep(Night("2026-01-02", "store-a", serving))
    tonight = nightly._tonight(config, nights, night.name, serving)
    trained(tonight, "store-a")

    def evaluated(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
        raise EvaluatedError(arguments)

    monkeypatch.setattr(nightly.evaluate, "execute", evaluated)
    monkeypatch.setattr(nightly.train, "execute", None)  # a finished run's tables may have changed: it would refuse
    with pytest.raises(EvaluatedError) as caught:
        nightly._trained_and_judged(tonight, night, console)
    assert vars(caught.value.args[0]) == {"model": "/models/old", "store_fingerprint": "store-a"}


class EvaluatedError(Exception):
    """Stands in for an evaluation."""


def test_a_pinned_store_is_opened_as_it_is_and_another_one_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "store_fingerprint", lambda config: "store-b")
    console, _ = a_console()
    leave_store(config, "store-a")
    assert evaluate.opened_store(config, "store-a", console).meta.fingerprint == "store-a"
    leave_store(config, "store-b")
    with pytest.raises(RunError, match="trained on store-a, which is no longer there, and its tables have changed"):
        evaluate.opened_store(config, "store-a", console)


def test_a_night_begins_with_the_serving_model_whatever_its_name_is(tmp_path: Path) -> None:
    config = a_config(tmp_path, encoder={"name": "hub/ours", "revision": "abc"})
    nights = Nights(config)
    for name, init_from, encoder, revision in (
        ("/models/old", "/models/old", "hub/ours", "abc"),
        ("hub/theirs", None, "hub/theirs", None),
        ("hub/ours", None, "hub/ours", "abc"),
    ):
        tonight = nightly._tonight(config, nights, "2026-01-02", {"name": name, "fingerprint": "f"})
        assert (tonight.train.init_from, tonight.encoder.name) == (init_from, encoder)
        assert tonight.encoder.revision == revision


def test_a_night_whose_serving_model_is_gone_trains_nothing(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nightly.train, "execute", None)
    nights, serving = Nights(config), {"name": str(tmp_path / "gone"), "fingerprint": "f"}
    night = nights.keep(Night("2026-01-02", "store-a", serving))
    with pytest.raises(RunError, match=r"the serving model .*/gone is gone.*; put it back, or .* with --fresh"):
        nightly._work(config, nights, night, a_console()[0])


@pytest.mark.parametrize("passes", [True, False])
def test_a_model_is_registered_after_its_verdict_and_a_refused_one_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    registered: list[str] = []

    class Registering(Untracked):
        trouble = None

        def register_model(self, name: str) -> None:
            registered.append(name)

    config = a_config(tmp_path, tracking={"registered_model": "ours"})
    monkeypatch.setattr(nightly, "Tracker", Registering)
    monkeypatch.setattr(nightly.embed, "execute", lambda config, arguments, console: {"version": "v"})
    nights, serving = Nights(config), {"name": str(tmp_path), "fingerprint": "f"}
    assert nightly._tonight(config, nights, "2026-01-02", serving).tracking.registered_model is None
    night = nights.keep(Night("2026-01-02", "store-a", serving, {"publish": passes}))
    nightly._work(config, nights, night, a_console()[0])
    assert registered == (["ours"] if passes else [])


def test_training_that_diverges_is_refused_where_a_model_serves_and_an_error_where_none_does(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
        raise DivergedError("the loss became nan at step 3")

    monkeypatch.setattr(nightly.train, "execute", diverges)
    monkeypatch.setattr(nightly.embed, "execute", lambda config, arguments, console: {"version": arguments.model})
    nights, (console, shown) = Nights(config), a_console()
    serving = {"name": str(tmp_path), "fingerprint": "f"}
    night = nightly._work(config, nights, nights.keep(Night("2026-01-02", "store-a", serving)), console)
    assert night.verdict == {"publish": False, "diverged": "the loss became nan at step 3"}
    assert (night.published, night.refreshed) == (None, {"": str(tmp_path)})
    assert "gate: the loss became nan at step 3: refused" in shown.getvalue()
    with pytest.raises(DivergedError):
        nightly._work(config, nights, nights.keep(Night("2026-01-03", "store-a", None)), console)


@pytest.mark.parametrize(
    ("kind", "said", "error"),
    [("failed", "the loss became nan", DivergedError), ("refused", "runs_dir 'runs': not shared", RunError)],
)
def test_what_workers_could_not_do_is_the_commands_error(
    config: Config, monkeypatch: pytest.MonkeyPatch, kind: str, said: str, error: type[RunError]
) -> None:
    """A refusal is no divergence: the gate would take it for the model's fault, and publish with the old one."""

    def workers_fail(
        config: Config, folder: RunFolder, inputs: TrainInputs, tell: Callable[..., None], console: Console
    ) -> None:
        tell({"kind": kind, "message": said})

    monkeypatch.setattr(train, "listening", lambda handler, stopping: nullcontext(handler))
    monkeypatch.setattr(train, "_run_workers", workers_fail)
    leave_store(config, "store-a")
    inputs = TrainInputs(Store.open(config.store_path), "", (UserShare("users", 8, 8),), "model", 1)
    run = RunFolder(config)
    run.claim("store-a")
    with pytest.raises(RunError, match=said) as raised:
        train.train_run(config, run, inputs, a_console()[0], Startup(), Untracked)
    assert type(raised.value) is error


def test_a_night_that_no_one_could_judge_is_refused_before_anything_begins(tmp_path: Path) -> None:
    for nightly_section, said in (({"ranking": "filtred"}, "nightly.ranking is 'filtred'"), ({}, "trained on; set")):
        config = a_config(
            tmp_path,
            nightly=nightly_section,
            train={"with_validation": True},
            evaluate={"splits": ["validation", "test"] if nightly_section else ["validation"]},
        )
        with pytest.raises(ConfigError, match=said):
            nightly.execute(config, argparse.Namespace(night=None, fresh=False), a_console()[0])
    assert not (tmp_path / "runs").exists()
