"""Put a running agent together from its settings and run it until it is told to end."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import structlog

from swingbus import __version__
from swingbus.bundle import BUNDLE_FILE
from swingbus.clock import Clock, SystemClock, boot_id
from swingbus.faults import SwingbusError, Unreachable
from swingbus_agent.adapters.channels import BundleChannels, LoopbackChannels
from swingbus_agent.adapters.grpc_link import GrpcLink
from swingbus_agent.adapters.host import PsutilHost
from swingbus_agent.adapters.metrics import Gauge, serve_metrics
from swingbus_agent.adapters.modbus_meter import MAPS, ModbusMeter
from swingbus_agent.adapters.privileged.door import KubeletDoor
from swingbus_agent.adapters.privileged.limits import KeptLimits
from swingbus_agent.adapters.privileged.link import KeeperLink
from swingbus_agent.adapters.spool import SqliteSpool
from swingbus_agent.adapters.state_store import FileStateStore
from swingbus_agent.app.asic_bank import AsicBank
from swingbus_agent.app.executing import Executor, Pace
from swingbus_agent.app.gpu_bank import GpuBank, GpuHost
from swingbus_agent.app.obeying import Obedience
from swingbus_agent.app.reporting import Reporter
from swingbus_agent.app.rounds import Rounds
from swingbus_agent.app.sampling import MeterPlace, Ticks, first_look, sample_bank, sample_host, sample_meter
from swingbus_agent.app.steward import Steward, StewardSettings
from swingbus_agent.codec import ProtoRoundCodec
from swingbus_agent.domain.fields import HOST_FIELDS
from swingbus_agent.domain.readings import Inventory, Kind, MeterSpec
from swingbus_agent.domain.spool_policy import Bounds
from swingbus_agent.domain.views import ExecutionTimes
from swingbus_agent.domain.workload import GpuUnit
from swingbus_agent.ports.bank import BankPort, BankReading
from swingbus_agent.ports.gpu import GpuActuator
from swingbus_agent.ports.pods import PodLister
from swingbus_agent.ports.workload import WorkloadDriver
from swingbus_agent.settings import AgentSettings, BankSettings, PodSettings

_FIRST_LOOK_S = 8.0
_UPKEEP_S = 5.0
_log = structlog.get_logger()
Step = Callable[[], Coroutine[Any, Any, None]]


class _Leave(Exception):
    """Ends the task group at a signal."""


class _KeeperGone(Exception):
    """Ends the task group when the child that stayed root is no more."""


async def run_agent(settings: AgentSettings, keeper: KeeperLink | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code.

    Args:
        settings: the agent's file.
        keeper: to the child that stayed root, where the agent is not root any more.

    Raises:
        Unreachable: that child is gone. Without root nothing here can start it again, and an agent that cannot lower a limit must not
            look as if it could: whoever started both starts both again.
    """
    clock = SystemClock()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = Agent(settings, clock=clock, random_=random.Random(), keeper=keeper)
    lost: list[BaseException] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_leave_at(stop))
            group.create_task(agent.run())
            if keeper is not None:
                group.create_task(_watch_keeper(keeper))
    except* _Leave:
        _log.info("agent_left", message="sessions are closed; miners and workloads go on as they are")
    except* _KeeperGone as group_error:
        lost.extend(group_error.exceptions)
    finally:
        if keeper is not None:
            keeper.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if lost and not stop.is_set():
        raise Unreachable(str(lost[0]), reason="PRIVILEGED_CHILD_GONE")
    return 0


async def _watch_keeper(keeper: KeeperLink) -> None:
    raise _KeeperGone(f"the privileged child {await keeper.wait_gone()}; the agent ends so that both are started again")


