"""Night after night: only what changed is encoded, too much gone or refused stops a publication, readers read on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_jobs import Ended, Jobs, furthest, hash_of, rows_of, stored, texts_of
from tiny_encoder import MAX_POSITIONS

from beeray.data.embeddings import LATEST, Embeddings, read_latest
from beeray.data.generated_catalog import BAD_KINDS, GeneratedCatalog
from beeray.data.quarantine import ERROR_SCHEMA
from beeray.errors import DataError
from beeray.runtime.embedding_plan import full_run_reasons

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_ITEMS, NUM_BAD, SEED = 3000, 18, 5
SHARES = {"changed": 0.05, "deleted": 0.02, "added": 0.03}
SHORT, SHORT_BAD = 1000, 30
"""A catalog of which two thirds are gone, with three bad rows in a hundred."""

TEMPLATE = "{description}. {title}"
"""What a night changes stands first, so that it is not cut off."""

FIRST = GeneratedCatalog(NUM_ITEMS, SEED, 0, bad=NUM_BAD, mean_tokens=16, **SHARES)
SECOND = GeneratedCatalog(NUM_ITEMS, SEED, 1, bad=NUM_BAD, mean_tokens=16, **SHARES)
THIRD = GeneratedCatalog(SHORT, SEED, 0, bad=SHORT_BAD, mean_tokens=16)
REASONS = {
    "null_text": "null_text",
    "blank_text": "empty_text",
    "huge_text": "too_long_text",
    "invalid_utf8": "broken_unicode",
    "null_id": "null_item_id",
    "repeated_id": "repeated_item_id",
}
"""What the job calls the generator's kinds of bad rows."""


def items_of(catalog: GeneratedCatalog) -> dict[str, str]:
    """Texts of the good rows, by id."""
    return texts_of(pa.concat_tables(dataclasses.replace(catalog, bad=0).batches()), TEMPLATE)


@dataclass(frozen=True)
class Night:
    """A job and what was published after it.

    Attributes:
        rows: every vector's bytes, read from a version that was opened before the next night.
    """

    ended: Ended
    published: Embeddings
    rows: dict[str, bytes]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Jobs:
    folder = tmp_path_factory.mktemp("nights")
    for name, catalog in (("first", FIRST), ("second", SECOND), ("third", THIRD)):
        catalog.write(folder / name, num_files=3)
    data = {"catalog": {"path": "first", "template": TEMPLATE}}
    return Jobs(folder, {"data": data, "encoder": {"max_seq_length": MAX_POSITIONS}})


def a_night(jobs: Jobs, *arguments: str, path: str = "published") -> Night:
    ended = jobs.embed(*arguments, f"embed.path={path}")
    assert ended.code == 0, ended.err[-3000:]
    return Night(ended, jobs.published(path), stored(jobs.published(path)))


@pytest.fixture(scope="module")
def first(jobs: Jobs) -> Night:
    return a_night(jobs, "data.catalog.path=first")


@pytest.fixture(scope="module")
def second(jobs: Jobs, first: Night) -> Night:
    return a_night(jobs, "data.catalog.path=second")


@pytest.fixture(scope="module")
def in_full(jobs: Jobs) -> Night:
    """The second night's catalog where nothing was published before, dealt to more files."""
    return a_night(jobs, "data.catalog.path=second", "embed.rows_per_file=250", path="in-full")


@dataclass(frozen=True)
class Refused:
    """The third night's catalog: refused for its bad rows, then for what is gone, then let through.

    Attributes:
        pointers: content of `latest` before, and after each refusal.
        listed: rows in the errors folder that the first refusal names.
    """

    errors: Ended
    deleted: Ended
    pointers: list[Any]
    listed: int
    allowed: Night


@pytest.fixture(scope="module")
def refused(jobs: Jobs, second: Night) -> Refused:
    path = str(jobs.folder / "published")
    pointers = [read_latest(path)]
    command = ["data.catalog.path=third"]
    errors = jobs.embed(*command)
    pointers.append(read_latest(path))
    listed = pq.read_table(errors.complaint.partition("; see ")[2].partition(",")[0]).num_rows
    command.append("embed.max_error_fraction=0.05")
    deleted = jobs.embed(*command)
    pointers.append(read_latest(path))
    allowed = a_night(jobs, *command, "embed.max_deleted_fraction=0.9")
    return Refused(errors, deleted, pointers, listed, allowed)


