"""The machines the simulator knows: nameplates, power curves and habits, each with its source.

Decides nothing at run time. Numbers marked "habit" are chosen, not recorded: a scenario may override those listed in
`OVERRIDABLE_ASIC_KEYS`. Boot and tuning times of real machines are minutes (a Whatsminer recorded 1,323 s to stable hash);
the defaults here are shorter so that a story of a few minutes can hold them, and `swingbus-sim show` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from swingbus_sim.ports import AsicProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class AsicClass:
    """One miner model with its firmware.

    Powers are watts at the wall. `ramp_*_s` are time constants of a first-order lag. `sleep_is_lasting` and
    `profile_is_lasting` say what survives a reboot.
    """

    name: str
    firmware: str
    model: str
    profiles: tuple[AsicProfile, ...]
    default_profile: str
    sleep_w: float = 25.0
    boot_w: float = 300.0
    boot_s: float = 25.0
    wake_s: float = 10.0
    api_down_s: float = 6.0
    ramp_up_s: float = 3.0
    ramp_down_s: float = 1.0
    command_delay_s: float = 0.4
    overshoot_ratio: float = 0.03
    overshoot_s: float = 8.0
    idle_ratio: float = 0.22
    spread_ratio: float = 0.02
    reported_error_ratio: float = 0.02
    sleep_is_lasting: bool = True
    profile_is_lasting: bool = True
    power_limit_is_settable: bool = False
    board_count: int = 3
    fan_count: int = 4

    def profile(self, name: str) -> AsicProfile | None:
        """Return the profile of that name, None where the firmware has none."""
        for candidate in self.profiles:
            if candidate.name == name:
                return candidate
        return None

    @property
    def default(self) -> AsicProfile:
        """Return what the machine runs after a factory reset."""
        found = self.profile(self.default_profile)
        assert found is not None, self.default_profile
        return found

    def hashrate_at_ths(self, power_w: float) -> float:
        """Interpolate the hashrate at `power_w` on the profile table, in proportion below its first row."""
        rows = self.profiles
        if power_w <= rows[0].power_w:
            return rows[0].hashrate_ths * power_w / rows[0].power_w
        for low, high in pairwise(rows):
            if power_w <= high.power_w:
                share = (power_w - low.power_w) / (high.power_w - low.power_w)
                return low.hashrate_ths + share * (high.hashrate_ths - low.hashrate_ths)
        return rows[-1].hashrate_ths


OVERRIDABLE_ASIC_KEYS = (
    "boot_w",
    "boot_s",
    "wake_s",
    "api_down_s",
    "ramp_up_s",
    "ramp_down_s",
    "command_delay_s",
    "overshoot_ratio",
    "overshoot_s",
    "sleep_w",
    "spread_ratio",
    "sleep_is_lasting",
)


def _cubic_through(points: tuple[tuple[float, float], ...], x: float) -> float:
    """Evaluate Lagrange's polynomial through `points` at `x`."""
    total = 0.0
    for i, (xi, yi) in enumerate(points):
        term = yi
        for j, (xj, _) in enumerate(points):
            if i != j:
                term *= (x - xj) / (xi - xj)
        total += term
    return total


def _s19k_pro_profiles() -> tuple[AsicProfile, ...]:
    """Return the 25 LuxOS profiles of an S19k Pro.

    Four rows are recorded (39.2 TH/s 784 W, 80.5/1,657, 121.8/2,794 default, 163.1/4,195) and lie 8 steps apart; a step of
    25 MHz on 231 chips of 894 cores is 5.163 TH/s, which fits them exactly. Watts between them: the cubic through the four.
    """
    anchors = ((39.2, 784.0), (80.5, 1657.0), (121.8, 2794.0), (163.1, 4195.0))
    rows = []
    for step in range(25):
        frequency_mhz = 190 + 25 * step
        hashrate_ths = 39.2 + step * (163.1 - 39.2) / 24
        rows.append(
            AsicProfile(
                name=f"{frequency_mhz}MHz",
                frequency_mhz=frequency_mhz,
                power_w=round(_cubic_through(anchors, hashrate_ths), 0),
                hashrate_ths=round(hashrate_ths, 1),
            )
        )
    return tuple(rows)


