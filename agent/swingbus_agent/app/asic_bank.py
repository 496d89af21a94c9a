"""A bank of ASICs: asks its miners side by side, lays their answers out in columns, carries out writes one device at a time.

Decides how a miner's words map to columns, modes and watts in force. Knows no protocol. Invariant: what a miner did not say is
absent, and one that does not answer is a condition, never a row of zeros.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace

from swingbus.clock import Clock
from swingbus_agent.domain.fields import counter_fields, value_fields
from swingbus_agent.domain.miner import (
    Hung,
    MinerIdentity,
    MinerOutcome,
    MinerProfile,
    MinerReading,
    OperatingState,
    Unavailable,
    Unsupported,
    WriteOutcome,
    WriteVerdict,
    largest_profile_within,
)
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.readings import BankRound, BankSpec, Condition, DeviceSpec, Kind, PointSpec
from swingbus_agent.domain.views import DeviceView, Verb, Write
from swingbus_agent.ports.bank import BankReading, Taking, WriteAnswer
from swingbus_agent.ports.miner import MinerDriver

_MODES = {
    OperatingState.MINING: Mode.MINING,
    OperatingState.BOOTING: Mode.MINING,  # told to hash
    OperatingState.SLEEPING: Mode.STANDBY,
    OperatingState.UNKNOWN: Mode.UNKNOWN,
}
_IDENTIFY_AGAIN_S = 60.0
_VALUES = value_fields(Kind.ASIC)
_COUNTERS = counter_fields(Kind.ASIC)


class AsicBank:
    """The miners of one bank behind a `MinerDriver`."""

    def __init__(
        self,
        *,
        name: str,
        device_class: str,
        meter: str,
        miners: Sequence[tuple[str, str]],
        points: Sequence[PointSpec],
        driver: MinerDriver,
        clock: Clock,
        period_s: float,
        concurrency: int,
        can_write: bool,
    ) -> None:
        self._clock = clock
        self._driver = driver
        self._period_s = period_s
        self._slots = asyncio.Semaphore(concurrency)
        self._can_write = can_write
        self._configured_points = tuple(points)
        self._spec = BankSpec(
            bank=name,
            kind=Kind.ASIC,
            device_class=device_class,
            unit_size=1,
            devices=tuple(DeviceSpec(device=device, address=address) for device, address in miners),
            value_fields=_VALUES,
            counter_fields=_COUNTERS,
            points=self._configured_points,
            meter=meter,
        )
        self._identities: dict[str, MinerIdentity] = {}
        self._profiles: dict[str, tuple[MinerProfile, ...]] = {}
        self._asked_s: dict[str, float] = {}
        self._uptimes: dict[str, float] = {}

    @property
    def name(self) -> str:
        return self._spec.bank

    @property
    def period_s(self) -> float:
        return self._period_s

    @property
    def floor_w(self) -> float:
        return 0.0

    @property
    def unsupported(self) -> tuple[str, ...]:
        return ()

    async def read(self) -> BankReading | None:
        outcomes: dict[str, MinerOutcome] = {}

        async def look(device: str) -> None:
            async with self._slots:
                outcomes[device] = await self._driver.read(device)
                if isinstance(outcomes[device], MinerReading):
                    await self._learn(device)

        async with asyncio.TaskGroup() as group:
            for spec in self._spec.devices:
                group.create_task(look(spec.device))
        self._respec()
        return self._laid_out([(spec.device, outcomes[spec.device]) for spec in self._spec.devices])

    async def _learn(self, device: str) -> None:
        """Ask who it is and for its profiles, until both are known; not more often than once a minute."""
        now_s = self._clock.boottime_s()
        is_known = device in self._identities and device in self._profiles
        if is_known or now_s - self._asked_s.get(device, -_IDENTIFY_AGAIN_S) < _IDENTIFY_AGAIN_S:
            return
        self._asked_s[device] = now_s
        identity = await self._driver.identify(device)
        if isinstance(identity, MinerIdentity):
            self._identities[device] = identity
        profiles = await self._driver.profiles(device)
        if isinstance(profiles, Unsupported):
            self._profiles[device] = ()
        elif not isinstance(profiles, Unavailable | Hung):
            self._profiles[device] = profiles

    def _respec(self) -> None:
        devices = tuple(self._device(spec) for spec in self._spec.devices)
        points = self._configured_points or self._learned_points()
        if devices != self._spec.devices or points != self._spec.points:
            self._spec = replace(self._spec, devices=devices, points=points)

    def _device(self, spec: DeviceSpec) -> DeviceSpec:
        identity = self._identities.get(spec.device)
        if identity is None:
            return spec
        firmware = " ".join(part for part in (identity.firmware, identity.firmware_version) if part)
        return replace(
            spec,
            model=f"{identity.make} {identity.model}".strip(),
            firmware=firmware,
            serial_number=identity.serial_number or identity.mac or "",
        )

    def _learned_points(self) -> tuple[PointSpec, ...]:
        """Without points in the file: rest, and every profile that a miner of the bank tells of."""
        found: dict[str, MinerProfile] = {}
        for profiles in self._profiles.values():
            found.update({profile.name: profile for profile in profiles})
        mining = tuple(
            PointSpec(point=p.name, mode=Mode.MINING, power_w=p.power_w, hashrate_ths=p.hashrate_ths)
            for p in sorted(found.values(), key=lambda profile: profile.power_w)
        )
        return (PointSpec(point="standby", mode=Mode.STANDBY, power_w=0.0), *mining)

    def enforced_w(self, device: str, reading: MinerReading) -> float | None:
        """Return the watts in force as read back: the power limit, else the watts of the profile that it names."""
        if reading.power_limit_w is not None:
            return reading.power_limit_w
        if reading.profile is None:
            return None
        known = [profile.power_w for profile in self._profiles.get(device, ()) if profile.name == reading.profile]
        named = [point.power_w for point in self._configured_points if point.point == reading.profile]
        return next(iter([*known, *named]), None)

    def _laid_out(self, outcomes: Sequence[tuple[str, MinerOutcome]]) -> BankReading:
        values: list[float | None] = []
        counters: list[float | None] = []
        conditions: list[Condition] = []
        modes: list[Mode] = []
        read_ns: list[int] = []
        views: list[DeviceView] = []
        for device, outcome in outcomes:
            condition = _condition(outcome)
            if isinstance(outcome, MinerReading):
                view = self._view(device, outcome)
                row = _row(outcome, view.enforced_w)
                mode = view.mode
                started_s = outcome.started_s
            else:
                row = {}
                mode = Mode.UNKNOWN
                started_s = _started_s(outcome, self._clock.boottime_s())
                view = DeviceView(
                    device=device, unit=0, condition=condition, mode=mode, enforced_w=None, read_started_s=started_s
                )
            values.extend(row.get(name) for name in _VALUES)
            counters.extend(row.get(name) for name in _COUNTERS)
            conditions.append(condition)
            modes.append(mode)
            read_ns.append(round(started_s * 1e9))
            views.append(view)
        round_ = BankRound(
            bank_index=0,
            values=tuple(values),
            counters=tuple(counters),
            conditions=tuple(conditions),
            modes=tuple(modes),
            read_boottime_ns=tuple(read_ns),
        )
        return BankReading(spec=self._spec, round=round_, views=tuple(views))

    def _view(self, device: str, reading: MinerReading) -> DeviceView:
        before_s = self._uptimes.get(device)
        has_restarted = before_s is not None and reading.uptime_s is not None and reading.uptime_s < before_s - 1.0
        if reading.uptime_s is not None:
            self._uptimes[device] = reading.uptime_s
        return DeviceView(
            device=device,
            unit=0,
            condition=Condition.OK,
            mode=_MODES[reading.state],
            enforced_w=self.enforced_w(device, reading),
            read_started_s=reading.started_s,
            is_booting=reading.state is OperatingState.BOOTING,
            has_restarted=has_restarted,
            power_w=reading.power_w,
            hashrate_ths=reading.hashrate_ths,
        )

    async def write(self, write: Write) -> WriteAnswer:
        if not self._can_write:
            return WriteAnswer(taking=Taking.REFUSED, detail="writes are off in the agent's file")
        match write.verb:
            case Verb.SLEEP:
                outcome = await self._driver.sleep(write.device)
            case Verb.WAKE:
                outcome = await self._driver.wake(write.device)
            case Verb.SET_POWER:
                outcome = await self._set_power(write)
            case _:
                return WriteAnswer(taking=Taking.REFUSED, detail=f"a miner knows no {write.verb.value}")
        taking = {WriteVerdict.ACCEPTED: Taking.TAKEN, WriteVerdict.TIMED_OUT: Taking.NO_ANSWER}.get(
            outcome.verdict, Taking.REFUSED
        )
        return WriteAnswer(taking=taking, detail=outcome.detail)

    async def _set_power(self, write: Write) -> WriteOutcome:
        """Set the profile of the target's name, else the largest one within its watts, else the power limit itself."""
        profiles = self._profiles.get(write.device, ())
        if self._driver.capabilities(write.device).can_set_profile:
            names = {profile.name for profile in profiles}
            if write.target.point in names:
                return await self._driver.set_profile(write.device, write.target.point)
            fitting = largest_profile_within(profiles, write.target.power_w * 1.01)
            if fitting is not None:
                return await self._driver.set_profile(write.device, fitting.name)
        return await self._driver.set_power_limit(write.device, write.target.power_w)

    async def aclose(self) -> None:
        """Let go; the driver belongs to whoever made it."""


