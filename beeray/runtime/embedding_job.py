"""One nightly job from a catalog to a publication, step by step.

plan      what is computed from what; what may be reused; where an earlier attempt stopped
deal      the catalog to ranges of id hashes; bad rows aside
embed     every range that is not done yet (`embedding_pipeline`)
check     refused rows and disappeared items against what the config allows
publish   drift report, manifest, pointer; then everything older goes
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from beeray.config import Config, config_digest
from beeray.console import Console, StageReporter
from beeray.data.dealing import ERRORS, GROUP_ROWS, Dealing, deal_catalog, dealt_is_whole
from beeray.data.drift import measure_drift
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.embedding_units import UnitTask, item_id_type, sample_texts
from beeray.data.embeddings import Embeddings
from beeray.data.manifest import Manifest, PublishedFile
from beeray.data.publishing import JobFolder, JobState, clean_up, publish, publish_errors
from beeray.data.reuse import EarlierRows, same_kind
from beeray.data.storage import join, make_dir, remove_tree
from beeray.data.tables import Table
from beeray.errors import BeerayError, RunError
from beeray.runtime.embedder import EmbedderTask, calibrated
from beeray.runtime.embedding_pipeline import Pipeline
from beeray.runtime.embedding_progress import UnitProgress
from beeray.runtime.monitor import listening
from beeray.runtime.tracking import Tracker

UNITS_PER_ACTOR = 8
MIN_UNITS = 16
"""At least so many units, so that all actors have work to the end and a failure costs little."""
SMALLEST_UNIT = 256
CALIBRATION_TEXTS = 512


@dataclass(frozen=True)
class JobPlan:
    """What a job computes from what.

    Attributes:
        model: name and fingerprint.
        encoding: everything that decides an item's vector but the model.
        catalog, template: what is read, and how a text is made of it.
        previous: the current publication, if there is one.
        full_run: why nothing of it can be reused; empty when it can.
        format: of the vectors.
        layout: settings that decide which rows are refused and how files are cut.
    """

    model: dict[str, str]
    encoding: dict[str, Any]
    catalog: Table
    catalog_source: dict[str, str]
    template: str
    previous: Embeddings | None
    full_run: list[str]
    format: EmbeddingFormat
    layout: dict[str, int]

    @property
    def encoding_digest(self) -> str:
        """What vectors can be reused for."""
        return config_digest({"model": self.model["fingerprint"], **self.encoding})

    def digest(self) -> str:
        """Identity of the job: the same command after a kill has the same."""
        return config_digest(
            {
                "encoding": self.encoding_digest,
                "catalog": self.catalog_source,
                "previous": self.previous.version if self.previous else None,
                "full_run": self.full_run,
                "layout": self.layout,
            }
        )


def full_run_reasons(
    previous: Embeddings | None,
    model: dict[str, str],
    encoding: dict[str, Any],
    missing: str = "nothing is published yet",
) -> list[str]:
    """Why vectors of the current publication cannot be reused, one reason a difference; empty when they can.

    Args:
        missing: why there is no publication, where there is none.
    """
    if previous is None:
        return [missing]
    before = previous.manifest
    reasons: list[str] = []
    if before.model["fingerprint"] != model["fingerprint"]:
        reasons.append(f"the model changed ({before.model['fingerprint']} → {model['fingerprint']})")
    for key in sorted(encoding.keys() | before.encoding.keys()):
        old, new = before.encoding.get(key), encoding.get(key)
        if old != new:
            reasons.append(f"{key} changed ({old!r} → {new!r})")
    return reasons


class EmbeddingJob:
    """Carries out a plan.

    Args:
        embedder: what the actors load; its format is completed by the job.
        tokenizer: as JSON, see `bare_tokenizer`.
        unfinished: other jobs on this path that stopped.
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
    ) -> None:
        self.config, self.plan, self.embedder, self.tokenizer = config, plan, embedder, tokenizer
        self.console, self.tracker, self.folder, self.state = console, tracker, folder, state
        self.unfinished = unfinished
        self.summary: dict[str, float] = {}

    def run(self) -> Manifest:
        """Do what is not done yet and publish. Ray must be running.

        Raises:
            BeerayError: the catalog cannot be read, or too much of it is bad or gone; nothing is published then.
        """
        self._deal()
        self._calibrate()
        reports = self._embed()
        manifest = self._manifest(reports)
        self._check(manifest)
        manifest = dataclasses.replace(manifest, drift=self._drift(manifest))
        publish(self.folder.path, manifest)
        try:
            clean_up(self.folder.path, self.config.embed.keep_versions, [self.state, *self.unfinished])
        except (BeerayError, OSError) as error:
            self.console.line(f"published, but old versions and this job's own files could not be removed: {error}")
        return manifest

    def _keep(self, **changes: Any) -> None:
        self.state = dataclasses.replace(self.state, **changes)
        self.folder.save(self.state)

    def _deal(self) -> None:
        dealing = self._dealing()
        if self.state.dealt is not None and dealt_is_whole(dealing, self.state.dealt["group_bytes"]):
            self.console.line(f"going on with {self.state.version}: an earlier attempt dealt the catalog")
            return
        self.unfinished = self.folder.trim(self.unfinished)
        for left in (self.folder.work, self.folder.target(self.state.version)):
            remove_tree(left)
        make_dir(self.folder.target(self.state.version))
        self._keep(dealt=None)
        with StageReporter(self.console) as reporter:
            dealt = deal_catalog(self.plan.catalog, dealing, reporter)
        if not sum(dealt.range_rows):
            raise RunError(
                f"embed: no row of the catalog can be embedded ({_reasons(dealt.errors) or 'it is empty'}); "
                f"nothing is published; see {join(self.folder.work, ERRORS)}"
            )
        self._keep(dealt=dataclasses.asdict(dealt))

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
                if len(done) < self.state.num_ranges:
                    embedder = dataclasses.replace(self.embedder, format=self.state.format)
                    missing = sorted(set(range(self.state.num_ranges)) - {one["range"] for one in done})
                    plan = [(number, self.state.dealt["range_rows"][number]) for number in missing]
                    Pipeline(self._units(), embedder, plan, monitor).run(self.config)
        finally:
            progress.close()
        reports = self.folder.reports()
        if len(reports) != self.state.num_ranges:
            raise RunError(
                f"embed: {len(reports)} of {self.state.num_ranges} files were reported; run the same command again"
            )
        self.summary = progress.summary() | totals(reports)
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
        )

    def _earlier(self) -> list[EarlierRows]:
        """Rows that may be reused: of the publication, and of jobs that were stopped for good."""
        assert self.state.dealt is not None
        earlier: list[EarlierRows] = []
        previous = self.plan.previous
        if previous is not None and not self.plan.full_run:
            if self._same_ids(previous.manifest.item_id_type):
                earlier.append(EarlierRows(tuple(previous.paths)))
            else:
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
        errors["repeated_item_id"] += counts.pop("repeated_item_id")
        accounted = sum(report["rows"] for report in reports) + counts["repeated"] + errors["repeated_item_id"]
        dealt = sum(self.state.dealt["range_rows"])
        if accounted != dealt:
            raise RunError(
                f"embed: {accounted:,} of {dealt:,} dealt rows are accounted for; nothing is published; "
                f"remove {self.folder.work} and run the same command again"
            )
        plan = self.plan
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
            error_files=publish_errors(self.folder.work, self.folder.target(self.state.version)),
            previous=plan.previous.version if plan.previous else None,
            full_run=full_run,
            packages=_packages(),
            layout=plan.layout,
        )

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