@pytest.fixture(scope="module")
def another_prefix(jobs: Jobs, refused: Refused) -> Night:
    limits = ("embed.max_error_fraction=0.05", "embed.keep_versions=2")
    return a_night(jobs, "data.catalog.path=third", "encoder.prefix=query: ", *limits)


def test_a_night_encodes_what_changed_and_what_is_new_and_nothing_else(second: Night) -> None:
    counts, difference = second.published.manifest.counts, SECOND.counts
    assert (difference.num_changed, difference.num_deleted, difference.num_added) == (150, 60, 90)
    expected = {
        "read": difference.num_rows,
        "encoded": 150 + 90,
        "reused": NUM_ITEMS - 150 - 60,
        "recovered": 0,
        "new": 90,
        "changed": 150,
        "deleted": 60,
        "repeated": 0,
        "errors": NUM_BAD,
    }
    assert counts == expected
    assert second.ended.record["counts"] == expected
    assert (second.published.num_rows, second.published.manifest.full_run) == (NUM_ITEMS - 60 + 90, [])


def test_reused_vectors_are_bit_for_bit_those_of_the_night_before(first: Night, second: Night) -> None:
    difference = SECOND.difference()
    changed, added, deleted = (
        set(one.to_pylist()) for one in (difference.changed, difference.added, difference.deleted)
    )
    assert first.rows.keys() - second.rows.keys() == deleted
    assert second.rows.keys() - first.rows.keys() == added
    moved = {
        item_id for item_id in first.rows.keys() & second.rows.keys() if first.rows[item_id] != second.rows[item_id]
    }
    assert moved == changed


@pytest.mark.long
def test_the_publication_is_that_of_a_full_run(second: Night, in_full: Night) -> None:
    ours, theirs = rows_of(second.published), rows_of(in_full.published)
    assert len(in_full.published.paths) > len(second.published.paths)
    assert in_full.published.manifest.counts["encoded"] == len(theirs.ids)
    assert (ours.ids, ours.hashes) == (theirs.ids, theirs.hashes)
    assert furthest(ours.vectors, theirs.vectors) < 1e-6


@pytest.mark.long
def test_a_full_run_of_the_first_night_would_be_another(first: Night, in_full: Night) -> None:
    common = sorted(set(SECOND.difference().changed.to_pylist()))
    assert all(first.rows[item_id] != in_full.rows[item_id] for item_id in common)


def test_ids_texts_and_vectors_belong_together_after_two_nights(jobs: Jobs, second: Night) -> None:
    texts, rows = items_of(SECOND), rows_of(second.published)
    assert rows.ids == list(texts)
    assert rows.hashes == [hash_of(text) for text in texts.values()]
    assert furthest(rows.vectors, jobs.encode(list(texts.values()))) < 1e-5


def test_bad_rows_are_counted_by_reason_and_listed_and_do_not_stop_the_job(first: Night) -> None:
    bad = FIRST.counts.num_bad
    assert set(bad) == set(BAD_KINDS) and all(number == 3 for number in bad.values())
    manifest = first.published.manifest
    assert manifest.errors == {REASONS[kind]: number for kind, number in bad.items()}
    listed = [pq.read_table(f"{first.published.folder}/{file.path}") for file in manifest.error_files]
    assert all(table.schema.equals(ERROR_SCHEMA) for table in listed)
    assert [table.num_rows for table in listed] == [file.rows for file in manifest.error_files]
    rows = pa.concat_tables(listed)
    assert sorted(rows["reason"].to_pylist()) == sorted(REASONS[kind] for kind in BAD_KINDS for _ in range(3))
    repeated = rows.filter(pa.compute.equal(rows["reason"], "repeated_item_id"))["item_id"].to_pylist()
    assert set(repeated) <= set(first.rows)
    others = set(rows["item_id"].to_pylist()) - set(repeated) - {None}
    assert len(others) == 4 * 3 and not others & set(first.rows)
    assert f"refused {NUM_BAD} of {NUM_ITEMS + NUM_BAD:,} rows (" in first.ended.err
    assert set(first.rows) == set(items_of(FIRST))