def _condition(outcome: MinerOutcome) -> Condition:
    match outcome:
        case MinerReading():
            return Condition.OK
        case Unavailable():
            return Condition.UNAVAILABLE
        case Hung():
            return Condition.HUNG
        case Unsupported():
            return Condition.UNSUPPORTED


def _started_s(outcome: MinerOutcome, now_s: float) -> float:
    match outcome:
        case Unavailable(started_s=started_s) | MinerReading(started_s=started_s):
            return started_s
        case Hung(ended_s=ended_s):
            return ended_s
        case _:
            return now_s


def _present(readings: Iterable[float | None]) -> list[float]:
    return [reading for reading in readings if reading is not None]


def _row(reading: MinerReading, enforced_w: float | None) -> dict[str, float | None]:
    """Return the columns of one reading by name; what is not in it is absent."""
    return {
        "power_w": reading.power_w,
        "power_target_w": enforced_w,
        "hashrate_ths": reading.hashrate_ths,
        "expected_hashrate_ths": reading.expected_hashrate_ths,
        "board_temperature_c": max(_present(reading.board_temperatures_c), default=None),
        "chip_temperature_c": max(_present(reading.chip_temperatures_c), default=None),
        "inlet_temperature_c": reading.inlet_temperature_c,
        "fan_speed_rpm": min(_present(reading.fan_speeds_rpm), default=None),
        "pool_is_alive": None if reading.pool_is_alive is None else float(reading.pool_is_alive),
        "uptime_s": reading.uptime_s,
        "accepted_share_count": None if reading.accepted_shares is None else float(reading.accepted_shares),
        "rejected_share_count": None if reading.rejected_shares is None else float(reading.rejected_shares),
    }
