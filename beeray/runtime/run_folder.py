"""The run's folder: whose it is, how far it is, and what is left in it.

runs/<name>/config.yaml      the config as resolved; `--config` takes it
runs/<name>/run.json         digest of what decides the result, fingerprint of the store
runs/<name>/steps.jsonl      one line a step; a resumed run may repeat a step, the last line counts
runs/<name>/items.parquet    ids of the store's items, by which a later run tells old ones from new (`data/growth.py`)
runs/<name>/old_items.npy    which items the run that this one began with knew, with train.init_from
runs/<name>/original/        which items the encoder held alike before training, where that is measured
runs/<name>/before.json      metrics of the encoder before training, if asked for
runs/<name>/validation.jsonl one line an epoch, where validation is scored while training
runs/<name>/profile/         a trace of a few steps and a page that sums it up, with train.profile
runs/<name>/checkpoints/     Ray Train's: the newest whole one is what resumes
runs/<name>/not_finite.json  ids of the items and users whose step ended in no number, if one did
runs/<name>/model/           the trained encoder, there only when training is over
runs/<name>/metrics.json     what was measured; written last, so a run that has it is finished
runs/<name>/scores.parquet   per-user metrics of every split (scores-before.parquet: before training, if asked for)
runs/<name>/report.html      all of it on one page, to be opened in a browser
runs/<name>/report/          the page's items and their embeddings before and after training
runs/<name>/mlflow_run.json  id of the MLflow run, which a resumed run goes on with
runs/<name>/evaluations/     what beeray.evaluate measured, a folder an encoder and text length
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from beeray.config import Config, load_config
from beeray.data.parts import write_part
from beeray.data.scored import (
    EVALUATIONS,
    INIT_TRAINED_ON_VALIDATION,
    METRICS,
    OLD_ITEMS_DIGEST,
    SCORES,
    TRAINED_ON_VALIDATION,
)
from beeray.data.storage import storage_errors
from beeray.errors import ConfigError, RunError
from beeray.runtime.locks import locked_file
from beeray.runtime.mlflow_run import ID_FILE
from beeray.runtime.whole_files import copy_whole, damaged, read_record, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

CONFIG, RUN, STEPS = "config.yaml", "run.json", "steps.jsonl"
BEFORE, VALIDATION = "before.json", "validation.jsonl"
ITEMS, OLD_ITEMS = "items.parquet", "old_items.npy"
ORIGINAL, ORIGINAL_EMBEDDINGS = "original", "embeddings.npy"
CHECKPOINTS, MODEL = "checkpoints", "model"
REPORT, PROFILE = "report.html", "profile/summary.html"
NOT_FINITE = "not_finite.json"
TRIALS = "trials"
SWEEP_FILES = (TRIALS, "best.yaml", "trials.csv", "sweep.html")
"""What a sweep of the same name leaves in the folder (`runtime/sweep/folder.py`)."""
NIGHTS = "nights"
"""What nightly training of the same name did (`runtime/nights.py`)."""
KEPT = {*SWEEP_FILES, NIGHTS}
SHOWN_KEYS = 6
ROUNDING_ALONE = {"cluster.num_workers", "deepspeed.stage", "train.token_budget", "train.activation_budget_gib"}
"""Keys with which a run goes on whatever they were: any number of workers takes the same users, a checkpoint is whole
whatever the stage, and the budgets say what is computed together and what twice. What is computed together also draws
its dropout masks together: with another `train.token_budget`, as with another number of workers, they are others."""


class RunFolder:
    """The folder of one run.

    Args:
        config: of the command; `config.run_dir` is the folder.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.run_dir
        self.model = self.path / MODEL
        self.metrics = self.path / METRICS
        self.scores = self.path / SCORES
        self.items = self.path / ITEMS
        self.old_items = self.path / OLD_ITEMS
        self.original_embeddings = self.path / ORIGINAL / ORIGINAL_EMBEDDINGS
        self._is_locked = False
        self._known: dict[str, Any] | None = None  # run.json, read once while the lock keeps others from writing it

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands of this name away until the context ends.

        Raises:
            RunError: another command is at work on this run.
        """
        lock = self.path.parent / "logs" / f"{self.config.name}.lock"
        said = f"run {self.config.name!r} in {self.path} is being trained by another command"
        with locked_file(lock, said, "wait for it, or choose another name=…"):
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked, self._known = False, None

    def clear(self) -> None:
        """Remove all that an earlier run of this name left; what a sweep and what nightly training left stays."""
        self._known = None
        if not self.path.exists():
            return
        with storage_errors(str(self.path)):
            left = [entry for entry in self.path.iterdir() if entry.name not in KEPT]
            # a kill meanwhile leaves no run that seems finished, and no checkpoints that seem nobody's
            for entry in sorted(left, key=lambda entry: (entry.name in (CONFIG, RUN), entry.name != METRICS)):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            if not (any(self.path.iterdir()) or self.path.is_symlink()):
                self.path.rmdir()

    def check_config(self) -> None:
        """Refuse a config that would compute something else than the run that is in the folder.

        Raises:
            RunError: names the keys that differ, with both values; or nothing tells whose checkpoints lie there.
        """
        self._check_whose()
        kept = self.path / CONFIG
        if not kept.is_file():
            return
        try:
            theirs = load_config(str(kept)).result_keys()
        except ConfigError as error:
            raise RunError(
                f"run {self.config.name!r}: {kept} is not a config of this version ({error}); "
                "choose another name=… or start over with --fresh"
            ) from None
        ours = self.config.result_keys()
        changed = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
        changed = [key for key in changed if key not in ROUNDING_ALONE]
        if not changed:
            return
        shown = [f"{key}: {theirs.get(key)!r} → {ours.get(key)!r}" for key in sorted(changed)[:SHOWN_KEYS]]
        more = f" and {len(changed) - SHOWN_KEYS} more" if len(changed) > SHOWN_KEYS else ""
        raise RunError(
            f"run {self.config.name!r} in {self.path} was started with another config ({'; '.join(shown)}{more}); "
            "choose another name=… or start over with --fresh"
        )

    def _check_whose(self) -> None:
        """Checkpoints without the run's record, as of a backup that was brought back in part, may be any run's."""
        checkpoints = self.path / CHECKPOINTS
        if not self.begun and any(checkpoints.glob("checkpoint_*")):
            raise RunError(
                f"run {self.config.name!r}: {checkpoints} holds checkpoints, but {self.path / RUN} is not there, so "
                f"nothing tells which config and store they are of; bring {RUN} and {CONFIG} back, too, choose another "
                "name=… or start over with --fresh"
            )

    @property
    def begun(self) -> bool:
        """Whether a run has claimed the folder."""
        return (self.path / RUN).is_file()

    def begun_with(self) -> tuple[str, str | None] | None:
        """Fingerprints of the store and of the encoder of `train.init_from` that a run began with; None without one."""
        kept = self._begun()
        return None if kept is None else (kept["store_fingerprint"], kept.get("init_fingerprint"))

    def _begun(self) -> dict[str, Any] | None:
        """What run.json says; None where no run has claimed the folder."""
        if self._known is not None:
            return self._known
        kept = self._record(RUN)
        if kept is not None and not isinstance(kept.get("store_fingerprint"), str):
            raise damaged(self.path / RUN, self.config.name, "it names no store")
        self._known = kept if self._is_locked else None
        return kept

    def _record(self, name: str) -> dict[str, Any] | None:
        return read_record(self.path / name, self.config.name)

    @property
    def num_shards(self) -> int:
        """Into how many shards the run's users were cut when it began: one for each worker that it began with."""
        number = (self._begun() or {}).get("num_shards", self.config.cluster.num_workers)
        if type(number) is not int or number < 1:
            raise damaged(self.path / RUN, self.config.name, f"num_shards is {number!r}")
        return number

    def check_store(self, store_fingerprint: str) -> None:
        """Refuse a store that has changed since the run in the folder began.

        Raises:
            RunError: the store was, or would be, prepared anew from other data, or what the run began with is damaged.
        """
        kept = self._begun()
        if kept is not None and kept["store_fingerprint"] != store_fingerprint:
            raise RunError(
                f"run {self.config.name!r} in {self.path} was started on store {kept['store_fingerprint']}, the store "
                f"is now {store_fingerprint} (its tables, rules or split changed, or how this version draws it); "
                "choose another name=…, start over with --fresh, or give beeray.evaluate --model PATH"
            )

    def claim(
        self,
        store_fingerprint: str,
        init_fingerprint: str | None = None,
        init_learned_validation: bool | None = None,
    ) -> None:
        """Make the folder this run's; errors as `check_store`.

        Args:
            init_fingerprint: of the encoder that `train.init_from` names, which must not change either.
            init_learned_validation: what `learned_validation` says of it.
        """
        self._check_whose()
        self.check_store(store_fingerprint)
        self._check_init(init_fingerprint)
        with storage_errors(str(self.path)):
            self.path.mkdir(parents=True, exist_ok=True)
        tree = self.config.as_written()
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        write_whole(self.path / CONFIG, f"# fingerprint: {self.config.result_digest()}\n{text}")
        record: dict[str, Any] = {
            "config_digest": self.config.result_digest(),
            "store_fingerprint": store_fingerprint,
            "num_shards": self.num_shards,
        }
        if init_fingerprint is not None:
            record |= {
                "init_fingerprint": init_fingerprint,
                INIT_TRAINED_ON_VALIDATION: init_learned_validation,
            }
        self._known = None
        write_whole(self.path / RUN, json.dumps(record, indent=2))

    def _check_init(self, init_fingerprint: str | None) -> None:
        begun = self._begun()
        kept = init_fingerprint if begun is None else begun.get("init_fingerprint")
        if kept != init_fingerprint:
            raise RunError(
                f"run {self.config.name!r} in {self.path} was started from encoder {kept}, in train.init_from "
                f"{self.config.train.init_from!r} there is now {init_fingerprint}; choose another name=… or start "
                "over with --fresh"
            )

    def old_items_of(self, store_fingerprint: str) -> str:
        """File that tells old items of a store from new ones; empty where the run did not begin with another."""
        begun = self._begun() if self.old_items.is_file() else None
        return str(self.old_items) if begun is not None and begun["store_fingerprint"] == store_fingerprint else ""

    def meaning(self, store_fingerprint: str, trained_on_validation: bool | None) -> dict[str, Any]:
        """What a record of scores says so that only like is compared with like; see `data.scored`."""
        known = self.old_items_of(store_fingerprint)
        about: dict[str, Any] = {}
        if known:
            about[OLD_ITEMS_DIGEST] = hashlib.sha256(Path(known).read_bytes()).hexdigest()[:16]
        if trained_on_validation is not None:
            about[TRAINED_ON_VALIDATION] = trained_on_validation
        return about

    def finished(self) -> dict[str, Any] | None:
        """What the finished run measured, its paths where they are now; None while there is something to do."""
        measured = self.measured() if self.model.is_dir() else None
        if measured is None:
            return None
        now = {"folder": self.path, "model": self.model, "report": self.path / REPORT, "profile": self.path / PROFILE}
        return {key: str(now[key]) if key in now else value for key, value in measured.items()}

    def measured(self) -> dict[str, Any] | None:
        """What metrics.json says; None without it."""
        return self._record(METRICS)

    def log_step(self, record: dict[str, Any]) -> None:
        """Append one step."""
        self._append(STEPS, record)

    def log_validation(self, record: dict[str, Any]) -> None:
        """Append the validation metrics of one epoch."""
        self._append(VALIDATION, record)

    def steps(self) -> list[dict[str, Any]]:
        """All steps in order, each as it was last computed."""
        return self._latest(STEPS)

    def validation(self) -> list[dict[str, Any]]:
        """Validation metrics of all epochs in order, each as it was last computed."""
        return self._latest(VALIDATION)

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with storage_errors(str(self.path / name)), open(self.path / name, "a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the torn line of a killed driver must not swallow this one
                    file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")

    def _latest(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.is_file():
            return []
        by_step: dict[int, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the last line of a killed driver
            by_step[record["step"]] = record
        return [by_step[step] for step in sorted(by_step)]

    def take_model(self, exported: Path) -> None:
        """Copy an exported encoder into the folder, whole or not at all; errors as `copy_whole`."""
        copy_whole(exported, self.model)

    def keep_before(self, summary: dict[str, Any]) -> None:
        """Write what the encoder scored before training."""
        write_whole(self.path / BEFORE, json.dumps(summary, indent=2))

    def before(self) -> dict[str, Any] | None:
        """What the encoder scored before training, if it was measured."""
        return self._record(BEFORE)

    def keep_not_finite(self, found: dict[str, Any]) -> Path:
        """Write what made a loss no number and return the file's path."""
        path = self.path / NOT_FINITE
        write_whole(path, json.dumps(found, indent=2))
        return path

    def keep_report(self, page: str) -> Path:
        """Write the report and return its path."""
        path = self.path / REPORT
        write_whole(path, page)
        return path

    @property
    def evaluations(self) -> Path:
        """What was scored beside the run's own end, a folder each."""
        return self.path / EVALUATIONS

    def keep_evaluation(self, label: str, scores: pa.Table, record: dict[str, Any]) -> dict[str, Any]:
        """Keep what an evaluation measured, its metrics last: one that has them is whole.

        Args:
            scores: of every user.

        Returns:
            the record as it was kept, with the place of the scores.
        """
        folder = self.evaluations / label
        with storage_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, ID_FILE):  # of what was scored before
                (folder / name).unlink(missing_ok=True)
        write_part(scores, str(folder / SCORES))
        record = {**record, "scores": str(folder / SCORES)}
        write_whole(folder / METRICS, json.dumps(record, indent=2))
        return record

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write what was measured; from here on the run is finished."""
        write_whole(self.metrics, json.dumps(metrics, indent=2))