def choose_num_ranges(config: Config, rows: int, previous: Embeddings | None) -> int:
    """Files of a publication: as many as last time while that is near `embed.rows_per_file`, to keep sizes stable."""
    embed = config.embed
    smallest = max(1, min(max(MIN_UNITS, (embed.num_actors or 0) * UNITS_PER_ACTOR), rows // SMALLEST_UNIT))
    wanted = max(smallest, math.ceil(rows / embed.rows_per_file))
    if previous is not None:
        before = len(previous.manifest.files)
        if wanted / 2 <= before <= wanted * 2:
            return before
    return wanted


def new_state(config: Config, plan: JobPlan, digest: str, unfinished: list[JobState]) -> JobState:
    """State of a job that was not begun before."""
    version = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest[:8]}"
    previous = plan.previous
    if previous is not None and version <= previous.version:  # two within a second, or a clock that went back
        version = f"{previous.version}.{digest[:8]}"
    form = plan.format
    if form.dtype == "int8" and config.embed.incremental:
        scales = [left.format.scale for left in unfinished if left.encoding_digest == plan.encoding_digest]
        if previous is not None and not plan.full_run:
            scales.insert(0, previous.manifest.format.scale)
        form = dataclasses.replace(form, scale=next((scale for scale in scales if scale is not None), None))
    rows = plan.catalog.estimated_rows()
    ranges = choose_num_ranges(config, rows, previous)
    groups = min(ranges, max(1, math.ceil(rows / GROUP_ROWS)))
    return JobState(digest, version, ranges, groups, plan.encoding_digest, form)


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
