"""A simulated miner's physics for tests: instant or with a ramp, honest or lying, with socket weather on demand."""

from __future__ import annotations

from dataclasses import dataclass, field

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
