"""Market series from files: the feed of a demo or a site without a live one, and the fallback of every other.

One TOML file declares which column of which CSV is which signal, in which unit, how long a value holds and when it is stale, and
the fallbacks. Everything is read and checked at once: a feed with a bad cell is refused whole, with the place of every bad cell, so
that nobody plans on half a file. An empty cell means "not known" and yields no signal. Invariant: what it returns is in canonical
units and in order of time.

```toml
[[series]]
kind = "power_price"              # power_price, hashprice, inference_price, inference_demand, gpu_mining_price
class = ""                        # needed by the last three
file = "prices.csv"               # relative to this file
time_column = "ts_utc"            # ISO 8601 with a zone, or a date; or seconds, with start
value_column = "hub_usd_mwh"
unit = "USD/MWh"
holds_s = 3600                    # a value is in force this long
stale_after_s = 7200
start = "2023-01-01T00:00:00Z"    # only where the time column holds seconds
factor = "1.0"                    # values are multiplied by this (requests/s to GPUs)

[[fallback]]
kind = "power_price"
value = "60"
unit = "USD/MWh"
```
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from swingbus.faults import InvalidInput, NotFound
from swingbus_controller.domain.planning.market import (
    UNITS,
    Fallback,
    MarketBook,
    Signal,
    SignalKey,
    SignalKind,
    to_canonical,
)

_PROBLEMS_SHOWN = 8
_BYTES_AT_MOST = 64 * 1024 * 1024
_SERIES_KEYS = frozenset(
    {"kind", "class", "file", "time_column", "value_column", "unit", "holds_s", "stale_after_s", "start", "factor"}
)
_FALLBACK_KEYS = frozenset({"kind", "class", "value", "unit"})
_REQUIRED = ("kind", "file", "time_column", "value_column", "stale_after_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesSpec:
    """Where one series of a feed lies and how to read it."""

    key: SignalKey
    path: Path
    time_column: str
    value_column: str
    unit: str
    stale_after_s: float
    holds_s: float | None = None
    start_s: float | None = None
    factor: Decimal = Decimal(1)


def load_market(path: Path) -> MarketBook:
    """Read a feed file and all its series.

    Raises:
        NotFound: the feed file or one of its CSV files does not exist.
        InvalidInput: anything in them is wrong; the message names file, row and column of each problem (at most eight).
    """
    specs, fallbacks = read_feed(path)
    book = MarketBook().with_fallbacks(fallbacks)
    for spec in specs:
        book = book.with_signals(load_series(spec))
    return book


def read_feed(path: Path) -> tuple[tuple[SeriesSpec, ...], tuple[Fallback, ...]]:
    """Read the TOML part only."""
    try:
        declared = tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not TOML: {error}", metadata={"file": str(path)}) from error
    unknown = sorted(set(declared) - {"series", "fallback"})
    if unknown:
        raise InvalidInput(f"{path}: unknown key {unknown[0]!r}; a feed has [[series]] and [[fallback]]")
    specs = tuple(_spec(path, i, t) for i, t in enumerate(_tables(path, declared, "series"), start=1))
    fallbacks = tuple(_fallback(path, i, t) for i, t in enumerate(_tables(path, declared, "fallback"), start=1))
    if not specs and not fallbacks:
        raise InvalidInput(f"{path}: declares no series and no fallback; add a [[series]] table")
    return specs, fallbacks


def load_series(spec: SeriesSpec) -> tuple[Signal, ...]:
    """Read one series, in order of time.

    Raises:
        NotFound: no such file.
        InvalidInput: a column is missing, or cells are wrong; each is named by row (the header is row 1) and column.
    """
    problems: list[str] = []
    signals: dict[float, Signal] = {}
    wrong = 0
    for row_number, row in _rows(spec):
        try:
            signal = _signal(spec, row)
        except _BadCell as bad:
            wrong += 1
            if len(problems) < _PROBLEMS_SHOWN:
                problems.append(f"row {row_number}, column {bad.column!r}: {bad.why}")
            continue
        if signal is None:
            continue
        if signal.valid_from_s in signals:
            wrong += 1
            if len(problems) < _PROBLEMS_SHOWN:
                problems.append(f"row {row_number}, column {spec.time_column!r}: this time appears twice")
            continue
        signals[signal.valid_from_s] = signal
    if problems:
        more = f" (and {wrong - len(problems)} more)" if wrong > len(problems) else ""
        raise InvalidInput(
            f"{spec.path}: {wrong} bad cell(s) for {spec.key}: "
            + "; ".join(problems)
            + more
            + "; leave unknown values empty",
            metadata={"file": str(spec.path), "signal": str(spec.key), "bad_cells": str(wrong)},
        )
    if not signals:
        raise InvalidInput(
            f"{spec.path}: column {spec.value_column!r} holds no value at all", metadata={"file": str(spec.path)}
        )
    return tuple(signals[at] for at in sorted(signals))


class _BadCell(Exception):
    def __init__(self, column: str, why: str) -> None:
        super().__init__(why)
        self.column = column
        self.why = why


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _BYTES_AT_MOST:
            raise InvalidInput(f"{path}: larger than {_BYTES_AT_MOST // 1024 // 1024} MiB; cut it to the span you need")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file; check the path in the feed", metadata={"file": str(path)}) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 text (byte {error.start})", metadata={"file": str(path)}) from error
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}", metadata={"file": str(path)}) from error


def _rows(spec: SeriesSpec) -> Iterator[tuple[int, Mapping[str, str]]]:
    reader = csv.DictReader(_text(spec.path).splitlines(), strict=True)
    try:
        header = reader.fieldnames or ()
        for column in (spec.time_column, spec.value_column):
            if column not in header:
                raise InvalidInput(
                    f"{spec.path}: no column {column!r}; it has {', '.join(header) or 'no header'}",
                    metadata={"file": str(spec.path), "column": column},
                )
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InvalidInput(f"{spec.path}: row {reader.line_num}: not CSV: {error}") from error


def _signal(spec: SeriesSpec, row: Mapping[str, str | None]) -> Signal | None:
    at_s = _time_s(spec, row.get(spec.time_column))
    cell = row.get(spec.value_column)
    if cell is None:
        raise _BadCell(spec.value_column, "the row ends before this column")
    if not cell.strip():
        return None
    try:
        value = to_canonical(spec.key.kind, Decimal(cell.strip()) * spec.factor, spec.unit)
        return Signal(
            key=spec.key, value=value, source=f"file {spec.path.name}", valid_from_s=at_s, received_at_s=at_s,
            stale_after_s=spec.stale_after_s, valid_until_s=None if spec.holds_s is None else at_s + spec.holds_s,
        )  # fmt: skip
    except InvalidOperation as error:
        raise _BadCell(spec.value_column, f"{cell[:40]!r} is not a number") from error
    except InvalidInput as error:
        raise _BadCell(spec.value_column, str(error)) from error


def _time_s(spec: SeriesSpec, cell: str | None) -> float:
    text = (cell or "").strip()
    if not text:
        raise _BadCell(spec.time_column, "the time is empty")
    if spec.start_s is not None:
        try:
            offset = Decimal(text)
        except InvalidOperation as error:
            raise _BadCell(
                spec.time_column, f"{text[:40]!r} is not a number of seconds (the series has a start)"
            ) from error
        if not offset.is_finite():
            raise _BadCell(spec.time_column, f"{text[:40]!r} is not a finite number of seconds")
        return spec.start_s + float(offset)
    try:
        return _instant_s(text)
    except ValueError as error:
        raise _BadCell(spec.time_column, str(error)) from error


def _instant_s(text: str) -> float:
    """Read ISO 8601 as Unix seconds; a bare date is its UTC midnight, a time must name its zone."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text[:40]!r} is not an ISO 8601 time such as 2023-08-17T21:00:00Z") from error
    if at.tzinfo is None:
        if len(text) > len("2023-08-17"):
            raise ValueError(f"{text[:40]!r} names no time zone; add Z for UTC")
        at = at.replace(tzinfo=UTC)
    return at.timestamp()