ASIC_CLASSES: dict[str, AsicClass] = {
    c.name: c
    for c in (
        AsicClass(
            name="s19k-pro-luxos",
            firmware="luxos",
            model="Antminer S19K Pro",
            profiles=_s19k_pro_profiles(),
            default_profile="590MHz",
        ),
        AsicClass(
            name="m60s-whatsminer",
            firmware="whatsminer",
            model="M60S",
            # Anchors: recorded 171 to 181 TH/s near 3,150 W with the limit at 3,600 W; lower rows follow the same J/TH curve.
            profiles=(
                AsicProfile(name="low", frequency_mhz=420, power_w=1800.0, hashrate_ths=107.0),
                AsicProfile(name="reduced", frequency_mhz=560, power_w=2500.0, hashrate_ths=143.0),
                AsicProfile(name="normal", frequency_mhz=690, power_w=3200.0, hashrate_ths=176.0),
                AsicProfile(name="high", frequency_mhz=760, power_w=3600.0, hashrate_ths=192.0),
            ),
            default_profile="normal",
            boot_w=350.0,
            boot_s=30.0,
            wake_s=12.0,
            ramp_up_s=4.0,
            ramp_down_s=1.5,
            command_delay_s=0.8,
            sleep_w=35.0,
            overshoot_ratio=0.04,
            sleep_is_lasting=False,
            power_limit_is_settable=True,
            fan_count=2,
        ),
        AsicClass(
            name="m21s-whatsminer",
            firmware="whatsminer",
            model="M21S",
            # An older machine: recorded 67.4 TH/s at 3,417 W (50.7 J/TH).
            profiles=(
                AsicProfile(name="low", frequency_mhz=450, power_w=2400.0, hashrate_ths=49.0),
                AsicProfile(name="normal", frequency_mhz=590, power_w=3417.0, hashrate_ths=67.4),
            ),
            default_profile="normal",
            boot_w=350.0,
            boot_s=30.0,
            wake_s=15.0,
            ramp_up_s=5.0,
            ramp_down_s=1.5,
            command_delay_s=0.8,
            sleep_w=40.0,
            overshoot_ratio=0.04,
            sleep_is_lasting=False,
            power_limit_is_settable=True,
            fan_count=2,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClass:
    """One GPU model. `host_*` describe the server around it.

    `throughput_curve`: (share of the default limit, share of full throughput), from a published A100 inference sweep.
    """

    name: str
    model: str
    idle_w: float
    default_limit_w: float
    min_limit_w: float
    max_limit_w: float
    mining_w: float
    inference_full_w: float
    inference_small_batch_ratio: float
    memory_total_bytes: int
    sm_clock_mhz: int
    memory_clock_mhz: int
    host_base_w: float
    host_fan_ratio: float
    supply_efficiency_ratio: float
    throughput_curve: tuple[tuple[float, float], ...] = (
        (0.0, 0.0),
        (0.25, 0.23),
        (0.5, 0.78),
        (0.625, 0.87),
        (0.75, 0.93),
        (0.875, 0.98),
        (1.0, 1.0),
    )

    def throughput_ratio(self, limit_w: float) -> float:
        """Interpolate the share of full throughput that is left under a cap of `limit_w`."""
        share = min(1.0, limit_w / self.default_limit_w)
        for (x0, y0), (x1, y1) in pairwise(self.throughput_curve):
            if share <= x1:
                return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
        return 1.0

    def host_w(self, gpus_w: float) -> float:
        """Return a server's draw at the wall when its GPUs draw `gpus_w` together."""
        return (gpus_w * (1.0 + self.host_fan_ratio) + self.host_base_w) / self.supply_efficiency_ratio


GPU_CLASSES: dict[str, GpuClass] = {
    c.name: c
    for c in (
        GpuClass(
            name="h100-sxm",
            model="NVIDIA H100 80GB HBM3",
            idle_w=75.0,
            default_limit_w=700.0,
            min_limit_w=200.0,
            max_limit_w=700.0,
            mining_w=480.0,
            # ML.ENERGY: an 8B model draws 486 W at 8 sequences and 688 W at 512 on one H100.
            inference_full_w=688.0,
            inference_small_batch_ratio=0.70,
            memory_total_bytes=80 * 1024**3,
            sm_clock_mhz=1980,
            memory_clock_mhz=2619,
            # An 8-GPU server is about 10.2 kW with 5.6 kW in its GPUs at full load (habit: 1.3 kW base, 8 % fans, 94 % supplies).
            host_base_w=1300.0,
            host_fan_ratio=0.08,
            supply_efficiency_ratio=0.94,
        ),
    )
}
