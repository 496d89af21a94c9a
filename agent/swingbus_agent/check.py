"""Look once at everything that an agent would read here and say it in plain words. Changes nothing, needs no controller.

Decides what is wrong (configured, but not seen) and what is only absent (not configured, not there). Invariant: nothing is written
anywhere, and no answer takes longer than the sources' own deadlines.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from swingbus.bundle import BUNDLE_FILE, load_bundle
from swingbus.clock import SystemClock, boot_id
from swingbus.faults import SwingbusError
from swingbus_agent.adapters.host import PsutilHost
from swingbus_agent.adapters.modbus_meter import MAPS, ModbusMeter
from swingbus_agent.domain.answers import Hung, Unavailable, Unsupported
from swingbus_agent.domain.fields import HOST_FIELDS
from swingbus_agent.domain.gpu import GpuInventory, GpuRound
from swingbus_agent.domain.miner import Hung as MinerHung
from swingbus_agent.domain.miner import MinerAddress, MinerIdentity, MinerReading
from swingbus_agent.domain.miner import Unavailable as MinerUnavailable
from swingbus_agent.domain.pod_holding import HeldDevice, find_refusal
from swingbus_agent.domain.readings import Condition, Kind
from swingbus_agent.ports.miner import MinerDriver
from swingbus_agent.settings import AgentSettings, BankSettings, MeterSettings


class Grade(Enum):
    """How a finding reads."""

    SEEN = "ok"
    ABSENT = "--"  # not here, and nobody said that it should be
    WRONG = "!!"  # configured, but not seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the answer."""

    grade: Grade
    what: str
    text: str

    @property
    def is_wrong(self) -> bool:
        """Tell whether the configuration names something that cannot be seen."""
        return self.grade is Grade.WRONG

    def line(self) -> str:
        """Return the line as printed."""
        return f"{self.grade.value}  {self.what:<10} {self.text}"


def _seen(what: str, text: str) -> Finding:
    return Finding(grade=Grade.SEEN, what=what, text=text)


def _absent(what: str, text: str) -> Finding:
    return Finding(grade=Grade.ABSENT, what=what, text=text)


def _wrong(what: str, text: str) -> Finding:
    return Finding(grade=Grade.WRONG, what=what, text=text)


async def check_host(settings: AgentSettings | None) -> list[Finding]:
    """Return everything that can be said of this host; with settings also of what they name."""
    findings = [*_host(settings)]
    if settings is not None:
        findings += [*_state(settings), *_link(settings), *_rights(settings)]
    findings += [each async for each in _gpus(settings)]
    if settings is not None and any(bank.miners for bank in settings.banks):
        findings += [each async for each in _miners(settings)]
    else:
        findings.append(_absent("asic", 'no miners are configured; add a [[bank]] of kind "asic" to see them'))
    if settings is not None and settings.meters:
        findings += await _meters(settings.meters)
    else:
        findings.append(_absent("meter", "no meters are configured; add [[meter]] tables to see them"))
    if settings is not None:
        findings += [*_workloads(settings), *await _pods(settings)]
    findings.append(_absent("other", "SNMP PDUs, RAPL and Redfish are not built yet: unsupported"))
    return findings


def _host(settings: AgentSettings | None) -> list[Finding]:
    folder = Path("/") if settings is None else settings.state_dir
    readings = dict(zip((field.name for field in HOST_FIELDS), PsutilHost(folder).read(), strict=True))
    memory = readings["memory_total_bytes"] or 0.0
    found = [
        _seen(
            "host",
            f"{platform.node()}: {platform.system()} {platform.release()}, Python {platform.python_version()}, "
            f"{os.cpu_count()} cores, {memory / 2**30:.1f} GiB",
        )
    ]
    unsaid = [name for name, value in readings.items() if value is None and name != "cpu_ratio"]
    if unsaid:
        found.append(_absent("host", f"this host does not say: {', '.join(unsaid)}"))
    try:
        found.append(_seen("clock", f"boot id {boot_id()[:8]}, CLOCK_BOOTTIME {SystemClock().boottime_s():.0f} s"))
    except SwingbusError as error:
        found.append(_wrong("clock", str(error)))
    return found


def _state(settings: AgentSettings) -> list[Finding]:
    folder = settings.state_dir
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not os.access(nearest, os.W_OK):
        return [
            _wrong("state", f"{folder} cannot be written by {_user()}; give it to the agent's user or change state_dir")
        ]
    free = shutil.disk_usage(nearest).free
    text = f"{folder}: writable, {free / 2**30:.1f} GiB free; the spool may take {settings.spool.max_bytes / 2**20:.0f} MiB"
    return [(_seen if free > settings.spool.max_bytes else _wrong)("state", text)]


