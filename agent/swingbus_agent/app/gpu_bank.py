"""A bank of GPUs: lays one round of the host's driver out in columns, and runs limits and workloads unit by unit.

Decides which GPUs make up which unit and what mode a GPU is in: what its unit's workload says while one lives, STANDBY when
nothing holds the GPU, UNKNOWN when a stranger does. Knows no driver and no process. Invariant: a GPU that is lost or hung keeps its
row and says so; a process list that was not asked for is not an empty one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from swingbus.clock import Clock
from swingbus.faults import SwingbusError, TimedOut
from swingbus_agent.domain.answers import Hung, Unavailable, Unsupported
from swingbus_agent.domain.fields import counter_fields, value_fields
from swingbus_agent.domain.gpu import GpuIdentity, GpuInventory, GpuRound, GpuSample
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.readings import BankRound, BankSpec, Condition, DeviceSpec, Kind, PointSpec
from swingbus_agent.domain.views import DeviceView, UnitView, Verb, Write
from swingbus_agent.domain.workload import GpuUnit, WorkloadPhase, WorkloadStatus
from swingbus_agent.ports.bank import BankReading, Taking, WriteAnswer
from swingbus_agent.ports.gpu import GpuActuator, GpuSource
from swingbus_agent.ports.workload import WorkloadDriver

_VALUES = value_fields(Kind.GPU)
_COUNTERS = counter_fields(Kind.GPU)
_LIVES = (WorkloadPhase.STARTING, WorkloadPhase.READY, WorkloadPhase.UNREADY, WorkloadPhase.STOPPING)
GpuAnswer = GpuRound | Unsupported | Unavailable | Hung


class GpuHost:
    """One host's GPUs, shared by its banks: a round that is fresh enough is not asked for twice."""

    def __init__(self, source: GpuSource, clock: Clock, *, fresh_s: float) -> None:
        self._source = source
        self._clock = clock
        self._fresh_s = fresh_s
        self._lock = asyncio.Lock()
        self._round: GpuAnswer | None = None
        self._asked_s = float("-inf")

    async def inventory(self) -> GpuInventory | Unsupported | Unavailable | Hung:
        """Return which GPUs there are."""
        return await self._source.inventory()

    async def sample(self) -> GpuAnswer:
        """Return one round."""
        async with self._lock:
            now_s = self._clock.boottime_s()
            if self._round is None or now_s - self._asked_s >= self._fresh_s:
                self._asked_s = now_s
                self._round = await self._source.sample()
            return self._round


def make_units(bank: str, gpus: Sequence[GpuIdentity], unit_size: int) -> tuple[GpuUnit, ...]:
    """Return a bank's units: neighbours in its order; a rest that fills no unit is left out."""
    return tuple(
        GpuUnit(
            name=f"{bank}/{number}",
            number=number,
            gpu_indices=tuple(gpu.index for gpu in members),
            gpu_uuids=tuple(gpu.uuid for gpu in members),
        )
        for number, members in enumerate(
            gpus[start : start + unit_size] for start in range(0, len(gpus) - unit_size + 1, unit_size)
        )
    )


