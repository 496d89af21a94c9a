"""Reports of agents: wire to domain, checked before anybody relies on them.

Decides whether a report is well-formed. Refuses to know: what it is for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import link_pb2
from swingbus.names import parse_id
from swingbus_controller.api.codec import unix_s
from swingbus_controller.api.wire_checks import (
    MAX_BANKS,
    MAX_DEVICES,
    MAX_FIELDS,
    MAX_HOLDERS,
    MAX_TEXT,
    MAX_UID,
    at_most,
    unique,
    watts,
)
from swingbus_controller.domain.fleet.orders import (
    AgentReport,
    BankReport,
    Mode,
    PointOrder,
    SafeShareStep,
    StragglerReport,
    UnitHolding,
    UnitWorkload,
)

_POD = re.compile(r"[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}")  # what Kubernetes lets be a namespace and a pod
_MODES = {mode.value: mode for mode in Mode}


class ReportReader:
    """Reads the reports of one agent, which come every second.

    Invariant: what is returned never depends on what was read before; a bank that says word for word what it said last is only not
    read again, so that whoever asks whether anything is new compares one object with itself.
    """

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._last: dict[str, tuple[link_pb2.BankEffective, BankReport]] = {}

    def read(self, message: link_pb2.EffectiveState) -> AgentReport:
        """Return what a report says. Raises InvalidInput."""
        at_most(len(message.banks), MAX_BANKS, "banks")
        if min(message.epoch, message.generation, message.marker, message.boottime_ns, message.sequence) < 0:
            raise InvalidInput(
                "the report has a negative epoch, generation, marker, time or sequence.", reason="BAD_REPORT"
            )
        read = [(bank, self._bank_report(bank)) for bank in message.banks]
        unique((report.bank for _, report in read), "bank")
        self._last = {report.bank: (bank, report) for bank, report in read}
        return _agent_report(self._agent, message, tuple(report for _, report in read))

    def _bank_report(self, message: link_pb2.BankEffective) -> BankReport:
        known = self._last.get(message.bank)
        return known[1] if known is not None and known[0] == message else _bank_report(message)


def _agent_report(agent: str, message: link_pb2.EffectiveState, banks: tuple[BankReport, ...]) -> AgentReport:
    return AgentReport(
        agent=agent,
        epoch=message.epoch,
        generation=message.generation,
        hash=message.hash[:MAX_UID],
        banks=banks,
        marker=message.marker,
        boottime_s=message.boottime_ns / 1e9,
        boot_id=message.boot_id[:MAX_UID],
        refusal=message.refusal[:MAX_TEXT],
        instance_uid=message.instance_uid[:MAX_UID],
        sequence=message.sequence,
        fence_instance=message.fence_instance[:MAX_UID],
    )


def _bank_report(message: link_pb2.BankEffective) -> BankReport:
    bank = parse_id(message.bank, "bank")
    if max(len(message.stragglers), len(message.locked_devices)) > MAX_DEVICES or len(message.observed) > MAX_FIELDS:
        raise InvalidInput(f"bank {bank!r}: too many stragglers, locked devices or points.", reason="BAD_REPORT")
    counts = (
        message.epoch,
        message.generation,
        message.applied_generation,
        message.applied_boottime_ns,
        message.held_count,
        message.unheld_count,
    )
    if min(counts) < 0:
        raise InvalidInput(f"bank {bank!r}: a negative count or time.", reason="BAD_REPORT")
    return BankReport(
        bank=bank,
        epoch=message.epoch,
        generation=message.generation,
        grant_w=watts(message.grant_w, f"bank {bank!r}: grant_w"),
        allowed_w=watts(message.allowed_w, f"bank {bank!r}: allowed_w"),
        applied_generation=message.applied_generation,
        applied_boottime_s=message.applied_boottime_ns / 1e9,
        has_in_flight=message.has_in_flight,
        held_count=message.held_count,
        observed=tuple(_point_from_proto(point, bank) for point in message.observed),
        stragglers=tuple(
            StragglerReport(device=s.device[:MAX_UID], reason=s.reason[:MAX_UID], attempt_count=max(0, s.attempt_count))
            for s in message.stragglers
        ),
        counted_power_w=watts(message.counted_power_w, f"bank {bank!r}: counted_power_w"),
        safe_shares=tuple(
            SafeShareStep(
                start_unix_s=unix_s(share.start_time) if share.HasField("start_time") else None,
                power_w=watts(share.power_w, f"bank {bank!r}: safe share"),
            )
            for share in message.safe_shares[:MAX_FIELDS]
        ),
        ready_workloads=tuple(_unit_workload(text, bank) for text in message.ready_workloads),
        failed_workloads=tuple(_unit_workload(text, bank) for text in message.failed_workloads),
        released_units=tuple(message.released_units),
        reported_w=watts(message.reported_w, f"bank {bank!r}: reported_w") if message.HasField("reported_w") else None,
        is_lapsed=message.is_lapsed,
        is_lost=message.is_lost,
        unheld_count=message.unheld_count,
        locked_out=message.locked_out,
        locked_devices=tuple(device[:MAX_UID] for device in message.locked_devices),
        unit_holdings=_unit_holdings(message.unit_holdings, bank),
    )


def _unit_holdings(messages: Sequence[link_pb2.UnitHolding], bank: str) -> tuple[UnitHolding, ...]:
    at_most(len(messages), MAX_DEVICES, "unit holdings")
    unique((str(message.unit) for message in messages), f"bank {bank!r}: the holding of unit")
    return tuple(_unit_holding(message, bank) for message in messages)


def _unit_holding(message: link_pb2.UnitHolding, bank: str) -> UnitHolding:
    if message.unit < 0:
        raise InvalidInput(f"bank {bank!r}: a holding of unit {message.unit}.", reason="BAD_REPORT")
    at_most(len(message.holders), MAX_HOLDERS, f"holders of unit {message.unit}")
    for holder in message.holders:  # never cut short: a pod by half a name is another pod
        if not _POD.fullmatch(holder):
            raise InvalidInput(f"bank {bank!r}: {holder[:80]!r} is not a pod's namespace/name.", reason="BAD_REPORT")
    return UnitHolding(
        unit=message.unit,
        holders=tuple(message.holders),
        workload=message.workload[:MAX_UID],
        has_process=message.has_process,
        reason=message.reason[:MAX_TEXT],
    )


def _point_from_proto(message: link_pb2.PointCount, bank: str) -> PointOrder:
    if message.count < 0:
        raise InvalidInput(f"bank {bank!r}: {message.count} devices at a point.", reason="BAD_REPORT")
    return PointOrder(
        point=message.point[:MAX_UID],
        mode=_MODES.get(message.mode, Mode.UNKNOWN),
        power_w=watts(message.power_w, f"bank {bank!r}: point {message.point!r}"),
        count=message.count,
        workload=message.workload[:MAX_UID],
        units=tuple(message.units),
    )


def _unit_workload(text: str, bank: str) -> UnitWorkload:
    unit, _, rest = text.partition(":")
    workload, _, reason = rest.partition(":")
    if not unit.isascii() or not unit.isdigit() or not workload:
        raise InvalidInput(f"bank {bank!r}: {text[:80]!r} is not unit:workload.", reason="BAD_REPORT")
    return UnitWorkload(unit=int(unit), workload=workload[:MAX_UID], reason=reason[:MAX_TEXT])
