"""One ASIC as it truly is: what it draws, what it says, and how it disobeys.

Decides the draw from the machine's own state only. Refuses to know sockets, agents or limits. Invariant: `power_w` moves only in
`step`, and `disobedient_w` is above zero only while a planted fault (or a reboot nobody ordered) keeps it from its last order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from swingbus_sim.catalogue import AsicClass
from swingbus_sim.ports import AsicProfile, AsicReading, AsicState, NetworkFault, NetworkWeather

_CALM = NetworkWeather()
_REFUSED = NetworkWeather(fault=NetworkFault.REFUSED)
_DISOBEDIENCE_FLOOR_W = 50.0


@dataclass(frozen=True, slots=True)
class _Order:
    """A command the firmware has accepted and will carry out at `due_s`."""

    due_s: float
    kind: str
    profile: AsicProfile | None


@dataclass(slots=True)
class AsicFaults:
    """What the scenario has planted in this machine just now (None and False: nothing)."""

    weather: NetworkWeather | None = None
    ignores_sleep: bool = False
    draws_more_ratio: float = 1.0
    late_write_s: float = 0.0
    wakes_when_asleep_for_s: float | None = None


class SimulatedAsic:
    """One miner; implements `swingbus_sim.ports.Asic`."""

    __slots__ = (
        "_accepted",
        "_asleep_since_s",
        "_boot_is_ordered",
        "_boot_until_s",
        "_booted_at_s",
        "_class",
        "_fan_speeds_rpm",
        "_hash_w",
        "_jitter",
        "_mac",
        "_mode_is_mining",
        "_name",
        "_ordered_is_mining",
        "_orders",
        "_pool_is_alive",
        "_profile",
        "_raised_at_s",
        "_random",
        "_report_ratio",
        "_serial_number",
        "_smooth_w",
        "_spread",
        "_state",
        "_temperature_c",
        "_unordered_cause",
        "disobedient_w",
        "disobeys_cause",
        "disobeys_since_s",
        "faults",
        "hashrate_ths",
        "inlet_c",
        "potential_w",
        "power_w",
    )

    def __init__(
        self, *, name: str, mac: str, serial_number: str, asic_class: AsicClass, random: Random, is_mining: bool
    ) -> None:
        self._name = name
        self._mac = mac
        self._serial_number = serial_number
        self._class = asic_class
        self._random = random
        self._spread = 1.0 + max(-1.0, min(1.0, random.gauss(0.0, 0.5))) * asic_class.spread_ratio
        self._report_ratio = 1.0 + max(-1.0, min(1.0, random.gauss(0.0, 0.5))) * asic_class.reported_error_ratio
        self._jitter = 0.0
        self._profile = asic_class.default
        self._orders: list[_Order] = []
        self._mode_is_mining = is_mining
        self._ordered_is_mining = is_mining
        self._state = AsicState.MINING if is_mining else AsicState.SLEEPING
        self._boot_until_s = -1.0
        self._boot_is_ordered = True
        self._booted_at_s = -3600.0 - random.random() * 86400.0
        self._raised_at_s = -3600.0
        self._asleep_since_s: float | None = None if is_mining else 0.0
        self._pool_is_alive = True
        self._accepted = 0.0
        self._temperature_c = 62.0 if is_mining else 28.0
        self._fan_speeds_rpm = 4200 if is_mining else 600
        self.power_w = self._profile.power_w * self._spread if is_mining else asic_class.sleep_w
        self._hash_w = self.power_w if is_mining else 0.0
        self._smooth_w = self.power_w
        self.hashrate_ths = self._profile.hashrate_ths if is_mining else 0.0
        self.potential_w = self.power_w
        self.inlet_c = 24.0
        self.faults = AsicFaults()
        self._unordered_cause = "reordered write"
        self.disobedient_w = 0.0
        self.disobeys_since_s: float | None = None
        self.disobeys_cause = ""

    # -- what the protocol servers see --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Return the device's name in the scenario."""
        return self._name

    @property
    def model(self) -> str:
        """Return the model as the firmware spells it."""
        return self._class.model

    @property
    def mac(self) -> str:
        """Return the hardware address."""
        return self._mac

    @property
    def serial_number(self) -> str:
        """Return the control board's serial number."""
        return self._serial_number

    @property
    def profiles(self) -> tuple[AsicProfile, ...]:
        """Return the firmware's table of operating points, lowest first."""
        return self._class.profiles

    @property
    def asic_class(self) -> AsicClass:
        """Return the machine's class."""
        return self._class

    @property
    def state(self) -> AsicState:
        """Return what the machine is really doing."""
        return self._state

    @property
    def is_ordered_to_mine(self) -> bool:
        """Return the mode of the last accepted command."""
        return self._ordered_is_mining

    @property
    def efficiency_j_per_th(self) -> float:
        """Return this very machine's J/TH at its profile."""
        return self._profile.power_w * self._spread / self._profile.hashrate_ths

    def weather(self, now_s: float) -> NetworkWeather:
        """Return how the machine's socket behaves for a request that arrives now."""
        if self._state is AsicState.OFF:
            return _REFUSED
        if self._state is AsicState.BOOTING and now_s - self._booted_at_s < self._class.api_down_s:
            return _REFUSED
        return self.faults.weather or _CALM

    def reading(self, now_s: float) -> AsicReading:
        """Return what the machine says about itself now."""
        is_hashing = self.hashrate_ths > 0.0
        said_w = self._smooth_w * self._report_ratio / self.faults.draws_more_ratio
        boards = self._class.board_count
        per_board_ths = self.hashrate_ths / boards
        board_c = self._temperature_c
        expected_ths = self._profile.hashrate_ths if self._mode_is_mining else 0.0
        return AsicReading(
            state=self._state,
            power_w=said_w,
            hashrate_ths=self.hashrate_ths,
            expected_hashrate_ths=expected_ths,
            board_hashrates_ths=tuple(per_board_ths * (1.0 + 0.004 * (b - 1)) for b in range(boards)),
            board_temperatures_c=tuple(board_c + 0.8 * b for b in range(boards)),
            chip_temperatures_c=tuple(board_c + 0.8 * b + (13.0 if is_hashing else 1.0) for b in range(boards)),
            inlet_temperature_c=self.inlet_c,
            fan_speeds_rpm=(self._fan_speeds_rpm,) * self._class.fan_count,
            uptime_s=max(0, int(now_s - self._booted_at_s)),
            profile=self._profile.name,
            power_limit_w=self._profile.power_w if self._class.power_limit_is_settable else None,
            pool_is_alive=self._pool_is_alive,
            accepted_shares=int(self._accepted),
            rejected_shares=int(self._accepted * 0.0015),
        )

    def sleep(self, now_s: float) -> None:
        """Accept an order to sleep."""
        self._ordered_is_mining = False
        self._accept(now_s, "sleep", None)

    def wake(self, now_s: float) -> None:
        """Accept an order to mine."""
        self._ordered_is_mining = True
        self._accept(now_s, "wake", None)

    def set_profile(self, now_s: float, profile: str) -> None:
        """Accept an order to run a row of the profile table; an unknown name changes nothing."""
        found = self._class.profile(profile)
        if found is not None:
            self._accept(now_s, "profile", found)

    def set_power_limit(self, now_s: float, power_w: float) -> None:
        """Accept a power limit in watts; firmware without such a verb changes nothing."""
        if not self._class.power_limit_is_settable:
            return
        rows = self._class.profiles
        clipped_w = max(rows[0].power_w, min(rows[-1].power_w, power_w))
        point = AsicProfile(
            name="limit",
            frequency_mhz=rows[0].frequency_mhz,
            power_w=clipped_w,
            hashrate_ths=round(self._class.hashrate_at_ths(clipped_w), 1),
        )
        self._accept(now_s, "profile", point)

    def reboot(self, now_s: float) -> None:
        """Accept an order to reboot: whoever orders it knows that volatile sleep is lost."""
        if not self._class.sleep_is_lasting:
            self._ordered_is_mining = True
        self._accept(now_s, "reboot", None)

    # -- what the scenario does to it ---------------------------------------------------------------------------------

    def lose_pool(self) -> None:
        """Stop hashing for want of work: the draw falls though nobody asked."""
        self._pool_is_alive = False

    def regain_pool(self, now_s: float) -> None:
        """Start hashing again, all at once."""
        self._pool_is_alive = True
        self._raised_at_s = now_s

    def wake_by_itself(self, now_s: float, cause: str) -> bool:
        """Start mining though asleep; False where the machine is not asleep."""
        if self._state is not AsicState.SLEEPING:
            return False
        self._unordered_cause = cause
        self._mode_is_mining = True
        self._start_wake(now_s)
        return True

    def restart_by_itself(self, now_s: float, cause: str) -> None:
        """Reboot though nobody asked (watchdog, sag, outage)."""
        self._unordered_cause = cause
        self._orders.clear()
        self._start_boot(now_s, is_ordered=False)

    def cut_power(self) -> None:
        """Lose the supply."""
        self._state = AsicState.OFF
        self.power_w = self._hash_w = self.hashrate_ths = self._smooth_w = 0.0
        self._orders.clear()

    # -- physics ------------------------------------------------------------------------------------------------------

    def step(self, now_s: float, dt_s: float) -> None:
        """Advance by `dt_s`, ending at `now_s`. Call `cut_power` or `restart_by_itself` for the supply's sake first."""
        if self._orders:
            self._carry_out(now_s)
        state = self._state
        if state is AsicState.OFF:
            self.potential_w = 0.0
            self._judge_self(now_s)
            return
        c = self._class
        if state is AsicState.BOOTING and now_s >= self._boot_until_s:
            if self._mode_is_mining:
                state = self._state = AsicState.MINING
                self._raised_at_s = now_s
            else:
                state = self._state = AsicState.SLEEPING
                self._asleep_since_s = now_s
        if state is AsicState.MINING:
            full_w = self._profile.power_w * self._spread * self.faults.draws_more_ratio
            if self._pool_is_alive:
                # Tuning overshoots once the ramp is nearly up, then settles.
                since_s = max(0.0, now_s - self._raised_at_s - 2.0 * c.ramp_up_s)
                target_w = full_w
                if since_s < 5.0 * c.overshoot_s:
                    target_w *= 1.0 + c.overshoot_ratio * math.exp(-since_s / c.overshoot_s)
            else:
                target_w = full_w * c.idle_ratio
        elif state is AsicState.BOOTING:
            target_w = c.boot_w
            full_w = self._profile.power_w * self._spread if self._mode_is_mining else c.boot_w
        else:
            target_w = full_w = c.sleep_w
        tau_s = c.ramp_down_s if target_w < self._hash_w else c.ramp_up_s
        self._hash_w += (target_w - self._hash_w) * (1.0 - math.exp(-dt_s / tau_s))
        self._jitter = self._jitter * 0.95 + self._random.gauss(0.0, 0.0012)
        self.power_w = self._hash_w * (1.0 + self._jitter)
        self._smooth_w += (self.power_w - self._smooth_w) * min(1.0, dt_s / 1.5)
        self.potential_w = full_w
        if state is AsicState.MINING and self._pool_is_alive:
            fullness = min(1.0, self._hash_w / full_w)
            self.hashrate_ths = self._profile.hashrate_ths * max(0.0, (fullness - c.idle_ratio) / (1.0 - c.idle_ratio))
            self._accepted += self.hashrate_ths * dt_s / 900.0
        else:
            self.hashrate_ths = 0.0
        warm_c = self.inlet_c + 4.0 + self.power_w * 0.0135
        self._temperature_c += (warm_c - self._temperature_c) * min(1.0, dt_s / 25.0)
        self._fan_speeds_rpm = int(600 + max(0.0, self._temperature_c - 30.0) * 110)
        if (
            self.faults.wakes_when_asleep_for_s is not None
            and state is AsicState.SLEEPING
            and self._asleep_since_s is not None
            and now_s - self._asleep_since_s >= self.faults.wakes_when_asleep_for_s
        ):
            self.faults.wakes_when_asleep_for_s = None
            self.wake_by_itself(now_s, "wake_by_itself")
        self._judge_self(now_s)

    def _accept(self, now_s: float, kind: str, profile: AsicProfile | None) -> None:
        """Queue a command; late writes may overtake each other."""
        if self._state is AsicState.OFF:
            return
        delay_s = self._class.command_delay_s * self._random.uniform(0.6, 1.4)
        if self.faults.late_write_s > 0.0:
            delay_s += self._random.uniform(0.2, 1.0) * self.faults.late_write_s
        elif self._orders:
            delay_s = max(delay_s, self._orders[-1].due_s - now_s)  # healthy firmware keeps the order of its orders
        self._orders.append(_Order(now_s + delay_s, kind, profile))

    def _carry_out(self, now_s: float) -> None:
        """Carry out what is due, by due time."""
        due = sorted((o for o in self._orders if o.due_s <= now_s), key=lambda o: o.due_s)
        if not due:
            return
        self._orders = [o for o in self._orders if o.due_s > now_s]
        for order in due:
            if order.kind == "sleep":
                if self.faults.ignores_sleep:
                    continue
                self._mode_is_mining = False
                self._unordered_cause = "reordered write"
                if self._state is AsicState.MINING or (
                    self._state is AsicState.BOOTING and now_s - self._booted_at_s >= self._class.api_down_s
                ):
                    self._state = AsicState.SLEEPING
                    self._asleep_since_s = now_s
            elif order.kind == "wake":
                self._mode_is_mining = True
                if self._state is AsicState.SLEEPING:
                    self._start_wake(now_s)
            elif order.kind == "profile" and order.profile is not None:
                if order.profile.power_w > self._profile.power_w:
                    self._raised_at_s = now_s
                self._profile = order.profile
            elif order.kind == "reboot":
                self._start_boot(now_s, is_ordered=True)

    def _start_wake(self, now_s: float) -> None:
        self._state = AsicState.BOOTING
        self._boot_is_ordered = True
        self._asleep_since_s = None
        # The control board stays up: only the hash boards start, so uptime goes on and the API answers.
        self._boot_until_s = now_s + self._class.wake_s

    def _start_boot(self, now_s: float, *, is_ordered: bool) -> None:
        self._boot_is_ordered = is_ordered
        self._state = AsicState.BOOTING
        self._asleep_since_s = None
        self._booted_at_s = now_s
        self._boot_until_s = now_s + self._class.boot_s * self._random.uniform(0.95, 1.15)
        if not self._class.sleep_is_lasting:
            self._mode_is_mining = True
        if not self._class.profile_is_lasting:
            self._profile = self._class.default

    def _judge_self(self, now_s: float) -> None:
        """Keep the books of watts that the last order does not allow."""
        is_awake = self._mode_is_mining or (self._state is AsicState.BOOTING and not self._boot_is_ordered)
        above_sleep_w = self.power_w - self._class.sleep_w
        was_awake = self.disobeys_since_s is not None and self.disobeys_cause != "draws_more"
        if self._ordered_is_mining:
            is_wrong = False
        elif was_awake:
            # A new order does not make up for it at once: the books stay open until the draw is down.
            is_wrong = is_awake or above_sleep_w > _DISOBEDIENCE_FLOOR_W
        else:
            is_wrong = is_awake and not self._orders
        if is_wrong:
            self._book(now_s, above_sleep_w, "ignore_sleep" if self.faults.ignores_sleep else self._unordered_cause)
            return
        hidden_w = self.power_w * (1.0 - 1.0 / self.faults.draws_more_ratio)
        if hidden_w > _DISOBEDIENCE_FLOOR_W:
            self._book(now_s, hidden_w, "draws_more")
            return
        self.disobedient_w = 0.0
        self.disobeys_since_s = None
        self.disobeys_cause = ""

    def _book(self, now_s: float, extra_w: float, cause: str) -> None:
        if self.disobeys_since_s is None or (self.disobeys_cause == "draws_more") != (cause == "draws_more"):
            self.disobeys_since_s = now_s
            self.disobeys_cause = cause
        self.disobedient_w = max(0.0, extra_w)
