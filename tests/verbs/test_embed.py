"""The nightly job publishes what `SentenceTransformer.encode` makes of the same texts, every item once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from embedding_jobs import PREFIX, SEQ_LENGTH, TEMPLATE, Ended, Jobs, files_of, furthest, hash_of, rows_of, texts_of
from tiny_encoder import HIDDEN, SYLLABLES, build_tiny_encoder

from beeray.core.encoder import load_encoder
from beeray.core.fingerprint import model_fingerprint
from beeray.data.embeddings import Embeddings

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

NUM_ITEMS, NUM_FILES, DIMS = 1500, 8, 16


def a_catalog() -> pa.Table:
    """Titles and descriptions of 1 to 44 words in all, a tenth without description; some look odd in a CSV."""
    draw = np.random.default_rng(3)
    words = [" ".join(draw.choice(SYLLABLES, int(number))) for number in draw.integers(1, 40, NUM_ITEMS)]
    titles = [" ".join(draw.choice(SYLLABLES, int(number))) for number in draw.integers(1, 5, NUM_ITEMS)]
    titles[:4] = ['Bä "bo", be', "two\nlines", " spaces at the ends  ", "null"]
    descriptions = [None if place % 10 == 9 else text for place, text in enumerate(words)]
    ids = [f"sku-{number}" for number in draw.permutation(NUM_ITEMS)]
    return pa.table({"item_id": ids, "title": titles, "description": descriptions})


@pytest.fixture(scope="module")
def catalog() -> pa.Table:
    return a_catalog()


@pytest.fixture(scope="module")
def texts(catalog: pa.Table) -> dict[str, str]:
    return texts_of(catalog)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, ray_session: None, catalog: pa.Table) -> Jobs:
    """The same catalog as parquet in parts, CSV and feather, and once more with integers for ids."""
    folder = tmp_path_factory.mktemp("equal")
    (folder / "catalog").mkdir()
    for part in range(3):
        start, stop = NUM_ITEMS * part // 3, NUM_ITEMS * (part + 1) // 3
        pq.write_table(catalog.slice(start, stop - start), folder / "catalog" / f"{part}.parquet", row_group_size=200)
    pyarrow.csv.write_csv(catalog, folder / "catalog.csv")
    pyarrow.feather.write_feather(catalog, folder / "catalog.feather")
    numbers = pa.array([int(one.removeprefix("sku-")) - 700 for one in catalog["item_id"].to_pylist()], pa.int32())
    pq.write_table(catalog.set_column(0, "item_id", numbers), folder / "numbers.parquet")
    return Jobs(folder, {"embed": {"rows_per_file": -(-NUM_ITEMS // NUM_FILES)}})


@pytest.fixture(scope="module")
def night(jobs: Jobs) -> Ended:
    """The parquet catalog with the config as it is: fp32, float32, all dimensions, with prefix."""
    return jobs.embed()


@pytest.fixture(scope="module")
def published(jobs: Jobs, night: Ended) -> Embeddings:
    assert night.code == 0, night.err[-3000:]
    return jobs.published()


@pytest.fixture(scope="module")
def short(jobs: Jobs) -> Embeddings:
    """Integer ids, bf16, float16, the first dimensions at unit length."""
    settings = ("embed.precision=bf16", "embed.dtype=float16", f"embed.dims={DIMS}", "embed.normalize=true")
    ended = jobs.embed("data.catalog.path=numbers.parquet", "embed.path=short", *settings)
    assert ended.code == 0, ended.err[-3000:]
    return jobs.published("short")


@pytest.fixture(scope="module")
def coded(jobs: Jobs) -> Embeddings:
    """A feather catalog as int8 codes."""
    ended = jobs.embed("data.catalog.path=catalog.feather", "embed.path=coded", "embed.dtype=int8")
    assert ended.code == 0, ended.err[-3000:]
    return jobs.published("coded")


def test_vectors_are_those_of_encode(jobs: Jobs, published: Embeddings, texts: dict[str, str]) -> None:
    rows = rows_of(published)
    assert rows.ids == list(texts)
    assert rows.vectors.shape == (NUM_ITEMS, HIDDEN)
    assert furthest(rows.vectors, jobs.encode(list(texts.values()))) < 1e-5


def test_some_texts_were_cut_and_some_were_not(jobs: Jobs, texts: dict[str, str]) -> None:
    """Otherwise the tests around this one would prove less than they say."""
    model = load_encoder(str(jobs.encoder), max_seq_length=64)
    lengths = [len(model.tokenizer(PREFIX + text)["input_ids"]) for text in texts.values()]
    assert 100 < sum(length > SEQ_LENGTH for length in lengths) < NUM_ITEMS - 100


def test_another_encoder_prefix_length_or_text_gives_other_vectors(
    jobs: Jobs, published: Embeddings, texts: dict[str, str], tmp_path: Path
) -> None:
    vectors, inputs = rows_of(published).vectors, list(texts.values())
    others = {
        "encoder": jobs.encode(inputs, encoder=build_tiny_encoder(tmp_path / "other", seed=1)),
        "prefix": jobs.encode(inputs, prompt="query: "),
        "length": jobs.encode(inputs, max_seq_length=SEQ_LENGTH + 1),
        "text": jobs.encode([*inputs[1:], inputs[0]]),
    }
    assert [name for name, other in others.items() if furthest(vectors, other) < 0.01] == []


def test_bf16_of_the_first_dimensions_at_unit_length_is_close_to_encode(
    jobs: Jobs, short: Embeddings, texts: dict[str, str]
) -> None:
    rows = rows_of(short)
    by_number = {int(item_id.removeprefix("sku-")) - 700: text for item_id, text in texts.items()}
    assert rows.ids == sorted(by_number)
    inputs = [by_number[one] for one in rows.ids]
    expected = jobs.encode(inputs, truncate_dim=DIMS, normalize_embeddings=True)
    assert furthest(rows.vectors, expected) < 5e-3
    assert furthest(rows.vectors, expected) > 1e-4, "neither bf16 nor float16"
    np.testing.assert_allclose(np.linalg.norm(rows.vectors, axis=1), 1, atol=2e-3)
    unit = jobs.encode(inputs, normalize_embeddings=True)[:, :DIMS]
    assert furthest(rows.vectors, unit) > 0.05, "brought to unit length before the cut"


def test_int8_codes_are_within_half_a_step(jobs: Jobs, coded: Embeddings, texts: dict[str, str]) -> None:
    rows, scale = rows_of(coded), coded.manifest.format.scale
    assert scale is not None
    expected = jobs.encode(list(texts.values()))
    clipped = np.abs(expected) > 127 * scale
    assert clipped.mean() < 1e-3
    assert furthest(rows.vectors, np.clip(expected, -127 * scale, 127 * scale)) < scale / 2 + 1e-5
    assert furthest(rows.vectors, expected) > scale / 4


def test_every_item_is_there_once_with_the_hash_of_its_text(published: Embeddings, texts: dict[str, str]) -> None:
    rows = rows_of(published)
    assert len(rows.ids) == len(set(rows.ids)) == published.num_rows == NUM_ITEMS
    assert rows.hashes == [hash_of(texts[item_id]) for item_id in rows.ids]


@pytest.mark.parametrize(
    ("name", "id_type", "number_type", "width"),
    [
        ("published", pa.string(), pa.float32(), HIDDEN),
        pytest.param("short", pa.int32(), pa.float16(), DIMS),
        pytest.param("coded", pa.string(), pa.int8(), HIDDEN),
    ],
)
def test_files_are_plain_parquet_sorted_by_ids_of_their_own_type(
    request: pytest.FixtureRequest, name: str, id_type: pa.DataType, number_type: pa.DataType, width: int
) -> None:
    version: Embeddings = request.getfixturevalue(name)
    assert len(version.paths) == NUM_FILES
    assert version.manifest.item_id_type == str(id_type)
    for path, file in zip(version.paths, version.manifest.files, strict=True):
        table = pq.ParquetFile(path).read()
        assert table.column_names == ["item_id", "embedding", "content_hash"]
        assert table.schema.field("item_id").type == id_type
        vector = table.schema.field("embedding").type
        assert (vector.value_type, vector.list_size) == (number_type, width)
        assert table.schema.field("content_hash").type == pa.binary(16)
        ids = table["item_id"].to_pylist()
        assert ids == sorted(ids) and len(ids) == file.rows > 100


def test_a_csv_and_a_feather_catalog_give_the_same_files(jobs: Jobs, published: Embeddings, coded: Embeddings) -> None:
    ended = jobs.embed("data.catalog.path=catalog.csv", "embed.path=from-csv")
    assert ended.code == 0, ended.err[-3000:]
    assert files_of(jobs.published("from-csv")) == files_of(published)
    assert [(name, rows) for name, rows, _ in files_of(coded)] == [
        (name, rows) for name, rows, _ in files_of(published)
    ]
    assert rows_of(coded).hashes == rows_of(published).hashes


def test_a_relative_path_is_below_the_folder_of_the_command_and_nothing_else_is_left_there(
    jobs: Jobs, published: Embeddings
) -> None:
    assert published.path == str(jobs.folder / "published")
    assert sorted(one.name for one in Path(published.path).iterdir()) == [".lock", "latest", "versions"]
    left = [one.name for one in Path(published.folder).iterdir() if not one.name.startswith("part-")]
    assert left == ["_manifest.json"]


def test_what_a_command_says_and_returns(night: Ended, published: Embeddings) -> None:
    record = night.record
    assert (record["version"], record["rows"], record["files"]) == (published.version, NUM_ITEMS, NUM_FILES)
    assert record["published"] is True
    assert record["full_run"] == ["nothing is published yet"]
    assert record["counts"]["encoded"] == record["counts"]["read"] == NUM_ITEMS
    assert "full run: nothing is published yet\n" in night.err
    assert f"published {published.version}: 1,500 items (1,500 encoded, 0 reused, 0 deleted)" in night.err


def test_the_manifest_tells_what_made_it(jobs: Jobs, published: Embeddings) -> None:
    manifest = published.manifest
    assert manifest.model["name"] == str(jobs.encoder)
    assert manifest.model["fingerprint"] == model_fingerprint(load_encoder(str(jobs.encoder), max_seq_length=8))
    assert manifest.encoding["template"] == TEMPLATE
    assert (manifest.encoding["prefix"], manifest.encoding["max_seq_length"]) == (PREFIX, SEQ_LENGTH)
    assert (manifest.previous, manifest.drift, manifest.errors) == (None, None, {})
    assert manifest.packages["torch"]


def test_mlflow_has_one_run_of_the_job_with_rates_over_time(jobs: Jobs, night: Ended, published: Embeddings) -> None:
    (run,) = jobs.tracked(published.version)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "nightly")
    assert run.info.run_id == night.record["mlflow_run"]
    assert run.data.tags["model_fingerprint"] == published.manifest.model["fingerprint"]
    assert run.data.tags["catalog_fingerprint"] == published.manifest.catalog["fingerprint"]
    assert (run.data.tags["previous"], run.data.tags["full_run"]) == ("none", "nothing is published yet")
    assert run.data.params["embed.dtype"] == "float32"
    metrics = run.data.metrics
    assert metrics["rows_encoded"] == NUM_ITEMS
    assert (metrics["rows_reused"], metrics["rows_errors"]) == (0, 0)
    assert metrics["bytes"] == sum(Path(path).stat().st_size for path in published.paths)
    assert metrics["encoded_tokens"] > 5 * NUM_ITEMS
    assert 0 < metrics["actor_utilisation"] <= 1
    assert metrics["encode_queue_s"] >= 0 and metrics["write_queue_s"] >= 0
    for name in ("rows_per_s", "tokens_per_s"):
        history = jobs.client.get_metric_history(run.info.run_id, name)
        assert sorted(one.step for one in history) == list(range(1, NUM_FILES + 1))
        assert all(one.value > 0 for one in history)
    done = sorted(jobs.client.get_metric_history(run.info.run_id, "rows_done"), key=lambda one: one.step)
    assert [one.value for one in done] == sorted(one.value for one in done) and done[-1].value == NUM_ITEMS
    assert "manifest.json" in {one.path for one in jobs.client.list_artifacts(run.info.run_id)}