def _link(settings: AgentSettings) -> list[Finding]:
    link = settings.controller
    if link.insecure_loopback:
        return [
            _seen(
                "controller", f"{link.endpoint} on loopback, WITHOUT certificates (insecure_loopback): for tests only"
            )
        ]
    path = link.bundle / BUNDLE_FILE
    if not path.exists():
        if not link.endpoint:
            return [_absent("controller", "none is configured: the agent samples and spools only")]
        return [_wrong("controller", f"there is no bundle at {path}; run swingbus-agent join BUNDLE")]
    try:
        bundle = load_bundle(path)
    except SwingbusError as error:
        return [_wrong("controller", str(error))]
    days = (bundle.expires - datetime.now(UTC)).days
    text = f"{link.endpoint or bundle.endpoint}; certificate of {bundle.name} runs out {bundle.expires:%Y-%m-%d} ({days} days)"
    if bundle.name != settings.name:
        return [
            _wrong("controller", f"the bundle is of {bundle.name!r}, the configuration of {settings.name!r}; join anew")
        ]
    if days < 0:
        return [_wrong("controller", f"{text}: it has run out; ask for a new bundle and join")]
    return [_seen("controller", text)]


def _rights(settings: AgentSettings) -> list[Finding]:
    if not settings.writes:
        return [_seen("writes", "off: nothing on this host is ever changed (set writes = true to be controlled)")]
    has_gpus = any(bank.kind is Kind.GPU for bank in settings.banks)
    if has_gpus and os.geteuid() != 0 and not _has_sys_admin():
        text = f"on, but {_user()} is neither root nor has CAP_SYS_ADMIN: a driver will likely refuse power limits"
        return [_wrong("writes", text)]
    who = _user()
    if settings.node.run_as_user and os.geteuid() == 0:
        who = f"user {settings.node.run_as_user}, with a child that stays root for limits and kubelet's socket"
    return [_seen("writes", f"on, as {who}: devices are changed where the controller orders it")]


def _user() -> str:
    return f"user {os.geteuid()}"


def _has_sys_admin() -> bool:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) & (1 << 21))


async def _gpus(settings: AgentSettings | None) -> AsyncIterator[Finding]:
    from swingbus_agent.adapters.nvml.source import NvmlGpus

    is_wanted = settings is not None and any(bank.kind is Kind.GPU for bank in settings.banks)
    missing = _wrong if is_wanted else _absent
    source = NvmlGpus(writes=False)
    try:
        inventory = await source.inventory()
        if not isinstance(inventory, GpuInventory):
            yield missing("gpu", _why(inventory))
            return
        if not inventory.gpus:
            yield missing(
                "gpu", f"driver {inventory.driver_version or 'of unknown version'} answers, but there is no GPU"
            )
            return
        yield _seen("gpu", f"driver {inventory.driver_version or 'of unknown version'}, {len(inventory.gpus)} GPUs")
        round_ = await source.sample()
        samples = {sample.uuid: sample for sample in round_.gpus} if isinstance(round_, GpuRound) else {}
        for gpu in inventory.gpus:
            sample = samples.get(gpu.uuid)
            where = f"{gpu.uuid} {gpu.model or 'model not said'} at {gpu.bus_id or 'unknown bus id'}"
            if sample is None or sample.condition is not Condition.OK:
                why = (
                    "no reading"
                    if sample is None
                    else f"{sample.condition.name.lower()}: {sample.reason or 'no reason given'}"
                )
                yield _wrong("gpu", f"{where}: {why}")
                continue
            watts, limit_w = sample.values.get("power_w"), sample.values.get("power_limit_enforced_w")
            unsaid = f"; never says {', '.join(sorted(gpu.unsupported_fields))}" if gpu.unsupported_fields else ""
            yield _seen("gpu", f"{where}: {_watts(watts)} of {_watts(limit_w)} allowed{unsaid}")
        if settings is not None:
            for bank in settings.banks:
                for uuid in bank.gpus:
                    if uuid not in samples:
                        yield _wrong("gpu", f"bank {bank.name} names {uuid}, which is not on this host; mend `gpus`")
    finally:
        await source.aclose()


def _why(answer: Unsupported | Unavailable | Hung) -> str:
    match answer:
        case Unsupported(reason=reason):
            return f"unsupported here: {reason}"
        case Unavailable(reason=reason):
            return f"cannot be read now: {reason}"
        case Hung(reason=reason):
            return f"the driver hangs: {reason}"


def _watts(watts: float | None) -> str:
    return "watts not said" if watts is None else f"{watts:.0f} W"