class GpuBank:
    """GPUs of one bank. `gpus` empty means every GPU of the host."""

    def __init__(
        self,
        *,
        name: str,
        device_class: str,
        unit_size: int,
        meter: str,
        gpus: Sequence[str],
        points: Sequence[PointSpec],
        workload_names: Sequence[str],
        host: GpuHost,
        clock: Clock,
        period_s: float,
        actuator: GpuActuator | None = None,
        make_workloads: Callable[[Sequence[GpuUnit]], WorkloadDriver] | None = None,
    ) -> None:
        self._clock = clock
        self._host = host
        self._period_s = period_s
        self._wanted = tuple(gpus)
        self._actuator = actuator
        self._make_workloads = make_workloads
        self._workloads: WorkloadDriver | None = None
        self._units: tuple[GpuUnit, ...] = ()
        self._points = tuple(points)
        self._empty = BankSpec(
            bank=name,
            kind=Kind.GPU,
            device_class=device_class,
            unit_size=unit_size,
            devices=(),
            value_fields=_VALUES,
            counter_fields=_COUNTERS,
            points=self._points,
            workloads=tuple(workload_names),
            meter=meter,
        )
        self._spec = self._empty
        self._revision: int | None = None
        self._why_not = ""
        self._floor_w = 0.0
        self._processes: dict[str, tuple[int, float]] = {}
        self._is_blind_to_workloads = False

    @property
    def name(self) -> str:
        return self._empty.bank

    @property
    def period_s(self) -> float:
        return self._period_s

    @property
    def floor_w(self) -> float:
        return self._floor_w

    @property
    def unsupported(self) -> tuple[str, ...]:
        return (f"{self.name}: {self._why_not}",) if self._why_not else ()

    async def read(self) -> BankReading | None:
        statuses = await self._statuses()
        round_ = await self._host.sample()
        if isinstance(round_, GpuRound):
            self._why_not = ""
            if round_.inventory_revision != self._revision:
                before = self._workloads
                await self._take_inventory()
                if self._workloads is not before:
                    # A driver that is new was never asked: without its word a unit would look free for a round.
                    statuses = await self._statuses()
            return self._laid_out(round_, statuses) if self._spec.devices else None
        self._why_not = round_.reason
        if not self._spec.devices or isinstance(round_, Unsupported):
            return None
        condition = Condition.HUNG if isinstance(round_, Hung) else Condition.UNAVAILABLE
        return self._all_blind(condition, statuses)

    async def _statuses(self) -> Mapping[str, WorkloadStatus]:
        return {} if self._workloads is None else await self._workloads.observe()

    async def _take_inventory(self) -> None:
        inventory = await self._host.inventory()
        if not isinstance(inventory, GpuInventory):
            return
        found = {gpu.uuid: gpu for gpu in inventory.gpus}
        members = [found[uuid] for uuid in self._wanted if uuid in found] if self._wanted else list(inventory.gpus)
        missing = [uuid for uuid in self._wanted if uuid not in found]
        if missing:
            self._why_not = f"{len(missing)} of {len(self._wanted)} GPUs are not on this host: {', '.join(missing[:4])}"
        self._floor_w = max((gpu.min_limit_w for gpu in members if gpu.min_limit_w is not None), default=0.0)
        devices = tuple(
            DeviceSpec(
                device=gpu.uuid,
                model=gpu.model or "",
                firmware=inventory.driver_version or "",
                serial_number=gpu.serial_number or "",
                address=gpu.bus_id or "",
                unsupported_fields=tuple(sorted(gpu.unsupported_fields)),
                unit=position // self._empty.unit_size,
            )
            for position, gpu in enumerate(members)
        )
        device_class = self._empty.device_class or (members[0].model or "gpu" if members else "")
        self._spec = replace(
            self._empty,
            devices=devices,
            device_class=device_class,
            points=self._points or self._learned_points(members),
        )
        self._revision = inventory.revision
        self._prepare_workloads(make_units(self.name, members, self._empty.unit_size))

    def _prepare_workloads(self, units: tuple[GpuUnit, ...]) -> None:
        """Make the driver of these units; what an earlier one started is found again."""
        if self._make_workloads is None or units == self._units:
            return
        try:
            self._workloads = self._make_workloads(units)
            self._units = units
        except SwingbusError as error:
            self._why_not = f"workloads cannot be run: {error}"

    def _learned_points(self, members: Sequence[GpuIdentity]) -> tuple[PointSpec, ...]:
        """Without points in the file there is nothing to order, only rest at the least limit to name."""
        if not members or not self._floor_w:
            return ()
        return (PointSpec(point="standby", mode=Mode.STANDBY, power_w=self._floor_w),)

    def _laid_out(self, round_: GpuRound, statuses: Mapping[str, WorkloadStatus]) -> BankReading:
        samples = {sample.uuid: sample for sample in round_.gpus}
        values: list[float | None] = []
        counters: list[float | None] = []
        views: list[DeviceView] = []
        events: list[tuple[str, str, str]] = []
        read_ns: list[int] = []
        for spec in self._spec.devices:
            sample = samples.get(spec.device)
            if sample is None:  # the inventory changed within this round
                values.extend([None] * len(_VALUES))
                counters.extend([None] * len(_COUNTERS))
                read_ns.append(round(self._clock.boottime_s() * 1e9))
                views.append(self._blind_view(spec, Condition.UNAVAILABLE))
                continue
            values.extend(sample.row(_VALUES))
            counters.extend(sample.row(_COUNTERS))
            read_ns.append(sample.started_boottime_ns)
            views.append(self._view(spec, sample, statuses.get(f"{self.name}/{spec.unit}")))
            events.extend(
                (
                    "gpu_xid_seen",
                    spec.device,
                    f"XID {xid} on {spec.device} ({spec.address}): see NVIDIA's XID catalogue",
                )
                for xid in sample.new_xids
            )
        return self._reading(values, counters, views, read_ns, statuses, events)

    def _all_blind(self, condition: Condition, statuses: Mapping[str, WorkloadStatus]) -> BankReading:
        count = len(self._spec.devices)
        views = [self._blind_view(spec, condition) for spec in self._spec.devices]
        now_ns = round(self._clock.boottime_s() * 1e9)
        return self._reading(
            [None] * (count * len(_VALUES)), [None] * (count * len(_COUNTERS)), views, [now_ns] * count, statuses, []
        )

    def _reading(
        self,
        values: Sequence[float | None],
        counters: Sequence[float | None],
        views: Sequence[DeviceView],
        read_ns: Sequence[int],
        statuses: Mapping[str, WorkloadStatus],
        events: Sequence[tuple[str, str, str]],
    ) -> BankReading:
        numbers = sorted({spec.unit for spec in self._spec.devices})
        return BankReading(
            spec=self._spec,
            round=BankRound(
                bank_index=0,
                values=tuple(values),
                counters=tuple(counters),
                conditions=tuple(view.condition for view in views),
                modes=tuple(view.mode for view in views),
                read_boottime_ns=tuple(read_ns),
            ),
            views=tuple(views),
            units=tuple(_unit_view(number, statuses.get(f"{self.name}/{number}")) for number in numbers),
            events=(*events, *self._news_of_workloads(statuses)),
        )

    def _news_of_workloads(self, statuses: Mapping[str, WorkloadStatus]) -> list[tuple[str, str, str]]:
        """Tell once that nobody can say what runs on the units, with why, and once that it is known again."""
        events: list[tuple[str, str, str]] = []
        unknown = [status for status in statuses.values() if status.phase is WorkloadPhase.UNKNOWN]
        if unknown and not self._is_blind_to_workloads:
            events.append(("workloads_unknown", "", f"no unit of {self.name} counts as free: {unknown[0].reason}"))
        elif not unknown and self._is_blind_to_workloads:
            events.append(("workloads_known", "", f"what holds the units of {self.name} is known again"))
        self._is_blind_to_workloads = bool(unknown)
        return events

    def _blind_view(self, spec: DeviceSpec, condition: Condition) -> DeviceView:
        return DeviceView(
            device=spec.device,
            unit=spec.unit,
            condition=condition,
            mode=Mode.UNKNOWN,
            enforced_w=None,
            read_started_s=self._clock.boottime_s(),
        )

    def _view(self, spec: DeviceSpec, sample: GpuSample, status: WorkloadStatus | None) -> DeviceView:
        started_s = sample.started_boottime_ns / 1e9
        if sample.processes is not None:
            self._processes[spec.device] = (len(sample.processes), started_s)
        count, counted_s = self._processes.get(spec.device, (None, 0.0))
        return DeviceView(
            device=spec.device,
            unit=spec.unit,
            condition=sample.condition,
            mode=_mode(sample.condition, status, count, counted_s),
            enforced_w=sample.values.get("power_limit_enforced_w"),
            read_started_s=started_s,
            process_count=count,
            processes_read_s=counted_s,
            power_w=sample.values.get("power_w"),
        )

    async def write(self, write: Write) -> WriteAnswer:
        try:
            match write.verb:
                case Verb.SET_POWER if self._actuator is not None:
                    await self._actuator.set_power_limit(write.device, write.target.power_w)
                case Verb.START_WORKLOAD if self._workloads is not None:
                    await self._workloads.start(f"{self.name}/{write.unit}", write.target.workload)
                case Verb.STOP_WORKLOAD if self._workloads is not None:
                    await self._workloads.stop(f"{self.name}/{write.unit}")
                case _:
                    return WriteAnswer(
                        taking=Taking.REFUSED, detail="writes are off in the agent's file, or not for GPUs"
                    )
        except TimedOut as error:
            return WriteAnswer(taking=Taking.NO_ANSWER, detail=str(error))
        except SwingbusError as error:
            return WriteAnswer(taking=Taking.REFUSED, detail=str(error))
        return WriteAnswer(taking=Taking.TAKEN)

    async def aclose(self) -> None:
        """Let go; driver and workloads belong to whoever made them, and the workloads go on."""


def _mode(condition: Condition, status: WorkloadStatus | None, process_count: int | None, counted_s: float) -> Mode:
    if condition is not Condition.OK:
        return Mode.UNKNOWN
    lives = status is not None and status.has_process and status.phase in _LIVES and status.mode is not None
    if status is not None and status.mode is not None and lives:
        # A pod that was given a GPU works on it only once a process is seen there, by a reading later than that.
        is_at_work = status.holders is None or bool(process_count and counted_s >= status.since_boottime_s)
        if is_at_work:
            return status.mode
    return Mode.STANDBY if process_count == 0 else Mode.UNKNOWN


def _unit_view(number: int, status: WorkloadStatus | None) -> UnitView:
    if status is None:
        return UnitView(unit=number)
    return UnitView(
        unit=number,
        workload=status.workload or "",
        mode=status.mode,
        phase=status.phase,
        has_process=status.has_process,
        reason=status.reason,
        since_s=status.since_boottime_s,
        holders=status.holders,
    )