async def _leave_at(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _Leave


def open_link_channels(settings: AgentSettings) -> LoopbackChannels | BundleChannels | None:
    """Return what opens channels to the controller; None where none is configured.

    Raises:
        SwingbusError: the bundle is missing, unreadable or another agent's.
    """
    link = settings.controller
    if link.insecure_loopback:
        return LoopbackChannels(link.endpoint)
    path = link.bundle / BUNDLE_FILE
    if not link.endpoint and not path.exists():
        return None
    return BundleChannels(path, agent=settings.name, endpoint=link.endpoint)


class Agent:
    """One agent, put together; `run` never returns by itself."""

    def __init__(
        self, settings: AgentSettings, *, clock: Clock, random_: random.Random, keeper: KeeperLink | None = None
    ) -> None:
        self._settings = settings
        self._keeper = keeper
        self._clock = clock
        self._random = random_
        self._boot_id = boot_id()
        times = settings.execution
        self.steward = Steward(
            StewardSettings(
                times=ExecutionTimes(
                    verify_s=times.verify_s,
                    boot_s=times.boot_s,
                    attempts=times.attempts,
                    backoff_max_s=times.backoff_max_s,
                ),
                quarantine_s=times.quarantine_s,
                writes=settings.writes,
                shed_kw_per_s={bank.name: bank.shed_kw_per_s for bank in settings.banks},
            ),
            clock=clock,
            store=FileStateStore(settings.state_dir),
            boot_id=self._boot_id,
        )
        self.spool = SqliteSpool(
            settings.state_dir,
            codec=ProtoRoundCodec(),
            bounds=Bounds(max_bytes=settings.spool.max_bytes, max_age_s=settings.spool.max_age_s),
        )
        self.reporter: Reporter | None = None
        self.obedience: Obedience | None = None
        self.rounds: Rounds | None = None
        self._executors: dict[str, Executor] = {}

    async def run(self) -> None:
        """Build, look once, then run every loop."""
        settings = self._settings
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        channels = open_link_channels(settings)
        damage = await self.spool.open()
        self.steward.load()
        drivers, readiness, banks, closers = build_banks(settings, self._clock, self._keeper)
        rounds = self.rounds = Rounds(
            self.spool,
            clock=self._clock,
            boot_id=self._boot_id,
            inventory=self._first_inventory(),
            bank_names=[bank.name for bank in banks],
        )
        if damage:
            rounds.tell("spool_damaged", damage)
        for fault in self.steward.load_faults:
            rounds.tell("state_lost", fault)
        stop_metrics: Callable[[], None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for driver in drivers:
                    group.create_task(driver())
                for is_ready in readiness:
                    await _wait_ready(is_ready)
                if settings.metrics.port:
                    stop_metrics = serve_metrics(settings.metrics.host, settings.metrics.port, self.snapshot)
                for reading in await first_look(banks, _FIRST_LOOK_S):
                    self._take(reading, banks)
                    rounds.take_bank(reading)
                rounds.set_unsupported(self._unsupported(banks))
                self._start(group, banks, channels)
                gc.collect()
                gc.freeze()
        finally:
            if stop_metrics is not None:
                await asyncio.to_thread(stop_metrics)
            for close in closers:
                await close()
            await self.spool.aclose()

    def _first_inventory(self) -> Inventory:
        return Inventory(
            version=__version__,
            hostname=socket.gethostname(),
            banks=(),
            meters=tuple(
                MeterSpec(
                    meter=meter.name,
                    feeder=meter.feeder,
                    window_s=meter.window_s,
                    lag_s=meter.lag_s,
                    error_ratio=meter.error_ratio,
                    quantum_w=meter.quantum_w,
                )
                for meter in self._settings.meters
            ),
            host_fields=tuple(field.name for field in HOST_FIELDS),
            unsupported=(),
            writes_enabled=self._settings.writes,
        )

    def _unsupported(self, banks: Sequence[BankPort]) -> tuple[str, ...]:
        found = [text for bank in banks for text in bank.unsupported]
        if not any(bank.kind is Kind.ASIC for bank in self._settings.banks):
            found.append("asic: none is configured")
        if not self._settings.meters:
            found.append("meter: none is configured")
        found += ["snmp: not built yet", "rapl: not built yet", "redfish: not built yet"]
        return tuple(found)

    def _start(
        self,
        group: asyncio.TaskGroup,
        banks: Sequence[BankPort],
        channels: LoopbackChannels | BundleChannels | None,
    ) -> None:
        settings, clock, rounds = self._settings, self._clock, self.rounds
        assert rounds is not None
        ticks = Ticks(clock, self._random)
        group.create_task(rounds.run())
        if channels is not None:
            if isinstance(channels, BundleChannels):
                channels.tell_to(rounds.tell)
            link = GrpcLink(
                agent=settings.name,
                instance_uid=self.steward.instance_uid,
                channels=channels,
                timeout_s=settings.controller.connect_timeout_s,
            )
            self.reporter = Reporter(
                link,
                self.spool,
                rounds,
                clock=clock,
                random_=self._random,
                backfill_per_s=settings.spool.backfill_per_s,
                backoff_max_s=settings.controller.backoff_max_s,
            )
            self.obedience = Obedience(
                link, self.steward, clock=clock, random_=self._random, backoff_max_s=settings.controller.backoff_max_s
            )
            group.create_task(_run_and_close(self.reporter.run, link.aclose))
            group.create_task(self.obedience.run())
            if settings.writes:
                group.create_task(self._wake_executors(self.obedience))
        for bank in banks:
            if settings.writes:
                self._executors[bank.name] = Executor(
                    bank,
                    self.steward,
                    rounds,
                    clock=clock,
                    pace=Pace(
                        tick_s=settings.execution.tick_s,
                        batch=settings.execution.batch,
                        stagger_s=settings.execution.stagger_s,
                    ),
                    obedience=self.obedience,
                )
                group.create_task(self._executors[bank.name].run())
            group.create_task(
                sample_bank(bank, rounds, ticks, lambda reading, banks=banks: self._take(reading, banks))  # type: ignore[misc]
            )
        for index, meter in enumerate(settings.meters):
            place = MeterPlace(
                index=index, spec=rounds.inventory.meters[index], period_s=settings.sampling.meter_period_s
            )
            source = ModbusMeter(
                host=meter.host,
                port=meter.port,
                unit=meter.unit,
                map_=MAPS[meter.map],
                word_order=meter.word_order,
                timeout_s=meter.timeout_s,
            )
            group.create_task(
                _run_and_close(
                    lambda source=source, place=place: sample_meter(  # type: ignore[misc]
                        source, place, rounds, ticks, clock, self.steward.marker_before
                    ),
                    source.aclose,
                )
            )
        group.create_task(sample_host(PsutilHost(settings.state_dir), rounds, ticks, settings.sampling.host_period_s))
        group.create_task(self._upkeep(banks))

    def _take(self, reading: BankReading, banks: Sequence[BankPort]) -> None:
        """Hand one reading to the steward, and wake who waits for it."""
        name = reading.spec.bank
        bank = next(each for each in banks if each.name == name)
        notices = self.steward.observe(reading, floor_w=bank.floor_w)
        if self.rounds is not None:
            self.rounds.tell_all(notices, name)
        if name in self._executors:
            self._executors[name].wake.set()
        if self.obedience is not None:
            self.obedience.changed.set()

    async def _wake_executors(self, obedience: Obedience) -> None:
        while True:
            await obedience.ordered.wait()
            obedience.ordered.clear()
            for executor in self._executors.values():
                executor.wake.set()

    async def _upkeep(self, banks: Sequence[BankPort]) -> None:
        """Store leases that have grown and say what is unsupported, now and then."""
        while True:
            await self._clock.sleep(_UPKEEP_S)
            try:
                await self.steward.refresh()
            except SwingbusError as error:
                _log.error("state_not_stored", reason=error.reason, message=str(error))
            if self.rounds is not None:
                self.rounds.set_unsupported(self._unsupported(banks))

    def snapshot(self) -> Iterable[Gauge]:
        """Return what a scrape shows. Called from another thread: it only reads."""
        rounds = self.rounds
        if rounds is None:
            return
        yield Gauge(
            name="swingbus_agent_rounds",
            meaning="Rounds stored in the spool.",
            value=float(rounds.round_count),
            is_counter=True,
        )
        if self.reporter is not None and self.obedience is not None:
            for stream, is_open in (
                ("telemetry", self.reporter.is_connected),
                ("control", self.obedience.is_connected),
            ):
                yield Gauge(
                    name="swingbus_agent_connected",
                    meaning="1 while the stream to the controller is open.",
                    value=float(is_open),
                    labels=(("stream", stream),),
                )
            yield Gauge(
                name="swingbus_agent_acked_sequence",
                meaning="Every batch up to this one is stored at the controller.",
                value=float(self.reporter.acknowledged_sequence),
            )
        for field, value in zip(HOST_FIELDS, rounds.latest_host, strict=False):
            if value is not None:
                yield Gauge(name=f"swingbus_host_{field.name}", meaning=f"Host: {field.meaning}.", value=value)
        for name, reading in list(rounds.latest.items()):
            yield from _bank_gauges(name, reading)
        for spec, meter in rounds.latest_meters():
            labels = (("meter", spec.meter), ("feeder", spec.feeder))
            yield Gauge(
                name="swingbus_meter_up",
                meaning="1 if the meter answered.",
                value=float(not meter.fault),
                labels=labels,
            )
            if meter.power_w is not None:
                yield Gauge(
                    name="swingbus_meter_power_w", meaning="Mean active power.", value=meter.power_w, labels=labels
                )
            if meter.energy_j is not None:
                yield Gauge(
                    name="swingbus_meter_energy_j",
                    meaning="Energy register.",
                    value=meter.energy_j,
                    labels=labels,
                    is_counter=True,
                )


def _bank_gauges(name: str, reading: BankReading) -> Iterable[Gauge]:
    spec, round_ = reading.spec, reading.round
    kind = spec.kind.name.lower()
    for row, device in enumerate(spec.devices):
        labels = (("bank", name), ("device", device.device))
        yield Gauge(
            name="swingbus_device_up",
            meaning="1 if the device answered.",
            value=float(round_.conditions[row].name == "OK"),
            labels=labels,
        )
        for fields, column, is_counter in (
            (spec.value_fields, round_.values, False),
            (spec.counter_fields, round_.counters, True),
        ):
            for position, field in enumerate(fields):
                value = column[row * len(fields) + position]
                if value is not None:
                    yield Gauge(
                        name=f"swingbus_{kind}_{field}",
                        meaning=f"{field} of one device.",
                        value=value,
                        labels=labels,
                        is_counter=is_counter,
                    )


async def _wait_ready(is_ready: Step) -> None:
    """Give a driver's child a moment; without it its devices are unavailable, which is no reason not to start."""
    try:
        async with asyncio.timeout(_FIRST_LOOK_S):
            await is_ready()
    except (TimeoutError, SwingbusError) as error:
        _log.warning("driver_not_ready", message=str(error) or "no sign of life")


async def _run_and_close(run: Step, close: Step) -> None:
    try:
        await run()
    finally:
        await close()


def build_banks(
    settings: AgentSettings, clock: Clock, keeper: KeeperLink | None = None
) -> tuple[list[Step], list[Step], list[BankPort], list[Step]]:
    """Return drivers to run, what tells that they are up, banks, and what closes them. Without `writes` no write path is loaded at all."""
    drivers: list[Step] = []
    readiness: list[Step] = []
    closers: list[Step] = []
    banks: list[BankPort] = []
    miners = [miner for bank in settings.banks for miner in bank.miners]
    asic_driver = None
    if miners:
        from swingbus_agent.adapters.asic.client import AsicDriver, AsicSettings

        asic_driver = AsicDriver(miners, AsicSettings(max_concurrent=settings.sampling.asic_concurrency))
        drivers.append(asic_driver.run)
        readiness.append(asic_driver.wait_ready)
    gpu_banks = [bank for bank in settings.banks if bank.kind is Kind.GPU]
    wants_gpus = bool(gpu_banks) or not settings.banks
    gpu_host = None
    actuator: GpuActuator | None = None
    if wants_gpus:
        from swingbus_agent.adapters.nvml.source import NvmlGpus

        # With a child that stayed root the one that reads has no write path.
        source = NvmlGpus(writes=settings.writes and keeper is None)
        closers.append(source.aclose)
        if settings.writes:
            actuator = source if keeper is None else KeptLimits(source, keeper)
        gpu_host = GpuHost(source, clock, fresh_s=settings.sampling.gpu_period_s * 0.5)
    kubelet: PodLister | None = None
    if any(bank.runs_pods for bank in gpu_banks):
        from swingbus_agent.adapters.pod_workloads.kubelet import KubeletPods

        door = None
        if keeper is not None:
            door = KubeletDoor(settings.state_dir, keeper, deadline_s=settings.pods.timeout_s)
        kubelet = KubeletPods(settings.pods.socket, timeout_s=settings.pods.timeout_s, clock=clock, door=door)
        closers.append(kubelet.aclose)
        if door is not None:
            closers.append(door.aclose)
    for bank in settings.banks:
        if bank.kind is Kind.ASIC and asic_driver is not None:
            banks.append(
                AsicBank(
                    name=bank.name,
                    device_class=bank.device_class,
                    meter=bank.meter,
                    miners=[(miner.name, miner.host) for miner in bank.miners],
                    points=bank.points,
                    driver=asic_driver,
                    clock=clock,
                    period_s=settings.sampling.asic_period_s,
                    concurrency=settings.sampling.asic_concurrency,
                    can_write=settings.writes,
                )
            )
        elif gpu_host is not None:
            banks.append(
                GpuBank(
                    name=bank.name,
                    device_class=bank.device_class,
                    unit_size=bank.unit_size,
                    meter=bank.meter,
                    gpus=bank.gpus,
                    points=bank.points,
                    workload_names=bank.workloads,
                    host=gpu_host,
                    clock=clock,
                    period_s=settings.sampling.gpu_period_s,
                    actuator=actuator,
                    make_workloads=_workload_factory(settings, bank, kubelet, clock),
                )
            )
    if not settings.banks and gpu_host is not None:
        # Nothing configured: whatever GPUs there are, read-only.
        banks.append(
            GpuBank(
                name="gpu",
                device_class="",
                unit_size=1,
                meter="",
                gpus=(),
                points=(),
                workload_names=(),
                host=gpu_host,
                clock=clock,
                period_s=settings.sampling.gpu_period_s,
            )
        )
    return drivers, readiness, banks, closers


def _workload_factory(
    settings: AgentSettings, bank: BankSettings, kubelet: PodLister | None, clock: Clock
) -> Callable[[Sequence[GpuUnit]], WorkloadDriver] | None:
    if bank.runs_pods and kubelet is not None:
        # Also without `writes`: it changes nothing, and who holds which GPU is a reading like any other.
        return _pod_workloads(settings.pods, kubelet, clock)
    if not bank.workloads or not settings.writes:
        return None
    specs = [spec for spec in settings.workloads if spec.name in bank.workloads]

    def make(units: Sequence[GpuUnit]) -> WorkloadDriver:
        from swingbus_agent.adapters.local_workloads.driver import LocalWorkloads

        return LocalWorkloads(units=units, specs=specs, folder=settings.state_dir / "workloads" / bank.name)

    return make


def _pod_workloads(
    pods: PodSettings, kubelet: PodLister, clock: Clock
) -> Callable[[Sequence[GpuUnit]], WorkloadDriver]:
    def make(units: Sequence[GpuUnit]) -> WorkloadDriver:
        from swingbus_agent.adapters.pod_workloads.driver import PodWorkloads

        return PodWorkloads(units=units, kubelet=kubelet, tenants=pods.tenants, now_s=clock.boottime_s)

    return make
