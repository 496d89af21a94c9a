"""Series of market values over real seconds: prices, demand, hashprice.

Decides what a series says at an instant (steps hold until the next point). Refuses to know where numbers come from beyond the
file it is handed; `source` says so for the report.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import InvalidInput, NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values that hold from their own second until the next point; before the first point the first value holds."""

    name: str
    at_s: tuple[float, ...]
    values: tuple[float, ...]
    source: str

    def value(self, now_s: float) -> float:
        """Return the value in force at `now_s`.

        >>> Series(name="p", at_s=(0.0, 10.0), values=(40.0, 90.0), source="inline").value(9.9)
        40.0
        """
        index = bisect_right(self.at_s, now_s) - 1
        return self.values[max(0, index)]


def series_from_points(name: str, points: Sequence[Sequence[float]], *, where: str) -> Series:
    """Build a series from [[second, value], ...].

    Raises:
        InvalidInput: the list is empty, a row is not a pair, or times do not rise.
    """
    if not points:
        raise InvalidInput(f"{where}: no points; give at least [[0, value]]")
    at_s: list[float] = []
    values: list[float] = []
    for index, row in enumerate(points):
        if len(row) != 2:
            raise InvalidInput(f"{where}[{index}]: a point is [second, value], got {list(row)!r}")
        if at_s and row[0] <= at_s[-1]:
            raise InvalidInput(f"{where}[{index}]: seconds must rise, {row[0]} comes after {at_s[-1]}")
        at_s.append(float(row[0]))
        values.append(float(row[1]))
    return Series(name=name, at_s=tuple(at_s), values=tuple(values), source="inline")


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvColumn:
    """Where a real series lies: a column of a CSV file, from a row on, one row each `row_s` market seconds.

    A value is cell x `scale` + `offset`, never under `floor`.
    """

    file: str
    column: str
    from_row: int
    row_s: float
    scale: float
    offset: float
    floor: float


def series_from_csv(name: str, column: CsvColumn, *, root: Path, clock_factor: float, duration_s: float) -> Series:
    """Read the rows that `duration_s` real seconds need at `clock_factor`; an empty cell holds the value before it.

    Raises:
        NotFound: the file or the column is not there.
        InvalidInput: a cell is not a number, the first cell is empty, or the file ends too early.
    """
    path = root / column.file
    if not path.is_file():
        raise NotFound(f"series {name}: no file {path}; set DATA to the folder that holds {column.file}")
    step_s = column.row_s / clock_factor
    needed = int(duration_s / step_s) + 2
    at_s: list[float] = []
    values: list[float] = []
    filled = 0
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        if reader.fieldnames is None or column.column not in reader.fieldnames:
            raise NotFound(
                f"series {name}: {path} has no column {column.column!r}; it has {', '.join(reader.fieldnames or ())}"
            )
        for index, row in enumerate(reader):
            if index < column.from_row:
                continue
            if len(values) >= needed:
                break
            cell = (row[column.column] or "").strip()
            if not cell:
                if not values:
                    raise InvalidInput(
                        f"series {name}: {path} row {index + 2} is empty; start at a row that holds a value"
                    )
                values.append(values[-1])
                filled += 1
            else:
                try:
                    values.append(max(column.floor, float(cell) * column.scale + column.offset))
                except ValueError as error:
                    raise InvalidInput(f"series {name}: {path} row {index + 2}: {cell!r} is not a number") from error
            at_s.append(len(at_s) * step_s)
    if len(values) < needed - 1:
        raise InvalidInput(
            f"series {name}: {path} ends after {len(values)} rows from row {column.from_row}, {needed - 1} are needed; start earlier"
        )
    source = f"{column.file}:{column.column} from row {column.from_row}"
    if filled:
        source += f" ({filled} empty cells held)"
    return Series(name=name, at_s=tuple(at_s), values=tuple(values), source=source)