@pytest.mark.long
def test_the_same_catalog_again_is_up_to_date_and_publishes_nothing(jobs: Jobs, in_full: Night) -> None:
    path = jobs.folder / "in-full"
    before = {one: one.stat().st_mtime_ns for one in path.rglob("*") if one.name != ".lock"}
    ended = jobs.embed("data.catalog.path=second", "embed.path=in-full")
    assert ended.record["published"] is False
    assert ended.record["version"] == in_full.published.version
    assert f"up to date: {in_full.published.version} was made from this catalog by this encoder" in ended.err
    assert {one: one.stat().st_mtime_ns for one in path.rglob("*") if one.name != ".lock"} == before


def test_unchanged_items_have_not_drifted(first: Night, second: Night) -> None:
    assert first.published.manifest.drift is None
    drift = second.published.manifest.drift
    assert drift is not None
    assert drift["rows"] == 2000
    assert (drift["cosine_median"], drift["cosine_p1"]) == (pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert drift["neighbours_kept"] == 1


@pytest.mark.long
def test_too_many_bad_rows_stop_the_publication(refused: Refused) -> None:
    said = refused.errors.complaint
    assert said.startswith(f"beeray embed: embed: {SHORT_BAD} of {SHORT + SHORT_BAD:,} rows were refused (2.91%: ")
    assert "embed.max_error_fraction allows 1.00%; nothing is published; see " in said
    assert refused.listed == SHORT_BAD
    assert refused.pointers[1] == refused.pointers[0]


@pytest.mark.long
def test_too_many_disappeared_items_stop_the_publication_without_encoding_again(refused: Refused) -> None:
    said = refused.deleted.complaint
    assert "embed.max_deleted_fraction allows 50.00%; nothing is published; check that the catalog is whole" in said
    assert f" of the {NUM_ITEMS + 30:,} items of {refused.pointers[0]['version']} are gone" in said
    assert refused.pointers[2] == refused.pointers[0]
    files = len(refused.allowed.published.paths)
    assert f"{files} of {files} files are there already" in refused.deleted.err


@pytest.mark.long
def test_a_raised_limit_publishes_what_was_encoded_before(refused: Refused) -> None:
    allowed, before, now = refused.allowed, items_of(SECOND), items_of(THIRD)
    files = len(allowed.published.paths)
    assert f"{files} of {files} files are there already" in allowed.ended.err
    assert "files are there already" not in refused.errors.err
    counts = allowed.published.manifest.counts
    assert counts["encoded"] == sum(before.get(item_id) != text for item_id, text in now.items()) > 0
    assert counts["deleted"] == len(before.keys() - now.keys())
    assert allowed.rows.keys() == now.keys()


@pytest.mark.long
def test_another_prefix_encodes_everything_and_says_why(another_prefix: Night, jobs: Jobs) -> None:
    reason = "prefix changed ('passage: ' → 'query: ')"
    assert f"full run: {reason}\n" in another_prefix.ended.err
    assert another_prefix.published.manifest.full_run == [reason]
    counts = another_prefix.published.manifest.counts
    assert (counts["encoded"], counts["reused"], counts["deleted"]) == (SHORT, 0, 0)
    texts = items_of(THIRD)
    assert (
        furthest(rows_of(another_prefix.published).vectors, jobs.encode(list(texts.values()), prompt="query: ")) < 1e-5
    )
    drift = another_prefix.published.manifest.drift
    assert drift is not None and drift["cosine_median"] < 0.9999


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"template": "{title}"}, "template changed ('{description}. {title}' → '{title}')"),
        ({"prefix": ""}, "prefix changed ('passage: ' → '')"),
        ({"max_seq_length": 32}, "max_seq_length changed (64 → 32)"),
        ({"precision": "bf16"}, "precision changed ('fp32' → 'bf16')"),
        ({"dtype": "float16"}, "dtype changed ('float32' → 'float16')"),
        ({"dims": 8}, "dims changed (32 → 8)"),
        ({"normalize": True}, "normalize changed (False → True)"),
        ({"pooling": "cls"}, "pooling changed (None → 'cls')"),
    ],
)
def test_every_setting_that_moves_vectors_is_a_reason_for_a_full_run(
    first: Night, changed: dict[str, Any], reason: str
) -> None:
    manifest = first.published.manifest
    assert full_run_reasons(first.published, manifest.model, manifest.encoding) == []
    assert full_run_reasons(first.published, manifest.model, {**manifest.encoding, **changed}) == [reason]


