"""A simulated miner's physics for tests, honest or lying, with socket weather on demand; and a driver on top of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from swingbus.faults import NotFound
from swingbus_agent.domain.miner import (
    CAPABILITIES,
    Hung,
    MinerCapabilities,
    MinerFirmware,
    MinerIdentity,
    MinerOutcome,
    MinerProfile,
    MinerReading,
    PowerSource,
    Unavailable,
    UnavailableReason,
    Unsupported,
    WriteOutcome,
    WriteVerdict,
    merge_state,
)
from swingbus_sim.ports import AsicProfile, AsicReading, AsicState, NetworkFault, NetworkWeather

PROFILES = (
    AsicProfile(name="410MHz", frequency_mhz=410, power_w=1657.0, hashrate_ths=80.5),
    AsicProfile(name="default", frequency_mhz=575, power_w=2794.0, hashrate_ths=121.8),
    AsicProfile(name="735MHz", frequency_mhz=735, power_w=4195.0, hashrate_ths=163.1),
)
SLEEP_W = 25.0


@dataclass(slots=True, kw_only=True)
class FakeAsic:
    """Keeps one miner's true state; `commands` records what arrived, whether or not it was obeyed."""

    name: str = "m1"
    model: str = "S19k Pro"
    mac: str = "02:00:00:00:00:01"
    serial_number: str = "SN0001"
    profiles: tuple[AsicProfile, ...] = PROFILES
    state: AsicState = AsicState.MINING
    profile: str = "default"
    power_limit_w: float | None = None
    ignores_sleep: bool = False
    wakes_at_s: float | None = None
    boots_for_s: float = 0.0
    says_power: bool = True
    fault: NetworkWeather = field(default_factory=NetworkWeather)
    commands: list[str] = field(default_factory=list)
    _ready_s: float = 0.0

    def weather(self, now_s: float) -> NetworkWeather:
        return self.fault

    def set_weather(self, fault: NetworkFault, delay_s: float = 0.0) -> None:
        self.fault = NetworkWeather(fault=fault, delay_s=delay_s)

    def reading(self, now_s: float) -> AsicReading:
        if self.state is AsicState.SLEEPING and self.wakes_at_s is not None and now_s >= self.wakes_at_s:
            self.wakes_at_s = None
            self._boot(now_s)
        if self.state is AsicState.BOOTING and now_s >= self._ready_s:
            self.state = AsicState.MINING
        point = next(p for p in self.profiles if p.name == self.profile)
        is_mining = self.state is AsicState.MINING
        power_w = min(point.power_w, self.power_limit_w or point.power_w) if is_mining else SLEEP_W
        rate_ths = point.hashrate_ths * power_w / point.power_w if is_mining else 0.0
        return AsicReading(
            state=self.state,
            power_w=power_w if self.says_power else None,
            hashrate_ths=rate_ths,
            expected_hashrate_ths=point.hashrate_ths,
            board_hashrates_ths=(rate_ths / 3,) * 3,
            board_temperatures_c=(61.0, 62.0, 63.0) if is_mining else (30.0, 30.0, 30.0),
            chip_temperatures_c=(71.0, 72.0, 73.0) if is_mining else (31.0, 31.0, 31.0),
            inlet_temperature_c=24.0,
            fan_speeds_rpm=(4200, 4210, 4190, 4200),
            uptime_s=1000,
            profile=self.profile,
            power_limit_w=self.power_limit_w or point.power_w,
            pool_is_alive=is_mining,
            accepted_shares=12,
            rejected_shares=1,
        )

    def sleep(self, now_s: float) -> None:
        self.commands.append("sleep")
        if not self.ignores_sleep:
            self.state = AsicState.SLEEPING

    def wake(self, now_s: float) -> None:
        self.commands.append("wake")
        self._boot(now_s)

    def set_profile(self, now_s: float, profile: str) -> None:
        self.commands.append(f"profile {profile}")
        self.profile = profile

    def set_power_limit(self, now_s: float, power_w: float) -> None:
        self.commands.append(f"limit {power_w:g}")
        self.power_limit_w = power_w

    def reboot(self, now_s: float) -> None:
        self.commands.append("reboot")
        self._boot(now_s)

    def _boot(self, now_s: float) -> None:
        self.state = AsicState.BOOTING
        self._ready_s = now_s + self.boots_for_s


