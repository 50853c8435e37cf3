"""A unit of the nightly job, from dealt texts to a file: the same bytes each time, the tokens that `encode` sees."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tiny_encoder import MAX_POSITIONS, SYLLABLES, build_tiny_encoder

from beeray.core.encoder import load_encoder
from beeray.data.dealing import DEALT, ERRORS, SCATTERED, Dealing, deal_batch, gather_group, group_path, read_range
from beeray.data.embedding_format import EmbeddingFormat
from beeray.data.embedding_units import (
    TEXTS_AT_A_TIME,
    UnitTask,
    file_bytes,
    item_id_type,
    prepare_unit,
    sample_texts,
    tokenise,
    write_unit,
)
from beeray.data.id_ranges import hash_ids, ranges_of
from beeray.data.lease import LEASE, leased
from beeray.data.manifest import part_name
from beeray.data.reuse import EarlierRows
from beeray.data.storage import make_dir
from beeray.data.tokens import bare_tokenizer
from beeray.errors import RunError

DIM = 8
NUM_RANGES = 3
TEXTS = [
    "ba be bi",
    " leading and trailing \n",
    "",
    "Ünïcödé ÇA, punctuation... (and) 123",
    "ba" * 200,
    " ".join(SYLLABLES),
    "tab\tand\nnew line",
    "\u00a0no break\u2003space ",
    "[SEP] [CLS] [PAD]",
    "zero\u200bwidth \x00 nul",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> str:
    return bare_tokenizer(SentenceTransformer(str(tiny), device="cpu").tokenizer)


@pytest.fixture
def task(tmp_path: Path, tokenizer: str) -> UnitTask:
    return UnitTask(
        dealing=Dealing("{title}", 1000, NUM_RANGES, 2, str(tmp_path / "work")),
        target=str(tmp_path / "target"),
        item_id_type=pa.string(),
        earlier=(),
        tokenizer=tokenizer,
        prefix="",
        max_seq_length=16,
        format=EmbeddingFormat("float32", DIM, False),
        rows_per_row_group=10,
    )


def deal(task: UnitTask, items: list[tuple[Any, str]], kind: pa.DataType | None = None) -> None:
    how = task.dealing
    for name in (SCATTERED, DEALT, ERRORS):
        make_dir(f"{how.folder}/{name}")
    rows = pa.array(range(len(items)), pa.int64())
    ids = pa.array([one for one, _ in items], kind)
    texts = pa.array([text for _, text in items], pa.string())
    deal_batch(pa.table({"item_id": ids, "title": texts, "row": rows}), how)
    names = [str(file) for file in (Path(how.folder) / SCATTERED).iterdir()]
    assert len(list(gather_group({"group": list(range(how.num_groups))}, how, names))) == how.num_groups


def some_items(num_items: int = 100) -> list[tuple[str, str]]:
    draw = np.random.default_rng(0)
    return [(f"sku-{one}", " ".join(draw.choice(SYLLABLES, 5))) for one in draw.permutation(num_items)]


def plan_row(task: UnitTask, number: int) -> pa.Table:
    dealt = read_range(task.dealing, number)
    rows = 0 if dealt is None else dealt.num_rows
    return pa.table({"range": pa.array([number], pa.int32()), "rows": pa.array([rows], pa.int64())})


def arrays(prepared: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    tokens, lengths = (np.frombuffer(prepared[name][0].as_py(), np.int32) for name in ("tokens", "lengths"))
    return tokens, lengths


def encoded(prepared: pa.Table, task: UnitTask, *, broken: bool = False) -> pa.Table:
    """What an encoder actor hands on; a vector is worked out of its text's tokens alone.

    Args:
        broken: every fifth vector, from the fourth on, is none.
    """
    tokens, lengths = arrays(prepared)
    texts = np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []
    vectors = np.array([vector_of(text) for text in texts], np.float32).reshape(-1, DIM)
    unusable = np.arange(len(texts)) % 5 == 3 if broken else np.zeros(len(texts), dtype=bool)
    stored = task.format.numbers(task.format.encode(vectors)).tobytes() if len(texts) else b""
    kept = prepared.select(["range", "item_id", "content_hash", "source", "source_row", "counts"])
    kept = kept.append_column("vectors", pa.array([stored], pa.large_binary()))
    kept = kept.append_column("unusable", pa.array([unusable.tobytes()], pa.binary()))
    return kept.append_column("timings", pa.array([json.dumps({"encode_s": 1.0, "encoded_at": 5.0})]))


def vector_of(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.md5(tokens.tobytes()).digest()[:4], "little")
    return np.random.default_rng(seed).normal(size=DIM).astype(np.float32)


def run_unit(task: UnitTask, number: int) -> tuple[dict[str, Any], bytes]:
    report = write_unit(encoded(prepare_unit(plan_row(task, number), task), task), task).to_pylist()[0]
    return report, (Path(task.target) / report["path"]).read_bytes()


def run_all(task: UnitTask) -> pa.Table:
    return pa.concat_tables(
        [pq.read_table(pa.BufferReader(run_unit(task, one)[1])) for one in range(task.dealing.num_ranges)]
    )


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {name: number for name, number in json.loads(report["counts"]).items() if number}


def test_a_unit_s_file_has_its_items_sorted_and_its_report_tells_what_is_in_it(task: UnitTask) -> None:
    deal(task, some_items())
    seen: list[str] = []
    for number in range(NUM_RANGES):
        report, data = run_unit(task, number)
        file = pq.ParquetFile(pa.BufferReader(data))
        table = file.read()
        ids = table["item_id"].to_pylist()
        assert ids == sorted(ids)
        assert set(ranges_of(hash_ids(table["item_id"].combine_chunks()), NUM_RANGES).tolist()) == {number}
        groups = [file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)]
        assert groups == [10] * (len(ids) // 10) + [len(ids) % 10] * (len(ids) % 10 > 0)
        assert report["path"] == f"part-{number:05d}.parquet"
        assert (report["range"], report["rows"], report["bytes"]) == (number, len(ids), len(data))
        assert report["sha256"] == hashlib.sha256(data).hexdigest()
        assert counts(report) == {"new": len(ids), "encoded": len(ids)}
        assert table.schema == pa.schema(
            [("item_id", pa.string()), ("embedding", task.format.arrow_type), ("content_hash", pa.binary(16))]
        )
        seen += ids
    assert sorted(seen) == sorted(one for one, _ in some_items())


def test_vectors_stand_beside_the_ids_of_their_texts(task: UnitTask) -> None:
    deal(task, some_items())
    table = run_all(task)
    found = dict(zip(table["item_id"].to_pylist(), task.format.decode(table["embedding"]), strict=True))
    for item, text in some_items():
        np.testing.assert_array_equal(found[item], vector_of(tokenise([text], task.tokenizer, "", 16)[0]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_a_unit_done_twice_gives_the_same_bytes(task: UnitTask, dtype: str) -> None:
    task = dataclasses.replace(task, format=EmbeddingFormat(dtype, DIM, False, 0.05 if dtype == "int8" else None))
    deal(task, [*some_items(), ("sku-1", "again, other")])
    first = [run_unit(task, number) for number in range(NUM_RANGES)]
    again = [run_unit(task, number) for number in range(NUM_RANGES)]
    assert [data for _, data in again] == [data for _, data in first]
    assert [report["sha256"] for report, _ in again] == [report["sha256"] for report, _ in first]
    assert [counts(report) for report, _ in again] == [counts(report) for report, _ in first]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.int32(), pa.uint64()])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_unit_without_items_writes_a_file_with_the_schema_of_the_others(
    task: UnitTask, kind: pa.DataType, dtype: str
) -> None:
    scale = 0.05 if dtype == "int8" else None
    task = dataclasses.replace(
        task, item_id_type=item_id_type(str(kind)), format=EmbeddingFormat(dtype, DIM, False, scale)
    )
    deal(task, [], kind)
    report, data = run_unit(task, 2)
    empty = pq.read_table(pa.BufferReader(data))
    assert (report["rows"], counts(report), empty.num_rows) == (0, {}, 0)
    deal(task, [(7 if pa.types.is_integer(kind) else "7", "ba be")], kind)
    table = run_all(task)
    assert table.num_rows == 1
    assert table.schema == empty.schema
    assert table.schema.field("item_id").type == kind


def test_repeated_ids_are_told_apart_by_their_texts_and_written_once(task: UnitTask) -> None:
    task = dataclasses.replace(task, dealing=dataclasses.replace(task.dealing, num_ranges=1, num_groups=1))
    deal(task, [("a", "ba"), ("b", "be"), ("a", "bi"), ("b", "be"), ("a", "ba")])
    report, data = run_unit(task, 0)
    assert pq.read_table(pa.BufferReader(data))["item_id"].to_pylist() == ["a", "b"]
    assert counts(report) == {"new": 2, "encoded": 2, "repeated": 2, "repeated_item_id": 1}
    (file,) = (Path(task.dealing.folder) / ERRORS).iterdir()
    assert pq.read_table(file).select(["item_id", "row", "reason", "text_start"]).to_pylist() == [
        {"item_id": "a", "row": 2, "reason": "repeated_item_id", "text_start": "bi"}
    ]


def test_only_what_changed_is_tokenised_and_the_rest_is_copied(task: UnitTask, tmp_path: Path) -> None:
    deal(task, some_items())
    before = run_all(task)
    earlier = EarlierRows(
        tuple(str(tmp_path / "target" / f"part-{number:05d}.parquet") for number in range(NUM_RANGES))
    )
    changed = {"sku-3": "ba ba ba", "sku-77": "be be", "new-1": "bi"}
    now = dict(some_items()) | changed
    del now["sku-50"]
    dealing = Dealing("{title}", 1000, 5, 3, f"{task.dealing.folder}-2")
    later = dataclasses.replace(task, dealing=dealing, target=f"{task.target}-2", earlier=(earlier,))
    deal(later, list(now.items()))
    texts = sum(len(arrays(prepare_unit(plan_row(later, number), later))[1]) for number in range(5))
    assert texts == 3
    after = run_all(later)
    full = dataclasses.replace(later, target=f"{task.target}-3", earlier=())
    assert run_all(full).equals(after)
    old, new = (
        dict(zip(table["item_id"].to_pylist(), task.format.numbers(table["embedding"]).tolist(), strict=True))
        for table in (before, after)
    )
    assert {item for item in new if new[item] != old.get(item)} == set(changed)
    assert set(old) - set(new) == {"sku-50"}


def test_a_unit_whose_items_are_all_reused_needs_no_encoder(task: UnitTask, tmp_path: Path) -> None:
    deal(task, some_items())
    run_all(task)
    files = tuple(str(tmp_path / "target" / f"part-{number:05d}.parquet") for number in range(NUM_RANGES))
    later = dataclasses.replace(task, target=f"{task.target}-2", earlier=(EarlierRows(files),))
    for number in range(NUM_RANGES):
        tokens, lengths = arrays(prepare_unit(plan_row(later, number), later))
        assert (len(tokens), len(lengths)) == (0, 0)
        report, data = run_unit(later, number)
        assert data == Path(files[number]).read_bytes()
        assert counts(report) == {"reused": report["rows"]}


@pytest.mark.parametrize("left", ["fewer rows", "no rows"])
def test_a_unit_whose_dealt_rows_are_not_those_that_were_planned_writes_nothing(task: UnitTask, left: str) -> None:
    deal(task, some_items())
    planned = plan_row(task, 0)
    rows = planned["rows"][0].as_py()
    if left == "fewer rows":  # another job has dealt its own catalog to the same folder
        deal(task, some_items(50))
    else:
        Path(group_path(task.dealing.folder, 0)).write_bytes(b"")
    now = plan_row(task, 0)["rows"][0].as_py()
    assert now < rows
    with pytest.raises(RunError, match=f"range 0 of the dealt catalog has {now} rows, {rows} were dealt; .* again"):
        prepare_unit(planned, task)
    assert not Path(task.target).exists()
    deal(task, some_items())
    assert prepare_unit(planned, task)["range"].to_pylist() == [0]


def test_a_publication_replaced_under_a_unit_stops_it_before_its_file_is_written(
    task: UnitTask, tmp_path: Path
) -> None:
    deal(task, some_items())
    run_all(task)
    files = [tmp_path / "target" / f"part-{number:05d}.parquet" for number in range(NUM_RANGES)]
    later = dataclasses.replace(
        task, target=f"{task.target}-2", earlier=(EarlierRows(tuple(str(file) for file in files)),)
    )
    prepared = encoded(prepare_unit(plan_row(later, 1), later), later)
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(RunError, match="earlier vectors changed while they were read"):
        write_unit(prepared, later)
    assert not Path(later.target).exists()


def as_encode_sees(model: SentenceTransformer, texts: list[str], prompt: str) -> list[list[int]]:
    features = model.preprocess(texts, prompt=prompt or None)
    return [
        ids[mask.bool()].tolist() for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)
    ]


def split(tokens: NDArray[np.int32], lengths: NDArray[np.int32]) -> list[list[int]]:
    return [one.tolist() for one in np.split(tokens, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("prefix", ["", "query: ", " ba ", "ba"])
@pytest.mark.parametrize("max_seq_length", [8, 16, MAX_POSITIONS])
def test_tokens_are_those_that_sentence_transformers_encodes(tiny: Path, prefix: str, max_seq_length: int) -> None:
    model = load_encoder(str(tiny), max_seq_length=max_seq_length, prefix=prefix)
    found = split(*tokenise(TEXTS, bare_tokenizer(model.tokenizer), prefix, max_seq_length))
    assert found == as_encode_sees(model, TEXTS, prefix)
    assert max(len(one) for one in found) == max_seq_length
    cls, sep = model.tokenizer.cls_token_id, model.tokenizer.sep_token_id
    assert {(one[0], one[-1]) for one in found} == {(cls, sep)}


def test_a_model_encodes_a_text_as_it_encodes_its_tokens(tiny: Path) -> None:
    model = load_encoder(str(tiny), max_seq_length=16, prefix="ba: ").eval()
    tokens = split(*tokenise(TEXTS, bare_tokenizer(model.tokenizer), "ba: ", 16))
    expected = model.encode(TEXTS)
    with torch.no_grad():
        for ids, vector in zip(tokens, expected, strict=True):
            features = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            np.testing.assert_allclose(model(features)["sentence_embedding"][0].numpy(), vector, atol=1e-5)


def test_padding_and_truncation_of_the_tokenizer_s_own_are_switched_off(tiny: Path) -> None:
    model = load_encoder(str(tiny), max_seq_length=32)
    before = tokenise(TEXTS, bare_tokenizer(model.tokenizer), "", 32)
    model.tokenizer.backend_tokenizer.enable_padding(length=40)
    model.tokenizer.backend_tokenizer.enable_truncation(5)
    after = tokenise(TEXTS, bare_tokenizer(model.tokenizer), "", 32)
    assert [one.tolist() for one in after] == [one.tolist() for one in before]
    assert model.tokenizer.backend_tokenizer.truncation["max_length"] == 5  # the model's own is left as it was


def test_two_lengths_in_one_process_do_not_disturb_each_other(tokenizer: str) -> None:
    long_text = [" ".join(SYLLABLES[:40])]
    lengths = [int(tokenise(long_text, tokenizer, "", length)[1][0]) for length in (8, 30, 8, 64)]
    assert lengths == [8, 30, 8, 42]


def test_no_texts_have_no_tokens(tokenizer: str) -> None:
    tokens, lengths = tokenise([], tokenizer, "ba", 16)
    assert [(one.dtype, one.shape) for one in (tokens, lengths)] == [(np.int32, (0,))] * 2


def test_more_texts_than_are_tokenised_at_a_time_keep_their_order(tokenizer: str) -> None:
    texts = [SYLLABLES[number % 120] for number in range(TEXTS_AT_A_TIME * 2 + 5)]
    found = split(*tokenise(texts, tokenizer, "", 16))
    once = split(*tokenise(texts[:120], tokenizer, "", 16))
    assert found == [once[number % 120] for number in range(len(texts))]


def test_a_sample_of_texts_is_always_the_same_and_not_that_of_the_lowest_ids(task: UnitTask) -> None:
    items = [(number, f"text {number:03d}") for number in range(300)]
    deal(task, items)
    sample = sample_texts(task.dealing, 30)
    assert sample == sample_texts(task.dealing, 30)
    assert len(set(sample)) == 30
    first = read_range(task.dealing, 0)
    assert first is not None
    assert set(sample) <= set(first["text"].to_pylist())
    numbers = [int(text.split()[1]) for text in sample]
    assert min(numbers) < 50
    assert max(numbers) > 250
    assert len(set(sample_texts(task.dealing, 250))) == 250
    assert set(sample_texts(task.dealing, 9999)) == {text for _, text in items}


def test_files_hold_statistics_of_ids_so_that_readers_can_skip(task: UnitTask) -> None:
    deal(task, some_items())
    _, data = run_unit(task, 0)
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    column = metadata.row_group(0).column(0)
    assert column.statistics.min <= column.statistics.max
    assert column.compression == "ZSTD"
    assert metadata.row_group(0).column(1).compression == "UNCOMPRESSED"


def test_file_bytes_do_not_depend_on_chunks(task: UnitTask) -> None:
    deal(task, some_items())
    table = pq.read_table(pa.BufferReader(run_unit(task, 0)[1]))
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    assert file_bytes(chunked, 10).to_pybytes() == file_bytes(table.combine_chunks(), 10).to_pybytes()


def test_an_item_without_a_usable_vector_is_refused_and_the_others_keep_theirs(task: UnitTask) -> None:
    deal(task, some_items())
    refused: list[str] = []
    for number in range(NUM_RANGES):
        whole, _ = run_unit(task, number)
        before = pq.read_table(f"{task.target}/{whole['path']}")
        report = write_unit(encoded(prepare_unit(plan_row(task, number), task), task, broken=True), task).to_pylist()[0]
        lost = np.arange(before.num_rows) % 5 == 3
        after = pq.read_table(f"{task.target}/{report['path']}")
        assert after.equals(before.filter(pa.array(~lost)))
        assert counts(report) == {"new": len(lost), "encoded": int((~lost).sum()), "not_finite_vector": int(lost.sum())}
        refused += before["item_id"].filter(pa.array(lost)).to_pylist()
    errors = pa.concat_tables(pq.read_table(file) for file in sorted((Path(task.dealing.folder) / ERRORS).iterdir()))
    assert sorted(errors["item_id"].to_pylist()) == sorted(refused) and refused
    assert set(errors["reason"].to_pylist()) == {"not_finite_vector"}
    assert errors.schema.names == ["item_id", "fragment", "row", "reason", "text_start"]
    assert errors["row"].null_count == errors.num_rows


def test_a_unit_of_a_job_that_was_superseded_is_not_written(task: UnitTask, tmp_path: Path) -> None:
    deal(task, some_items())
    with leased(str(tmp_path), print, beat_s=60) as lease:
        task = dataclasses.replace(task, claim=lease.claim)
        assert write_unit(encoded(prepare_unit(plan_row(task, 0), task), task), task).num_rows == 1
        batch = encoded(prepare_unit(plan_row(task, 1), task), task)
        (tmp_path / LEASE).write_text(json.dumps({"host": "south", "pid": 7, "token": "theirs"}))
        with pytest.raises(RunError, match="process 7 on south has it now"):
            write_unit(batch, task)
    assert [one.name for one in sorted((tmp_path / "target").iterdir())] == [part_name(0)]