def test_another_model_is_a_reason_and_another_name_of_the_same_is_none(first: Night) -> None:
    manifest = first.published.manifest
    encoding, known = manifest.encoding, manifest.model["fingerprint"]
    assert full_run_reasons(first.published, {"name": "moved", "fingerprint": known}, encoding) == []
    other = {"name": manifest.model["name"], "fingerprint": "f" * 16}
    assert full_run_reasons(first.published, other, encoding) == [f"the model changed ({known} → {'f' * 16})"]
    both = full_run_reasons(first.published, other, {**encoding, "dims": 8})
    assert len(both) == 2
    assert full_run_reasons(None, manifest.model, encoding) == ["nothing is published yet"]


@pytest.mark.long
def test_a_reader_of_an_earlier_version_reads_on_until_it_is_removed(
    jobs: Jobs, first: Night, second: Night, refused: Refused, another_prefix: Night
) -> None:
    assert stored(refused.allowed.published) == refused.allowed.rows
    refused.allowed.published.verify()
    kept = [refused.allowed.published.version, another_prefix.published.version]
    assert sorted(one.name for one in (jobs.folder / "published" / "versions").iterdir()) == kept
    with pytest.raises(DataError, match="no such file"):
        list(second.published.iter_batches())
    versions = [one.published.version for one in (first, second, refused.allowed, another_prefix)]
    assert versions == sorted(versions)


@pytest.mark.long
def test_each_job_has_one_mlflow_run_refused_attempts_included(
    jobs: Jobs, second: Night, refused: Refused, another_prefix: Night
) -> None:
    for night in (second, refused.allowed, another_prefix):
        (run,) = jobs.tracked(night.published.version)
        assert run.info.status == "FINISHED"
        assert run.info.run_id == night.ended.record["mlflow_run"]
        counts = night.published.manifest.counts
        tracked = {name: run.data.metrics[f"rows_{name}"] for name in ("encoded", "reused", "errors", "deleted")}
        assert tracked == {name: counts[name] for name in tracked}
        assert run.data.metrics["drift_cosine_median"] == pytest.approx(night.published.manifest.drift["cosine_median"])
        assert run.data.tags["previous"] == night.published.manifest.previous
    (run,) = jobs.tracked(second.published.version)
    assert run.data.metrics["errors_empty_text"] == 3
    assert run.data.tags["full_run"] == "no"
    experiment = jobs.client.get_experiment_by_name("beeray")
    runs = jobs.client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs if "version" not in run.data.tags] == []


def flip_a_vector(jobs: Jobs, night: Night) -> str:
    """Change one bit of one published vector, and give the file its old times back."""
    path = Path(night.published.paths[0])
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(at) for at in range(group.num_columns)]
    place = next(column for column in columns if column.path_in_schema.startswith("embedding"))
    data = bytearray(path.read_bytes())
    data[place.data_page_offset + place.total_compressed_size // 2] ^= 0x40
    path.write_bytes(data)
    return "warning: files of earlier embeddings are damaged; their items are encoded anew"


def remove_a_file(jobs: Jobs, night: Night) -> str:
    Path(night.published.paths[0]).unlink()
    return "full run: the current publication is damaged ("


def empty_the_pointer(jobs: Jobs, night: Night) -> str:
    (Path(night.published.path) / LATEST).write_bytes(b"")
    return "full run: the current publication is damaged ("


@pytest.mark.parametrize(
    "damage",
    [pytest.param(damage, marks=pytest.mark.long) for damage in (flip_a_vector, remove_a_file, empty_the_pointer)],
)
def test_a_damaged_publication_is_published_over_and_its_damage_goes_nowhere(
    jobs: Jobs, damage: Callable[[Jobs, Night], str]
) -> None:
    path = f"damaged-by-{damage.__name__}"
    before = a_night(jobs, "data.catalog.path=third", "embed.max_error_fraction=0.05", path=path)
    said = damage(jobs, before)
    after = a_night(jobs, "data.catalog.path=second", path=path)
    assert said in after.ended.err
    texts = items_of(SECOND)
    vectors = rows_of(after.published)
    assert vectors.ids == sorted(texts)
    assert furthest(vectors.vectors, jobs.encode([texts[item] for item in vectors.ids])) < 1e-5
    assert after.published.manifest.previous in (before.published.version, None)
