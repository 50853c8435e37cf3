"""One nightly job from a catalog to a publication, step by step.

plan      what is computed from what; what may be reused; where an earlier attempt stopped
deal      the catalog to ranges of id hashes; bad rows aside; that its files are still those of the plan
embed     every range that is not done yet (`embedding_pipeline`)
check     refused rows and disappeared items against what the config allows
publish   drift report, manifest, pointer; then everything older goes
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from beeray.config import Config, config_digest
from beeray.console import Console, StageReporter
from beeray.data.dealing import ERRORS, Dealing, Dealt, Report, deal_catalog, dealt_is_whole
from beeray.data.drift import measure_drift
from beeray.data.embedding_units import NOT_FINITE, UnitTask, item_id_type, sample_texts
from beeray.data.embeddings import Embeddings
from beeray.data.lease import Lease
from beeray.data.manifest import Manifest, PublishedFile
from beeray.data.publishing import JobFolder, JobState, clean_up, publish, publish_errors
from beeray.data.reuse import EarlierRows, same_kind
from beeray.data.storage import join, make_dir, remove_tree
from beeray.errors import BeerayError, DataError, DealtOtherwiseError, LostWorkersError, RunError
from beeray.runtime.embedder import EmbedderTask, calibrated
from beeray.runtime.embedding_pipeline import Pipeline
from beeray.runtime.embedding_plan import JobPlan
from beeray.runtime.embedding_progress import UnitProgress
from beeray.runtime.monitor import listening
from beeray.runtime.recovery import Recovery
from beeray.runtime.tracking import Tracker

CALIBRATION_TEXTS = 512
ATTEMPTS = 2


class EmbeddingJob:
    """Carries out a plan.

    Args:
        embedder: what the actors load; its format is completed by the job.
        tokenizer: as JSON, see `bare_tokenizer`.
        unfinished: other jobs on this path that stopped.
        lease: on the path; None: a lock keeps others away. A job that has lost it writes and removes nothing more.
    """

    def __init__(
        self,
        config: Config,
        plan: JobPlan,
        embedder: EmbedderTask,
        tokenizer: str,
        console: Console,
        tracker: Tracker,
        folder: JobFolder,
        state: JobState,
        unfinished: list[JobState],
        lease: Lease | None = None,
    ) -> None:
        self.config, self.plan, self.embedder, self.tokenizer = config, plan, embedder, tokenizer
        self.console, self.tracker, self.folder, self.state = console, tracker, folder, state
        self.unfinished, self._lease = unfinished, lease
        self._recovery = Recovery(config.cluster, console)
        self.summary: dict[str, float] = {}

    def run(self) -> Manifest:
        """Do what is not done yet and publish. Ray must be running.

        Raises:
            BeerayError: the catalog cannot be read, too much of it is bad or gone, or another job has taken over;
                nothing is published then.
        """
        self._again_if_lost(self._deal, "with dealing the catalog anew")
        self._again_if_lost(self._calibrate, "with measuring the int8 scale anew")
        try:
            reports = self._embed()
        except DealtOtherwiseError:
            self._keep(dealt=None)  # so that the next attempt deals anew
            raise
        manifest = self._manifest(reports)
        self._track_counts(manifest)
        self._check(manifest)
        self._alone()
        errors = publish_errors(self.folder.work, self.folder.target(self.state.version))
        manifest = dataclasses.replace(manifest, error_files=errors, drift=self._drift(manifest))
        self._alone()  # drift took its time
        publish(self.folder.path, manifest, self.plan.follows)
        try:
            self._alone()
            clean_up(self.folder.path, self.config.embed.keep_versions, [self.state, *self.unfinished])
        except (BeerayError, OSError) as error:
            self.console.line(f"published, but old versions and this job's own files could not be removed: {error}")
        return manifest

    def _alone(self) -> None:
        """Raise a RunError where another job has taken over."""
        if self._lease is not None:
            self._lease.check()

    def _again_if_lost(self, work: Callable[[], None], how: str) -> None:
        while True:
            try:
                return work()
            except LostWorkersError as error:
                self._recovery.go_on(error, how)

    def _keep(self, **changes: Any) -> None:
        self._alone()
        self.state = dataclasses.replace(self.state, **changes)
        self.folder.save(self.state)

    def _deal(self) -> None:
        dealing = self._dealing()
        if self.state.dealt is not None and dealt_is_whole(dealing, self.state.dealt["group_bytes"]):
            self.console.line(f"going on with {self.state.version}: an earlier attempt dealt the catalog")
            return
        self._alone()
        self.unfinished = self.folder.trim(self.unfinished)
        for left in (self.folder.work, self.folder.target(self.state.version)):
            remove_tree(left)
        make_dir(self.folder.target(self.state.version))
        self._keep(dealt=None)
        dealt = self._dealt_as_planned(dealing)
        if not sum(dealt.range_rows):
            raise RunError(
                f"embed: no row of the catalog can be embedded ({_reasons(dealt.errors) or 'it is empty'}); "
                f"nothing is published; see {join(self.folder.work, ERRORS)}"
            )
        self._keep(dealt=dataclasses.asdict(dealt))

    def _dealt_as_planned(self, dealing: Dealing) -> Dealt:
        """Deal the catalog that the plan is of: all else of the job is called after that one's fingerprint.

        Raises:
            DataError: its files were others meanwhile; what was dealt of them is gone.
        """
        try:
            with StageReporter(self.console) as reporter:
                dealt = deal_catalog(self.plan.catalog, dealing, self._while_alone(reporter))
        except DataError:  # of a file that was taken away, say
            if self._is_as_planned():
                raise
        else:
            if self._is_as_planned():
                return dealt
        self._alone()
        for left in (self.folder.target(self.state.version), self.folder.work):
            remove_tree(left)
        raise DataError(
            "embed: the catalog changed while it was read; nothing is published; run the same command again"
        )

    def _is_as_planned(self) -> bool:
        """Whether the catalog's files are those of the plan, and were when they were listed to be dealt."""
        catalog = self.plan.catalog
        try:
            found = {catalog.fingerprint(), catalog.fingerprint(as_opened=True)}
        except DataError:  # there is none any more
            return False
        return found == {self.plan.catalog_source["fingerprint"]}

    def _while_alone(self, report: Report) -> Report:
        """The same report, which ends a job that is known to be superseded."""

        def reported(stage: str, done: int, total: int | None) -> None:
            if self._lease is not None:
                self._lease.check_known()
            report(stage, done, total)

        return reported

    def _dealing(self) -> Dealing:
        return Dealing(
            self.plan.template,
            self.config.embed.max_text_chars,
            self.state.num_ranges,
            self.state.num_groups,
            self.folder.work,
        )

    def _calibrate(self) -> None:
        """The int8 scale: that of the publication that goes on, or of a sample of the catalog."""
        if self.state.format.dtype != "int8" or self.state.format.scale is not None:
            return
        texts = sample_texts(self._dealing(), CALIBRATION_TEXTS)
        scale = calibrated(self.config, self.embedder, self.tokenizer, texts)
        self._keep(format=dataclasses.replace(self.state.format, scale=scale))

    def _embed(self) -> list[dict[str, Any]]:
        """Do what is not reported yet; returns all units' reports."""
        assert self.state.dealt is not None
        done = self.folder.reports()
        if done:
            self.console.line(f"{len(done):,} of {self.state.num_ranges:,} files are there already")
        progress = UnitProgress(
            self.console,
            self.tracker,
            num_rows=sum(self.state.dealt["range_rows"]),
            num_actors=self.embedder.num_actors,
            rows_done=sum(one["rows"] for one in done),
            units_done=len(done),
        )
        try:
            with listening(progress) as monitor:
                reports = self._do_units(done, monitor)
        finally:
            progress.close()
        if len(reports) != self.state.num_ranges:
            raise RunError(
                f"embed: {len(reports)} of {self.state.num_ranges} files were reported; run the same command again"
            )
        self.summary = progress.summary() | totals(reports)
        return reports

    def _do_units(self, reports: list[dict[str, Any]], monitor: Any) -> list[dict[str, Any]]:
        """Run the pipeline over what is not in these reports, again where nodes were lost; returns all reports."""
        assert self.state.dealt is not None
        range_rows = self.state.dealt["range_rows"]
        embedder = dataclasses.replace(self.embedder, format=self.state.format)
        attempts = 0
        while len(reports) < self.state.num_ranges and attempts < ATTEMPTS:
            self._alone()
            done = {one["range"] for one in reports}
            plan = [(number, rows) for number, rows in enumerate(range_rows) if number not in done]
            try:
                Pipeline(self._units(), embedder, plan, monitor).run(self.config)
                attempts += 1
            except LostWorkersError as error:
                self._recovery.go_on(error, "with what is not done")
            self._alone()
            reports = self.folder.reports()
            if len(reports) < self.state.num_ranges:  # the checkpoint names units whose report is lost
                self.folder.forget_checkpoint()
        return reports

    def _units(self) -> UnitTask:
        assert self.state.dealt is not None
        config = self.config
        return UnitTask(
            dealing=self._dealing(),
            target=self.folder.target(self.state.version),
            item_id_type=item_id_type(self.state.dealt["item_id_type"]),
            earlier=tuple(self._earlier()),
            tokenizer=self.tokenizer,
            prefix=config.encoder.prefix,
            max_seq_length=config.published_seq_length,
            format=self.state.format,
            rows_per_row_group=config.embed.rows_per_row_group,
            claim=self._lease.claim if self._lease is not None else None,
        )

    def _earlier(self) -> list[EarlierRows]:
        """Rows that may be reused: of the publication, and of jobs that were stopped for good."""
        assert self.state.dealt is not None
        earlier: list[EarlierRows] = []
        previous = self.plan.previous
        if previous is not None:
            if self._same_ids(previous.manifest.item_id_type):
                checksums = tuple(file.sha256 for file in previous.manifest.files)
                earlier.append(EarlierRows(tuple(previous.paths), sha256=checksums, reusable=not self.plan.full_run))
            elif not self.plan.full_run:
                self.console.line(f"full run: {self._other_ids(previous)}")
        if self.config.embed.incremental:
            for left in self.unfinished:
                same = (left.encoding_digest, left.format) == (self.state.encoding_digest, self.state.format)
                if same and left.dealt and self._same_ids(left.dealt["item_id_type"]):
                    earlier.append(self.folder.earlier_rows(left))
        return earlier

    def _same_ids(self, other: str) -> bool:
        assert self.state.dealt is not None
        return same_kind(item_id_type(other), item_id_type(self.state.dealt["item_id_type"]))

    def _other_ids(self, previous: Embeddings) -> str:
        assert self.state.dealt is not None
        return f"item_id's type changed ({previous.manifest.item_id_type} → {self.state.dealt['item_id_type']})"

    def _manifest(self, reports: list[dict[str, Any]]) -> Manifest:
        assert self.state.dealt is not None
        counts: Counter[str] = Counter()
        for report in reports:
            counts.update(json.loads(report["counts"]))
        errors = Counter(self.state.dealt["errors"])
        found_late = ("repeated_item_id", NOT_FINITE)
        for reason in found_late:
            errors[reason] += counts.pop(reason, 0)
        accounted = sum(report["rows"] for report in reports) + counts["repeated"]
        accounted += sum(errors[reason] for reason in found_late)
        dealt = sum(self.state.dealt["range_rows"])
        if accounted != dealt:
            raise RunError(
                f"embed: {accounted:,} of {dealt:,} dealt rows are accounted for; nothing is published; "
                f"remove {self.folder.work} and run the same command again"
            )
        plan = self.plan
        if counts.pop("damaged_files", 0):  # a file may lie in several units' ranges, so the number says little
            self.console.line("warning: files of earlier embeddings are damaged; their items are encoded anew")
        full_run = list(plan.full_run)
        if plan.previous is not None and not full_run and not self._same_ids(plan.previous.manifest.item_id_type):
            full_run.append(self._other_ids(plan.previous))
        return Manifest(
            version=self.state.version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            rows=sum(report["rows"] for report in reports),
            item_id_type=self.state.dealt["item_id_type"],
            format=self.state.format,
            files=[PublishedFile(one["path"], one["rows"], one["bytes"], one["sha256"]) for one in reports],
            model=plan.model,
            encoding=plan.encoding,
            encoding_digest=self.state.encoding_digest,
            config_digest=config_digest(self.config),
            catalog=plan.catalog_source,
            counts={"read": self.state.dealt["rows"], **counts, "errors": sum(errors.values())},
            errors={reason: number for reason, number in sorted(errors.items()) if number},
            previous=plan.previous_version,
            full_run=full_run,
            packages=_packages(),
            layout=plan.layout,
        )

    def _track_counts(self, manifest: Manifest) -> None:
        """Rows by what became of them, of nights too that end unpublished for them."""
        counts = {f"rows_{name}": number for name, number in manifest.counts.items()}
        self.tracker.log_metrics(counts | {f"errors_{reason}": number for reason, number in manifest.errors.items()})

    def _check(self, manifest: Manifest) -> None:
        embed, counts = self.config.embed, manifest.counts
        share = counts["errors"] / max(1, counts["read"])
        if share > embed.max_error_fraction:
            raise RunError(
                f"embed: {counts['errors']:,} of {counts['read']:,} rows were refused ({share:.2%}: "
                f"{_reasons(manifest.errors)}), embed.max_error_fraction allows {embed.max_error_fraction:.2%}; "
                f"nothing is published; see {join(self.folder.work, ERRORS)}, mend the catalog or raise the limit"
            )
        if self.plan.previous is None:
            return
        before = self.plan.previous.num_rows
        gone = max(counts["deleted"], before - manifest.rows) / max(1, before)
        if gone > embed.max_deleted_fraction:
            raise RunError(
                f"embed: {gone:.2%} of the {before:,} items of {self.plan.previous.version} are gone, "
                f"embed.max_deleted_fraction allows {embed.max_deleted_fraction:.2%}; nothing is published; "
                "check that the catalog is whole, or raise the limit"
            )

    def _drift(self, manifest: Manifest) -> dict[str, Any] | None:
        previous = self.plan.previous
        rows = self.config.embed.drift_rows
        if previous is None or not rows or not self._same_ids(previous.manifest.item_id_type):
            return None
        target = self.folder.target(self.state.version)
        new = EarlierRows(tuple(join(target, file.path) for file in manifest.files))
        old = EarlierRows(tuple(previous.paths))
        try:
            return measure_drift(new, manifest.format, old, previous.manifest.format, rows)
        except (BeerayError, OSError, pa.ArrowException) as error:  # a report must not stop the night
            self.console.line(f"no drift report: {str(error).partition(chr(10))[0]}")
            return None


def totals(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens encoded and seconds that actors spent encoding, over all attempts."""
    timings = [json.loads(report["timings"]) for report in reports]
    return {
        "encoded_tokens": sum(one["tokens"] for one in timings),
        "encoder_s": sum(one["encode_s"] for one in timings),
    }


def _reasons(errors: dict[str, int]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in errors.items() if number)


def _packages() -> dict[str, str]:
    from importlib.metadata import version

    names = ("beeray", "torch", "sentence-transformers", "transformers", "tokenizers", "ray", "pyarrow")
    return {name: version(name) for name in names}
