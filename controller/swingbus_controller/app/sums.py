"""Sums over one bank frame, by column: the only arithmetic of the hot path. Knows no fleet; NaN never enters a sum."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from swingbus_controller.domain.fleet.fleet import BankReading
from swingbus_controller.domain.fleet.frames import BankFrame, BankInventory


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where the columns that sums need are in one bank's matrices; None where the bank has no such field."""

    value_count: int
    counter_count: int
    power: int | None
    hashrate: int | None
    uptime: int | None
    uptime_is_value: bool = False  # some agents announce it as a reading, not as a counter


def columns_of(bank: BankInventory) -> Columns:
    """Return where a bank's columns are."""
    values, counters = bank.value_fields, bank.counter_fields
    return Columns(
        value_count=len(values),
        counter_count=len(counters),
        power=values.index("power_w") if "power_w" in values else None,
        hashrate=values.index("hashrate_ths") if "hashrate_ths" in values else None,
        uptime=next((names.index("uptime_s") for names in (counters, values) if "uptime_s" in names), None),
        uptime_is_value="uptime_s" not in counters,
    )


def quiet_numbers() -> AbstractContextManager[None]:
    """Return a context for sums over readings: any kind of NaN may be among them, and entering it per sum would cost more than the sum."""
    return np.errstate(all="ignore")


def read_bank(frame: BankFrame, columns: Columns) -> BankReading:
    """Return the sums of a frame over the devices that said the field."""
    power_w, answered = _column_sum(frame.values, columns.power, columns.value_count)
    hashrate_ths, _ = _column_sum(frame.values, columns.hashrate, columns.value_count)
    return BankReading(power_w=power_w, hashrate_ths=hashrate_ths, answered_count=answered)


def _column_sum(matrix: Sequence[float], column: int | None, width: int) -> tuple[float | None, int]:
    if column is None or width == 0:
        return None, 0
    numbers: Any = np.asarray(matrix)[column::width]
    total = float(np.add.reduce(numbers, dtype=np.float64))
    if total == total:  # nobody is missing
        return (total, int(numbers.size)) if numbers.size else (None, 0)
    present = numbers[numbers == numbers]
    return (float(present.sum(dtype=np.float64)), int(present.size)) if present.size else (None, 0)


def uptimes(frame: BankFrame, columns: Columns) -> Any:
    """Return the uptime column of a frame, None where the bank has none."""
    if columns.uptime is None:
        return None
    if columns.uptime_is_value:
        return np.asarray(frame.values)[columns.uptime :: columns.value_count]
    return np.asarray(frame.counters)[columns.uptime :: columns.counter_count]


def restarted_rows(before: Any, after: Any) -> list[int]:
    """Return the rows whose uptime fell by more than a second; a row without a reading says nothing."""
    if before is None or after is None or before.size != after.size:
        return []
    fell = after < before - 1.0
    return [int(row) for row in np.flatnonzero(fell)] if np.logical_or.reduce(fell) else []