async def _miners(settings: AgentSettings) -> AsyncIterator[Finding]:
    from swingbus_agent.adapters.asic.client import AsicDriver, AsicSettings

    miners = [miner for bank in settings.banks for miner in bank.miners]
    driver = AsicDriver(miners, AsicSettings(max_concurrent=settings.sampling.asic_concurrency))
    slots = asyncio.Semaphore(settings.sampling.asic_concurrency)
    found: dict[str, Finding] = {}

    async def look(miner: MinerAddress) -> None:
        async with slots:
            found[miner.name] = await _miner(driver, miner)

    running = asyncio.Event()

    async def serve() -> None:
        running.set()
        await driver.run()

    async with asyncio.TaskGroup() as group:
        child = group.create_task(serve())
        await running.wait()
        try:
            await driver.wait_ready()
        except (SwingbusError, TimeoutError) as error:
            child.cancel()
            yield _wrong("asic", f"the miner driver does not start: {error}")
            return
        async with asyncio.TaskGroup() as looks:
            for miner in miners:
                looks.create_task(look(miner))
        child.cancel()
    for miner in miners:
        yield found[miner.name]


async def _miner(driver: MinerDriver, miner: MinerAddress) -> Finding:
    outcome = await driver.read(miner.name)
    where = f"{miner.name} at {miner.host} ({miner.firmware.value})"
    match outcome:
        case MinerReading():
            identity = await driver.identify(miner.name)
            model = f"{identity.make} {identity.model}" if isinstance(identity, MinerIdentity) else "model not said"
            rate = "" if outcome.hashrate_ths is None else f", {outcome.hashrate_ths:.0f} TH/s"
            return _seen("asic", f"{where}: {model}, {outcome.state.value}, {_watts(outcome.power_w)}{rate}")
        case MinerUnavailable():
            return _wrong(
                "asic", f"{where}: {outcome.reason.value}: {outcome.detail}; check address, firmware and network"
            )
        case MinerHung():
            return _wrong("asic", f"{where}: takes connections but does not answer; restart its control board")
        case _:
            return _wrong("asic", f"{where}: unsupported: {outcome.detail}")


async def _meters(meters: Sequence[MeterSettings]) -> list[Finding]:
    found: list[Finding] = []
    for settings in meters:
        meter = ModbusMeter(
            host=settings.host,
            port=settings.port,
            unit=settings.unit,
            map_=MAPS[settings.map],
            word_order=settings.word_order,
            timeout_s=settings.timeout_s,
        )
        where = f"{settings.name} at {settings.host}:{settings.port} on feeder {settings.feeder}"
        try:
            reading = await meter.read()
            parts = [f"{reading.power_w / 1000:.2f} kW"]
            if reading.voltage_v is not None:
                parts.append(f"{reading.voltage_v:.0f} V")
            if reading.energy_j is not None:
                parts.append(f"{reading.energy_j / 3.6e6:.0f} kWh")
            found.append(_seen("meter", f"{where}: {', '.join(parts)}"))
        except SwingbusError as error:
            found.append(_wrong("meter", f"{where}: {error}"))
        finally:
            await meter.aclose()
    return found


def _workloads(settings: AgentSettings) -> list[Finding]:
    found: list[Finding] = []
    for workload in settings.workloads:
        program = shutil.which(workload.command[0], path=None)
        if program is None:
            text = f"{workload.name}: program {workload.command[0]!r} is not found or may not be run; mend `command`"
            found.append(_wrong("workload", text))
        else:
            found.append(_seen("workload", f"{workload.name} ({workload.mode.name.lower()}): {program}"))
    return found


async def _pods(settings: AgentSettings) -> list[Finding]:
    banks = [bank for bank in settings.banks if bank.runs_pods]
    if not banks:
        return []
    from swingbus_agent.adapters.pod_workloads.kubelet import KubeletPods

    pods = settings.pods
    kubelet = KubeletPods(pods.socket, timeout_s=pods.timeout_s, clock=SystemClock())
    try:
        held = await kubelet.list_held()
    finally:
        await kubelet.aclose()
    if not isinstance(held, tuple):
        return [_wrong("pods", f"{held.reason}; until it answers, no unit of {_names(banks)} counts as free")]
    refusal = find_refusal(held, pods.tenants)
    if refusal:
        return [_wrong("pods", refusal)]
    found = [
        _seen(
            "pods",
            f"kubelet answers at {pods.socket}; pods of namespace {pods.miner_namespace} mine as {pods.mining_workload!r}, "
            f"all others infer as {pods.inference_workload!r}, on {_names(banks)}",
        )
    ]
    gpus: dict[str, list[HeldDevice]] = {}
    for device in held:
        if device.resource == pods.resource:
            gpus.setdefault(device.holder, []).append(device)
    for holder, devices in sorted(gpus.items()):
        tenant = pods.tenants.workload_of(devices[0].namespace)
        found.append(_seen("pods", f"{holder} ({tenant}) holds {', '.join(device.device for device in devices)}"))
    if not gpus:
        found.append(_seen("pods", f"no pod holds a GPU ({pods.resource})"))
    return found


def _names(banks: Sequence[BankSettings]) -> str:
    return ", ".join(bank.name for bank in banks)
