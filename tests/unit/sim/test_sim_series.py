"""Series from points and from columns of CSV files."""

from __future__ import annotations

from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, NotFound
from swingbus_sim.series import CsvColumn, Series, series_from_csv


def _column(**changes: object) -> CsvColumn:
    values: dict[str, object] = {
        "file": "p.csv",
        "column": "price",
        "from_row": 1,
        "row_s": 3600.0,
        "scale": 2.0,
        "offset": 1.0,
        "floor": 0.0,
    }
    return CsvColumn(**{**values, **changes})  # type: ignore[arg-type]  # a test's own mix of fields


def _read(folder: Path, column: CsvColumn, *, duration_s: float = 20.0) -> Series:
    return series_from_csv("price", column, root=folder, clock_factor=360.0, duration_s=duration_s)


def test_rows_become_seconds_at_the_market_clock(tmp_path: Path) -> None:
    """An hour row lasts 10 real seconds at factor 360; empty cells hold the value before, values never pass the floor."""
    (tmp_path / "p.csv").write_text("t,price\n0,9\n1,10\n2,\n3,-30\n4,5\n", encoding="utf-8")
    series = _read(tmp_path, _column())

    assert [series.value(t) for t in (0.0, 9.9, 10.0, 20.0)] == [21.0, 21.0, 21.0, 0.0]
    assert "1 empty cells held" in series.source


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("t,price\n0,9\n1,abc\n", _column(), "'abc' is not a number"),
        ("t,price\n0,9\n1,\n", _column(), "is empty; start at a row"),
        ("t,price\n0,9\n1,10\n", _column(), "ends after 1 rows"),
    ],
)
def test_bad_cells_are_refused_with_their_row(tmp_path: Path, text: str, column: CsvColumn, message: str) -> None:
    """A feed that cannot be read says which row."""
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=message):
        _read(tmp_path, column)


def test_missing_file_or_column_is_named(tmp_path: Path) -> None:
    """The error says where it looked."""
    with pytest.raises(NotFound, match=r"no file .*p\.csv; set DATA"):
        _read(tmp_path, _column())
    (tmp_path / "p.csv").write_text("t,cost\n0,9\n", encoding="utf-8")
    with pytest.raises(NotFound, match="no column 'price'; it has t, cost"):
        _read(tmp_path, _column())
