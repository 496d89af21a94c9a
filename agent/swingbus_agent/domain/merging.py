"""Merge several rounds into one, and move a round from an old inventory to the present one. Pure.

Invariants: a mean is over the readings that were there, and absent if there was none; counters keep their last value,
events and faults are never lost; a device's worst condition survives; rounds of different boots are never merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.readings import BankRound, BankSpec, Condition, Inventory, MeterRound, Round


def can_merge(rounds: Sequence[Round]) -> bool:
    """Tell whether these rounds share a boot and a shape."""
    if len({each.boot_id for each in rounds}) != 1:
        return False
    shapes: dict[int, tuple[int, int, int]] = {}
    for each in rounds:
        for bank in each.banks:
            shape = (len(bank.conditions), len(bank.values), len(bank.counters))
            if shapes.setdefault(bank.bank_index, shape) != shape:
                return False
    return True


def merge_rounds(rounds: Sequence[Round]) -> Round:
    """Return the mean of `rounds` (in time order, at least one, `can_merge`)."""
    last = rounds[-1]
    bank_indexes = sorted({bank.bank_index for each in rounds for bank in each.banks})
    meter_indexes = sorted({meter.meter_index for each in rounds for meter in each.meters})
    return Round(
        sample_unix_s=last.sample_unix_s,
        sample_boottime_ns=last.sample_boottime_ns,
        boot_id=last.boot_id,
        banks=tuple(_merge_banks([b for r in rounds for b in r.banks if b.bank_index == i]) for i in bank_indexes),
        meters=tuple(_merge_meters([m for r in rounds for m in r.meters if m.meter_index == i]) for i in meter_indexes),
        host_values=_means([each.host_values for each in rounds if each.host_values]),
        events=tuple(event for each in rounds for event in each.events),
        thinned=True,
    )


def mean(readings: Sequence[float | None]) -> float | None:
    """Return the mean of what is there, None if nothing is."""
    present = [reading for reading in readings if reading is not None]
    return sum(present) / len(present) if present else None


def _means(rows: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    if not rows:
        return ()
    return tuple(mean(column) for column in zip(*rows, strict=False))


def _last(readings: Sequence[float | None]) -> float | None:
    return next((reading for reading in reversed(readings) if reading is not None), None)


def _merge_banks(rounds: Sequence[BankRound]) -> BankRound:
    last = rounds[-1]
    return replace(
        last,
        values=tuple(mean(column) for column in zip(*(each.values for each in rounds), strict=True)),
        counters=tuple(_last(column) for column in zip(*(each.counters for each in rounds), strict=True)),
        conditions=tuple(max(column) for column in zip(*(each.conditions for each in rounds), strict=True)),
    )


def _merge_meters(rounds: Sequence[MeterRound]) -> MeterRound:
    last = rounds[-1]
    return replace(
        last,
        window_start_boottime_ns=min(each.window_start_boottime_ns for each in rounds),
        marker=min(each.marker for each in rounds),
        power_w=mean([each.power_w for each in rounds]),
        energy_j=_last([each.energy_j for each in rounds]),
        voltage_v=mean([each.voltage_v for each in rounds]),
        current_a=mean([each.current_a for each in rounds]),
        power_factor=mean([each.power_factor for each in rounds]),
        fault=next((each.fault for each in rounds if each.fault), ""),
    )


def remap_round(old: Round, before: Inventory, after: Inventory) -> Round:
    """Return `old`, which was laid out by inventory `before`, laid out by `after`.

    Banks, meters, devices and fields are found by name. What `after` no longer has is left out; a device that it has
    and the old round had not is UNAVAILABLE without a reading.
    """
    banks = tuple(
        _remap_bank(bank, before.banks[bank.bank_index], spec, index)
        for index, spec in enumerate(after.banks)
        for bank in old.banks
        if bank.bank_index < len(before.banks) and before.banks[bank.bank_index].bank == spec.bank
    )
    meters = tuple(
        replace(meter, meter_index=index)
        for index, spec in enumerate(after.meters)
        for meter in old.meters
        if meter.meter_index < len(before.meters) and before.meters[meter.meter_index].meter == spec.meter
    )
    host = dict(zip(before.host_fields, old.host_values, strict=False))
    host_values = tuple(host.get(name) for name in after.host_fields) if old.host_values else ()
    return replace(old, banks=banks, meters=meters, host_values=host_values)


def _remap_bank(old: BankRound, before: BankSpec, after: BankSpec, index: int) -> BankRound:
    rows = {spec.device: row for row, spec in enumerate(before.devices)}

    def cell(table: tuple[float | None, ...], fields: tuple[str, ...], row: int | None, name: str) -> float | None:
        if row is None or name not in fields:
            return None
        return table[row * len(fields) + fields.index(name)]

    order = [rows.get(spec.device) for spec in after.devices]
    return BankRound(
        bank_index=index,
        values=tuple(cell(old.values, before.value_fields, row, name) for row in order for name in after.value_fields),
        counters=tuple(
            cell(old.counters, before.counter_fields, row, name) for row in order for name in after.counter_fields
        ),
        conditions=tuple(Condition.UNAVAILABLE if row is None else old.conditions[row] for row in order),
        modes=tuple(Mode.UNKNOWN if row is None else old.modes[row] for row in order),
        read_boottime_ns=tuple(0 if row is None else old.read_boottime_ns[row] for row in order),
    )