def _tables(path: Path, declared: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    tables = declared.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise InvalidInput(f"{path}: {name} must be a list of tables: write [[{name}]]", metadata={"file": str(path)})
    return tables


def _key(where: str, table: Mapping[str, object], allowed: frozenset[str]) -> SignalKey:
    unknown = sorted(set(table) - allowed)
    if unknown:
        raise InvalidInput(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(allowed))}")
    kind = table.get("kind")
    if kind not in set(SignalKind):
        raise InvalidInput(f"{where}: kind is {kind!r}; use one of {', '.join(SignalKind)}")
    subject = table.get("class", "")
    if not isinstance(subject, str):
        raise InvalidInput(f"{where}: class is {subject!r}, must be text")
    try:
        return SignalKey(kind=SignalKind(str(kind)), subject=subject)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def _spec(path: Path, number: int, table: Mapping[str, object]) -> SeriesSpec:
    where = f"{path}: [[series]] number {number}"
    key = _key(where, table, _SERIES_KEYS)
    missing = [k for k in _REQUIRED if k not in table]
    if missing:
        raise InvalidInput(f"{where}: {missing[0]} is missing")
    start = table.get("start")
    start_s: float | None = None
    if start is not None:
        try:
            start_s = _instant_s(start.isoformat() if isinstance(start, datetime) else str(start))
        except ValueError as error:
            raise InvalidInput(f"{where}: start: {error}") from error
    unit = str(table.get("unit", UNITS[key.kind]))
    try:
        to_canonical(key.kind, Decimal(1), unit)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error
    return SeriesSpec(
        key=key,
        path=path.parent / str(table["file"]),
        time_column=str(table["time_column"]),
        value_column=str(table["value_column"]),
        unit=unit,
        stale_after_s=_seconds(where, "stale_after_s", table["stale_after_s"]),
        holds_s=_seconds(where, "holds_s", table["holds_s"]) if "holds_s" in table else None,
        start_s=start_s,
        factor=_decimal(where, "factor", table.get("factor", "1")),
    )


def _fallback(path: Path, number: int, table: Mapping[str, object]) -> Fallback:
    where = f"{path}: [[fallback]] number {number}"
    key = _key(where, table, _FALLBACK_KEYS)
    if "value" not in table:
        raise InvalidInput(f"{where}: value is missing")
    try:
        value = to_canonical(
            key.kind, _decimal(where, "value", table["value"]), str(table.get("unit", UNITS[key.kind]))
        )
    except InvalidInput as error:
        raise InvalidInput(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    if value < 0 and key.kind is not SignalKind.POWER_PRICE:
        raise InvalidInput(f"{where}: value is {value}; only power may have a negative price")
    return Fallback(key=key, value=value, reason=f"fallback of {path.name}")


def _seconds(where: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise InvalidInput(f"{where}: {name} is {value!r}, must be a number of seconds above 0")
    return float(value)


def _decimal(where: str, name: str, value: object) -> Decimal:
    try:
        if isinstance(value, bool):
            raise InvalidOperation
        found = Decimal(str(value))
    except InvalidOperation as error:
        raise InvalidInput(f'{where}: {name} is {value!r}, must be a number, best as text such as "0.05"') from error
    if not found.is_finite():
        raise InvalidInput(f"{where}: {name} is {value!r}, must be finite")
    return found
