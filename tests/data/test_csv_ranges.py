"""A large CSV in ranges of bytes: the same rows in the same order as in one piece."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from beeray.data import csv_ranges, table_files
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


def test_a_row_is_placed_by_the_byte_at_which_its_range_begins(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", ROWS)
    start = len("note,user,item,stars\n")
    assert table.place_of(3) == f"{tmp_path}/t.csv, row 4 after byte {start}"
    later = table.fragments()[2]
    assert isinstance(later.piece, csv_ranges.CsvRange)
    assert table.place_of((2 << 40) + 3).endswith(f"t.csv, row 4 after byte {later.piece.start:,}")