class FakeMinerDriver:
    """A `MinerDriver` straight on `FakeAsic`s: no sockets, same answers. The socket weather becomes its outcome at once."""

    def __init__(
        self,
        asics: Mapping[str, tuple[FakeAsic, MinerFirmware]],
        now: Callable[[], float],
        *,
        read_deadline_s: float = 3.0,
    ) -> None:
        self._asics = asics
        self._now = now
        self._read_deadline_s = read_deadline_s
        self._hung_since_s: dict[str, float] = {}
        self.refuse_writes_with: str | None = None  # such as "check token error": a wrong password

    def capabilities(self, miner: str) -> MinerCapabilities:
        return CAPABILITIES[self._find(miner)[1]]

    async def read(self, miner: str) -> MinerOutcome:
        asic, _ = self._find(miner)
        now_s = self._now()
        failure = self._failure(miner, asic, now_s)
        if failure is not None:
            return failure
        said = asic.reading(now_s)
        is_asleep = said.state in (AsicState.SLEEPING, AsicState.OFF)
        return MinerReading(
            name=miner,
            started_s=now_s,
            ended_s=self._now(),
            state=merge_state(is_asleep, said.hashrate_ths),
            power_w=said.power_w,
            power_source=PowerSource.NONE if said.power_w is None else PowerSource.MINER,
            hashrate_ths=said.hashrate_ths,
            expected_hashrate_ths=said.expected_hashrate_ths,
            uptime_s=float(said.uptime_s),
            profile=said.profile,
            power_limit_w=said.power_limit_w,
            inlet_temperature_c=said.inlet_temperature_c,
            board_temperatures_c=said.board_temperatures_c,
            chip_temperatures_c=said.chip_temperatures_c,
            fan_speeds_rpm=tuple(float(rpm) for rpm in said.fan_speeds_rpm),
            pool_is_alive=said.pool_is_alive,
            accepted_shares=said.accepted_shares,
            rejected_shares=said.rejected_shares,
            errors=(),
            vitals_ended_s=now_s,
        )

    async def identify(self, miner: str) -> MinerIdentity | Unavailable | Hung:
        asic, firmware = self._find(miner)
        failure = self._failure(miner, asic, self._now())
        if failure is not None:
            return failure
        return MinerIdentity(
            make="Antminer" if firmware is MinerFirmware.LUXOS else "Whatsminer",
            model=asic.model,
            firmware=firmware.value,
            firmware_version="1",
            mac=asic.mac,
            serial_number=asic.serial_number,
        )

    async def profiles(self, miner: str) -> tuple[MinerProfile, ...] | Unsupported | Unavailable | Hung:
        asic, firmware = self._find(miner)
        if not self.capabilities(miner).can_set_profile:
            return Unsupported(detail=f"{firmware.value} has no power profiles")
        failure = self._failure(miner, asic, self._now())
        if failure is not None:
            return failure
        found = [MinerProfile(name=p.name, power_w=p.power_w, hashrate_ths=p.hashrate_ths) for p in asic.profiles]
        return tuple(sorted(found, key=lambda profile: profile.power_w))

    async def sleep(self, miner: str) -> WriteOutcome:
        return self._write(miner, lambda asic, now_s: asic.sleep(now_s))

    async def wake(self, miner: str) -> WriteOutcome:
        return self._write(miner, lambda asic, now_s: asic.wake(now_s))

    async def set_profile(self, miner: str, profile: str) -> WriteOutcome:
        asic, _ = self._find(miner)
        if not self.capabilities(miner).can_set_profile:
            return self._outcome(WriteVerdict.UNSUPPORTED, "no power profiles")
        if all(known.name != profile for known in asic.profiles):
            return self._outcome(WriteVerdict.REFUSED, "Profile not found")
        return self._write(miner, lambda asic, now_s: asic.set_profile(now_s, profile))

    async def set_power_limit(self, miner: str, power_w: float) -> WriteOutcome:
        if not self.capabilities(miner).can_set_power_limit:
            return self._outcome(WriteVerdict.UNSUPPORTED, "no power limit")
        if not power_w > 0:
            return self._outcome(WriteVerdict.REFUSED, "power limit out of range")
        return self._write(miner, lambda asic, now_s: asic.set_power_limit(now_s, power_w))

    def _find(self, miner: str) -> tuple[FakeAsic, MinerFirmware]:
        if miner not in self._asics:
            raise NotFound(f"no miner {miner!r} in this agent's configuration", metadata={"miner": miner})
        return self._asics[miner]

    def _outcome(self, verdict: WriteVerdict, detail: str) -> WriteOutcome:
        return WriteOutcome(verdict=verdict, detail=detail, ended_s=self._now())

    def _failure(self, miner: str, asic: FakeAsic, now_s: float) -> Unavailable | Hung | None:
        weather = asic.weather(now_s)
        is_hung = weather.fault is NetworkFault.HUNG
        if is_hung or (weather.fault is NetworkFault.LATE and weather.delay_s > self._read_deadline_s):
            return Hung(since_s=self._hung_since_s.setdefault(miner, now_s), ended_s=now_s)
        self._hung_since_s.pop(miner, None)
        reason = {
            NetworkFault.REFUSED: UnavailableReason.REFUSED,
            NetworkFault.TRUNCATED: UnavailableReason.TRUNCATED,
        }.get(weather.fault)
        if reason is None:
            return None
        return Unavailable(reason=reason, detail=f"fake: {reason.value}", started_s=now_s, ended_s=now_s)

    def _write(self, miner: str, change: Callable[[FakeAsic, float], None]) -> WriteOutcome:
        asic, _ = self._find(miner)
        now_s = self._now()
        failure = self._failure(miner, asic, now_s)
        if isinstance(failure, Hung):
            return self._outcome(WriteVerdict.TIMED_OUT, "no answer within the deadline")
        if failure is not None:
            return self._outcome(WriteVerdict.REFUSED, failure.detail)
        if self.refuse_writes_with is not None:
            return self._outcome(WriteVerdict.REFUSED, self.refuse_writes_with)
        change(asic, now_s)
        return self._outcome(WriteVerdict.ACCEPTED, "ok")
