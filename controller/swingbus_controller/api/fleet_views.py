"""The fleet as its messages: what was heard, what is not known and why.

Decides how a reading is shown. Refuses to know: RPCs, pages. Invariant: a missing reading is an absent field with a status, never
a zero; ledger fields are set only where there is a ledger.
"""

from __future__ import annotations

import math

from google.protobuf.timestamp_pb2 import Timestamp

from swingbus.clock import Clock
from swingbus.fleet.v1alpha import fleet_pb2
from swingbus.link.v1alpha import link_pb2
from swingbus.names import AgentName, BankName, DeviceName, FeederName, SiteName
from swingbus_controller.api.codec import duration, timestamp
from swingbus_controller.domain.fleet.fleet import AgentView, BankView, Fleet, Liveness
from swingbus_controller.domain.fleet.frames import DeviceSpec
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.power.bank import ceiling_w
from swingbus_controller.domain.power.limits import Limit, lowest_limit_w
from swingbus_controller.domain.site.sitefile import SiteBank
from swingbus_controller.ports.budget_view import BudgetView
from swingbus_controller.ports.journal import JournaledEntry

_AUTHORITY = {
    Authority.OBSERVE: fleet_pb2.AUTHORITY_OBSERVE,
    Authority.ADVISE: fleet_pb2.AUTHORITY_ADVISE,
    Authority.CONTROL: fleet_pb2.AUTHORITY_CONTROL,
}
_KINDS = {"gpu": link_pb2.DEVICE_KIND_GPU, "asic": link_pb2.DEVICE_KIND_ASIC}
_MODES = {0: "UNKNOWN", 1: "MINING", 2: "INFERENCE", 3: "STANDBY", 4: "OFF"}
# Why a device in this condition has no values now.
_CONDITION_STATUS = {2: "unavailable", 3: "hung", 4: "lost", 5: "unsupported"}
_LISTED = ("power_w", "hashrate_ths")
_TEMPERATURES = ("temperature_c", "board_temperature_c", "chip_temperature_c")
STALE_PERIODS = 3


