"""A large CSV in ranges of bytes: the same rows in the same order as in one piece."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from beeray.data import csv_ranges, table_files
from beeray.data.interactions import NO_TIME, Rules, bucket_interactions
from beeray.data.tables import Table
from beeray.errors import DataError

COLUMNS = {"user_id": "user", "item_id": "item", "value": "stars"}


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 500)


def write(path: Path, rows: list[str], newline: str = "\n", end: str = "\n") -> Table:
    path.write_text(newline.join(["note,user,item,stars", *rows]) + end, newline="")
    return Table(str(path), COLUMNS, "interactions")


def rows_of(table: Table) -> pa.Table:
    return pa.concat_tables([batch for fragment in table.fragments() for batch in fragment.read()])


ROWS = [f"n{number},{number},{number % 13:02d},{number % 10 / 2}" for number in range(300)]


@pytest.mark.parametrize(("newline", "end"), [("\n", "\n"), ("\n", ""), ("\r\n", "\r\n"), ("\n", "\n\n")])
def test_ranges_hold_every_row_once_and_in_order(tmp_path: Path, newline: str, end: str) -> None:
    table = write(tmp_path / "t.csv", ROWS, newline, end)
    assert len(table.fragments()) > 5
    rows = rows_of(table)
    assert rows["user_id"].to_pylist() == list(range(300))
    assert rows["item_id"].to_pylist() == [f"{number % 13:02d}" for number in range(300)]  # zeros in front stay
    assert rows["value"].to_pylist() == [number % 10 / 2 for number in range(300)]
    assert rows["row"].to_pylist() == sorted(set(rows["row"].to_pylist()))


def test_a_file_with_a_quote_stays_in_one_piece(tmp_path: Path) -> None:
    rows = [*ROWS[:200], '"two\nlines",200,01,5.0', *ROWS[201:]]
    table = write(tmp_path / "t.csv", rows)
    assert len(table.fragments()) == 1
    assert rows_of(table)["user_id"].to_pylist() == list(range(300))


def test_small_files_and_compressed_ones_stay_in_one_piece(tmp_path: Path) -> None:
    assert len(write(tmp_path / "t.csv", ROWS[:20]).fragments()) == 1
    (tmp_path / "t.csv.gz").write_bytes(b"x" * 5000)
    assert csv_ranges.csv_ranges(str(tmp_path / "t.csv.gz"), pa.schema([])) == []


def test_a_value_that_fits_no_more_further_down_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)  # decides the columns' types
    table = write(tmp_path / "t.csv", [*ROWS[:250], "n,none,1,1.0", *ROWS[251:]])
    with pytest.raises(DataError, match=r"t\.csv: .*none"):
        rows_of(table)


LATE = ["007", "+7", " 7", "7 ", "7.0", "1e3", "0x1A", "-07", "-0", "9223372036854775808", "2024-01-01", "true", "none"]


@pytest.mark.parametrize("quoted", [False, True], ids=["in ranges", "in one piece"])
@pytest.mark.parametrize("late", LATE)
def test_a_late_id_that_is_no_plain_whole_number_is_refused_and_never_another_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str, quoted: bool
) -> None:
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)
    plain = [f"n{number},{number},{number % 13},4.0" for number in range(300)]
    other = f'n,200,"{late}",4.0' if quoted else f"n,200,{late},4.0"
    table = write(tmp_path / "t.csv", [*plain[:250], other, *plain[250:]])
    assert table.check().field("item_id").type == pa.int64()
    assert (len(table.fragments()) == 1) == quoted
    with pytest.raises(DataError) as caught:
        rows_of(table)
    assert str(caught.value).startswith(
        f"{tmp_path}/t.csv: item {late!r} is no plain whole number, and all ids in the "
    )
    assert "move its row to the top of the file" in str(caught.value)

    moved = rows_of(write(tmp_path / "t.csv", [other, *plain]))
    assert moved["item_id"].to_pylist() == [late, *(str(number % 13) for number in range(300))]


@pytest.mark.parametrize("quoted", [False, True], ids=["in ranges", "in one piece"])
def test_late_ids_that_are_plain_whole_numbers_or_none_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quoted: bool
) -> None:
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)
    late = ["-5", "", "0", "NA", "-9223372036854775808", "9223372036854775807", "" if not quoted else '""']
    rows = [*ROWS, *(f"n,{one},1,4.0" for one in late)]
    found = rows_of(write(tmp_path / "t.csv", rows))["user_id"]
    assert found.type == pa.int64()
    assert found.to_pylist()[-7:] == [-5, None, 0, None, -(2**63), 2**63 - 1, None]


def test_ids_that_begin_far_below_are_numbers_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)
    anonymous = [f"n{number},,{number},4.0" for number in range(300)]
    assert rows_of(write(tmp_path / "t.csv", [*anonymous, "n,7,1,4.0"]))["user_id"].to_pylist() == [None] * 300 + [7]
    with pytest.raises(DataError, match=r"t\.csv: user '007' is no plain whole number"):
        rows_of(write(tmp_path / "t.csv", [*anonymous, "n,007,1,4.0"]))


TIMED = {"user_id": "user", "item_id": "item", "value": "stars", "timestamp": "when"}


def timed(path: Path, pairs: list[tuple[str, str]], quoted: bool) -> Table:
    """Rows with these stars and times; a quote in the file keeps it in one piece."""
    lines = [f"{number},{number % 13},{stars},{when}" for number, (stars, when) in enumerate(pairs)]
    note = '"a"' if quoted else "a"
    path.write_text("user,item,stars,when,note\n" + "".join(f"{line},{note}\n" for line in lines))
    return Table(str(path), TIMED, "interactions")


def seconds(rows: pa.Table) -> list[int]:
    """Timestamps as they are kept."""
    items = pa.array(range(13))
    return bucket_interactions(rows, items, Rules(None, 1, 1))[0]["timestamp"].to_pylist()


@pytest.mark.parametrize("quoted", [False, True], ids=["in ranges", "in one piece"])
@pytest.mark.parametrize(("early", "late", "expected"), [("", "5", 5.0), ("4", "4.5", 4.5), ("", "4.5", 4.5)])
def test_values_that_have_another_form_far_below_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: str, late: str, expected: float, quoted: bool
) -> None:
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)
    table = timed(tmp_path / "t.csv", [(early, "7")] * 300 + [(late, "7")], quoted)
    assert (len(table.fragments()) == 1) == quoted
    values = rows_of(table)["value"]
    assert values.type == pa.float64()
    assert values.to_pylist() == [float(early) if early else None] * 300 + [expected]


DAY = 1_704_067_200_000_000  # 2024-01-01


@pytest.mark.parametrize("quoted", [False, True], ids=["in ranges", "in one piece"])
@pytest.mark.parametrize(
    ("early", "late", "expected"),
    [
        ("2024-01-01 00:00:00", "2024-01-01 00:00:00.123", [DAY, DAY + 123_000]),
        ("2024-01-01T00:00:00Z", "2024-01-01T02:00:00.5+02:00", [DAY, DAY + 500_000]),
        ("2024-01-01", "2024-01-01 00:00:01.000002", [DAY, DAY + 1_000_002]),
        ("2024-01-01 00:00:00", "9999-12-31", [DAY, 253_402_214_400_000_000]),
        ("", "1700000000", [NO_TIME, 1_700_000_000]),
        ("1700000000", "1700000000000000001", [1_700_000_000, 1_700_000_000_000_000_001]),
    ],
)
def test_times_that_are_finer_far_below_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: str, late: str, expected: list[int], quoted: bool
) -> None:
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)
    found = seconds(rows_of(timed(tmp_path / "t.csv", [("5", early)] * 300 + [("5", late)], quoted)))
    assert found == [expected[0]] * 300 + expected[1:]


@pytest.mark.parametrize("quoted", [False, True], ids=["in ranges", "in one piece"])
@pytest.mark.parametrize(
    ("early", "late", "expected"),
    [
        ("1700000000", "1700000000.5", [1_700_000_000, 1_700_000_000]),
        ("", "2024-01-01", [NO_TIME, DAY]),
        ("2024-01-01 00:00:00", "2024-01-01 00:00:00.123456789", [DAY, DAY + 123_456]),
    ],
)
def test_a_late_time_that_is_refused_is_read_where_its_row_is_moved_to_the_top_as_the_refusal_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: str, late: str, expected: list[int], quoted: bool
) -> None:
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)
    pairs = [("5", early)] * 300
    with pytest.raises(DataError) as caught:
        rows_of(timed(tmp_path / "t.csv", [*pairs, ("5", late)], quoted))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/t.csv: cannot be read (")
    assert late in said
    assert "move its row to the top, for the first 8 MiB tell the type of its column" in said
    assert "\n" not in said
    found = seconds(rows_of(timed(tmp_path / "t.csv", [("5", late), *pairs], quoted)))
    assert found == [expected[1], *[expected[0]] * 300]


def test_a_file_that_begins_without_values_or_times_has_those_of_the_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1000)
    timed(tmp_path / "1.csv", [("", "")] * 300 + [("true", "2024-01-01")], quoted=False)
    timed(tmp_path / "2.csv", [("false", "2024-01-01 00:00:01")], quoted=False)
    timed(tmp_path / "3.csv", [("", "")], quoted=False)
    rows = rows_of(Table(f"{tmp_path}/*.csv", TIMED, "interactions"))
    assert rows["value"].to_pylist() == [*[None] * 300, True, False, None]
    assert seconds(rows) == [*[NO_TIME] * 300, DAY, DAY + 1_000_000, NO_TIME]


def test_a_row_is_placed_by_the_byte_at_which_its_range_begins(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", ROWS)
    start = len("note,user,item,stars\n")
    assert table.place_of(3) == f"{tmp_path}/t.csv, row 4 after byte {start}"
    later = table.fragments()[2]
    assert isinstance(later.piece, csv_ranges.CsvRange)
    assert table.place_of((2 << 40) + 3).endswith(f"t.csv, row 4 after byte {later.piece.start:,}")