class FleetViews:
    """Builds messages from the fleet, and from the ledger where there is one."""

    def __init__(self, *, fleet: Fleet, clock: Clock, budget: BudgetView | None) -> None:
        self._fleet = fleet
        self._site = fleet.site
        self._clock = clock
        self._budget = budget

    def site(self, epoch: int) -> fleet_pb2.Site:
        """Return the site."""
        now_s = self._clock.boottime_s()
        head = self._site.tree.root
        reading = self._fleet.feeder_reading(head, now_s)
        message = fleet_pb2.Site(
            name=str(SiteName(self._site.name)),
            authority=_AUTHORITY[self._site.authority],
            price_zone=self._site.price_zone,
            epoch=epoch,
            limit_w=self._file_limit_w(head, now_s),
            metered_power_w=reading.metered_w if reading.meter_state == "live" else None,
            attributed_power_w=reading.attributed_w,
            live_agent_count=self._fleet.live_count(now_s),
            agent_count=len(self._site.agents()),
            changed_settings=[change.sentence() for change in self._site.changed_settings],
        )
        if reading.unattributed_w is not None and reading.metered_w:
            message.unattributed_ratio = reading.unattributed_w / reading.metered_w
        if self._budget is not None:
            budget = self._budget.site_budget(now_s)
            message.authority = _AUTHORITY[budget.authority]
            message.limit_w = budget.limit_w
            message.claimed_power_w = budget.claimed_w
            message.uncontrolled_power_w = budget.uncontrolled_w
            message.margin_power_w = budget.margin_w
            message.within_authority = budget.within_authority
            message.disturbance = budget.disturbance
        return message

    def feeder(self, name: str) -> fleet_pb2.Feeder:
        """Return one feeder that the site has."""
        now_s = self._clock.boottime_s()
        declared = self._site.tree.feeder(name)
        reading = self._fleet.feeder_reading(name, now_s)
        message = fleet_pb2.Feeder(
            name=str(FeederName(self._site.name, name)),
            parent=str(FeederName(self._site.name, declared.parent)) if declared.parent else "",
            kind=self._site.feeder_notes[name].kind,
            limit_w=self._file_limit_w(name, now_s),
            metered_power_w=reading.metered_w if reading.meter_state == "live" else None,
            metered_age=None if reading.age_s is None else duration(reading.age_s),
            meter=reading.meter,
            meter_state=reading.meter_state,
        )
        limits = declared.limits
        if self._budget is not None:
            budget = self._budget.feeder_budget(name, now_s)
            limits = budget.limits
            message.limit_w = budget.limit_w
            message.claimed_power_w = budget.claimed_w
            message.headroom_w = budget.headroom_w
            message.uncontrolled_power_w = budget.uncontrolled_w
            message.margin_power_w = budget.margin_w
        message.limits.extend(self._limit(limit, now_s) for limit in limits)
        return message

    def _file_limit_w(self, feeder: str, now_s: float) -> float:
        """Return the lowest limit of the feeder, else of the feeders above it: watts have no unset."""
        for name, factor in self._site.tree.path(feeder):
            limit_w = lowest_limit_w(self._site.tree.feeder(name).limits, now_s)
            if math.isfinite(limit_w):
                return limit_w / factor
        return 0.0

    def _limit(self, limit: Limit, now_s: float) -> fleet_pb2.Limit:
        return fleet_pb2.Limit(
            limit_w=limit.limit_w,
            window=duration(limit.window_s),
            source=limit.source,
            start_time=self._moment(limit.start_s, now_s),
            end_time=self._moment(limit.end_s, now_s),
        )

    def _moment(self, at_s: float | None, now_s: float) -> Timestamp | None:
        return None if at_s is None else timestamp(self._clock.now().timestamp() + at_s - now_s)

    def agent(self, view: AgentView) -> fleet_pb2.Agent:
        """Return one agent."""
        inventory = view.inventory
        names = inventory.host_fields if inventory is not None else ()
        state = self._fleet.liveness(view, self._clock.boottime_s())
        return fleet_pb2.Agent(
            name=str(AgentName(self._site.name, view.agent)),
            state=state.value,
            version=inventory.version if inventory is not None else "",
            hostname=inventory.hostname if inventory is not None else "",
            last_seen_time=None if view.stored_unix_s is None else timestamp(view.stored_unix_s),
            acked_sequence=view.acked_sequence,
            sample_count=view.sample_count,
            certificate_expire_time=None
            if view.certificate_expire_unix_s is None
            else timestamp(view.certificate_expire_unix_s),
            unsupported=inventory.unsupported if inventory is not None else (),
            host_values={
                name: float(value) for name, value in zip(names, view.host_values, strict=False) if value == value
            },
            writes_enabled=inventory.writes_enabled if inventory is not None else False,
        )

    def bank(self, agent: str, bank: str, view: BankView | None, declared: SiteBank | None) -> fleet_pb2.Bank:
        """Return one bank that an agent reports, the site file declares, or both."""
        message = fleet_pb2.Bank(
            name=str(BankName(self._site.name, agent, bank)),
            feeder=str(FeederName(self._site.name, declared.feeder)) if declared is not None else "",
            state="UNMANAGED",
        )
        if declared is not None:
            device_class = self._site.classes[declared.device_class]
            message.kind = _KINDS[device_class.kind.value]
            message.device_class = declared.device_class
            message.device_count = declared.device_count
            message.unit_size = device_class.unit_size
            message.ceiling_w = ceiling_w(declared.spec)
            message.safe_share_w = declared.spec.safe_share_w
            nearest = self._site.tree.nearest_meter(declared.feeder)
            message.meter = self._site.feeder_notes[nearest].meter if nearest is not None else ""
        else:
            message.explanation = (
                "not in the site file: its watts count as uncontrolled; add it as [[bank]] to manage it"
            )
        if view is not None:
            self._fill_heard(message, view, is_declared=declared is not None)
        budget = self._budget.bank_budget(f"{agent}/{bank}", self._clock.boottime_s()) if self._budget else None
        if budget is not None:
            message.state = budget.state
            if budget.grant_w is not None:
                message.grant_w = budget.grant_w
            message.claim_w = budget.claim_w
            message.explanation = budget.explanation
            message.pin = budget.pin
            message.lockout = budget.lockout
        elif declared is not None:
            message.explanation = f"authority {self._site.authority.value}: it is watched, nothing is granted"
        return message

    def _fill_heard(self, message: fleet_pb2.Bank, view: BankView, *, is_declared: bool) -> None:
        message.device_count = len(view.inventory.devices)
        if not is_declared:
            message.kind = _KINDS[view.inventory.kind]
            message.device_class = view.inventory.device_class
            message.unit_size = view.inventory.unit_size
        if view.frame is None:
            return
        for mode in view.frame.modes:
            word = _MODES.get(int(mode), f"UNRECOGNIZED_{int(mode)}")
            message.mode_counts[word] += 1
        # An old sum would pass for a new one: only a bank that is heard shows watts.
        if view.reading is not None and not self._is_stale(view):
            if view.reading.power_w is not None:
                message.power_w = view.reading.power_w
            if view.reading.hashrate_ths is not None:
                message.hashrate_ths = view.reading.hashrate_ths

    def device(self, view: BankView, row: int, *, is_full: bool) -> fleet_pb2.Device:
        """Return one device; `is_full` with every field of its schema, else with power, hashrate and a temperature."""
        spec = view.inventory.devices[row]
        agent, bank = view.agent, view.inventory.bank
        words = set(self._fleet.accusations.get((agent, bank, spec.device), ()))
        if self._budget is not None:
            words |= set(self._budget.accusations(agent, bank, spec.device))
        message = fleet_pb2.Device(
            name=str(DeviceName(self._site.name, agent, bank, spec.device)),
            spec=link_pb2.DeviceSpec(
                device=spec.device,
                model=spec.model,
                firmware=spec.firmware,
                serial_number=spec.serial_number,
                address=spec.address,
                unsupported_fields=spec.unsupported_fields,
                unit=spec.unit,
            ),
            accusations=sorted(words),
        )
        frame = view.frame
        if frame is not None:
            message.condition = _known(int(frame.conditions[row]), link_pb2.DeviceCondition.values())  # type: ignore[assignment]
            message.mode = _known(int(frame.modes[row]), link_pb2.Mode.values())  # type: ignore[assignment]
            read_s = int(frame.read_boottime_ns[row]) / 1e9
            message.read_time.CopyFrom(timestamp(view.sample_unix_s - view.sample_boottime_s + read_s))
        message.fields.extend(self._fields(view, spec, row, is_full=is_full))
        return message

    def _fields(self, view: BankView, spec: DeviceSpec, row: int, *, is_full: bool) -> list[fleet_pb2.FieldReading]:
        inventory = view.inventory
        names = (*inventory.value_fields, *inventory.counter_fields)
        if not is_full:
            temperature = next((name for name in _TEMPERATURES if name in names), "")
            names = tuple(name for name in names if name in (*_LISTED, temperature))
        return [self._field(view, spec, row, name) for name in names]

    def _field(self, view: BankView, spec: DeviceSpec, row: int, name: str) -> fleet_pb2.FieldReading:
        if name in spec.unsupported_fields:
            return fleet_pb2.FieldReading(field=name, status="unsupported")
        frame = view.frame
        if frame is None:
            return fleet_pb2.FieldReading(field=name, status="unavailable")
        status = _CONDITION_STATUS.get(int(frame.conditions[row]), "")
        if not status and self._is_stale(view):
            status = "stale"
        values, counters = view.inventory.value_fields, view.inventory.counter_fields
        if name in values:
            value = float(frame.values[row * len(values) + values.index(name)])
        else:
            value = float(frame.counters[row * len(counters) + counters.index(name)])
        if not status and math.isnan(value):
            status = "unavailable"
        return fleet_pb2.FieldReading(field=name, value=None if status else value, status=status)

    def _is_stale(self, view: BankView) -> bool:
        agent = self._fleet.agent(view.agent)
        if view.received_s is None or self._fleet.liveness(agent, self._clock.boottime_s()) is not Liveness.LIVE:
            return True
        # A bank may be read less often than its agent reports, but not without end.
        return self._clock.boottime_s() - view.received_s > max(30.0, 2 * STALE_PERIODS * agent.period_s)


def event_to_proto(journaled: JournaledEntry) -> fleet_pb2.Event:
    """Return one entry of the record."""
    entry = journaled.entry
    return fleet_pb2.Event(
        revision=journaled.revision,
        event_time=timestamp(entry.at_unix_s),
        kind=entry.kind,
        subject=entry.subject,
        author=entry.author,
        reason=entry.reason,
        message=entry.message,
        facts=dict(entry.facts),
    )


def _known(number: int, known: list[int]) -> int:
    """Return an enum's number, or 0 for one that this version does not know."""
    return number if number in known else 0
