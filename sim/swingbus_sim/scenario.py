"""What a scenario says: the site, its machines, meters, loads, series and the faults to come.

Plain frozen values; `scenario_file` parses and checks them. Times are real seconds since the scenario's start, powers watts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swingbus_sim.catalogue import AsicClass, GpuClass
from swingbus_sim.series import Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One feeder of the power tree. Its power is taken at its upstream end, so its own loss is inside its limit."""

    name: str
    parent: str | None
    limit_w: float | None
    window_s: float
    loss_ratio: float
    overload_ratio: float
    reaction_s: float
    catch_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerGroup:
    """Identical ASICs on one feeder behind one edge box. Devices are called `{name}-001` upward.

    `password` is what the operator has set on them (None: the firmware has none or keeps the factory's).
    """

    name: str
    node: str
    agent: str
    asic_class: AsicClass
    count: int
    firmware: str
    first_address: str
    start_mining_count: int
    password: str | None

    def device_names(self) -> tuple[str, ...]:
        """Return the names of the group's machines, in address order."""
        return tuple(f"{self.name}-{i + 1:03d}" for i in range(self.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuServer:
    """One GPU host: its shelf lies at RUN_DIR/shelves/{name}. `unit_size`: GPUs that must flip together."""

    name: str
    node: str
    agent: str
    gpu_class: GpuClass
    gpu_count: int
    unit_size: int
    rides_through_s: float
    boot_s: float

    def device_names(self) -> tuple[str, ...]:
        """Return the names of the server's GPUs, by index."""
        return tuple(f"{self.name}-gpu{i}" for i in range(self.gpu_count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooling:
    """Cooling that follows the devices' power below `node` with a first-order lag of `lag_s`."""

    node: str
    ratio: float
    base_w: float
    nameplate_w: float
    lag_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load that nobody controls: `base_w` plus a slow sine and noise. `max_w` is its declared rating (for U_max)."""

    name: str
    node: str
    kind: str
    base_w: float
    swing_w: float
    period_s: float
    noise_w: float
    max_w: float
    step_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSpec:
    """One Modbus TCP meter at the upstream end of `node`."""

    name: str
    node: str
    address: str
    port: int
    window_s: float
    lag_s: float
    gain_error_ratio: float
    declared_error_ratio: float
    word_order: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the timeline; see `EVENT_KINDS` for what each kind reads.

    `is_disturbance`: the judge keeps the span and `settle_s` after it out of the time means. `is_runners`: the demo runner does
    it (kill, cut, restart); the simulator only writes it down.
    """

    kind: str
    at_s: float
    duration_s: float | None = None
    targets: tuple[str, ...] = ()
    pick_count: int | None = None
    delay_s: float = 0.0
    ratio: float = 1.0
    power_w: float = 0.0
    voltage_ratio: float = 0.0
    limit_w: float | None = None
    notice_s: float = 0.0
    ramp_s: float = 0.0
    signal: str = ""
    restart_after_s: float | None = None
    label: str = ""
    is_disturbance: bool = False
    settle_s: float = 60.0
    is_runners: bool = False


@dataclass(frozen=True, slots=True)
class EventKind:
    """What an event kind takes (TOML keys beyond kind, at_s, label, disturbance, settle_s) and means."""

    keys: tuple[str, ...]
    required: tuple[str, ...]
    meaning: str
    is_disturbance: bool = False
    is_runners: bool = False


EVENT_KINDS: Mapping[str, EventKind] = {
    "late_replies": EventKind(("targets", "pick", "delay_s", "for_s"), ("targets",), "the miner answers after delay_s"),
    "hung_socket": EventKind(("targets", "pick", "for_s"), ("targets",), "the miner takes TCP and never answers"),
    "truncated_json": EventKind(
        ("targets", "pick", "for_s"), ("targets",), "the miner closes in the middle of its JSON"
    ),
    "ignore_sleep": EventKind(("targets", "pick", "for_s"), ("targets",), "sleep is accepted and not carried out"),
    "wake_by_itself": EventKind(
        ("targets", "pick", "delay_s", "for_s"), ("targets",), "the miner wakes delay_s after it next lies asleep"
    ),
    "draws_more": EventKind(
        ("targets", "pick", "ratio", "for_s"), ("targets", "ratio"), "true draw is ratio x the reported"
    ),
    "late_writes": EventKind(
        ("targets", "pick", "delay_s", "for_s"),
        ("targets", "delay_s"),
        "commands take effect up to delay_s late, reordered",
    ),
    "reboot_miner": EventKind(("targets", "pick"), ("targets",), "the miner's own watchdog reboots it"),
    "pool_loss": EventKind(
        ("targets", "pick", "for_s"), ("targets", "for_s"), "no work; at the end all return at once"
    ),
    "gpu_lost": EventKind(("targets", "for_s"), ("targets",), "the GPU falls off the bus"),
    "gpu_hung": EventKind(("targets", "for_s"), ("targets",), "calls about the GPU never return"),
    "gpu_limits_lost": EventKind(("targets",), ("targets",), "the host's driver reloads: power limits go to default"),
    "meter_freeze": EventKind(("targets", "for_s"), ("targets",), "every register of the meter stands still"),
    "meter_power_freeze": EventKind(
        ("targets", "for_s"), ("targets",), "power and current stand still, energy goes on"
    ),
    "meter_gain": EventKind(("targets", "ratio", "for_s"), ("targets", "ratio"), "the meter reads ratio x the truth"),
    "meter_lag": EventKind(("targets", "delay_s", "for_s"), ("targets", "delay_s"), "the meter is delay_s late"),
    "meter_word_swap": EventKind(("targets", "for_s"), ("targets",), "the meter swaps its 16-bit words"),
    "load_surge": EventKind(
        ("targets", "power_w", "for_s"), ("targets", "power_w"), "an uncontrolled load rises by power_w"
    ),
    "sag": EventKind(
        ("targets", "for_s", "voltage_ratio", "ratio"),
        (),
        "voltage dips; `ratio` of the miners below reboot",
        is_disturbance=True,
    ),
    "outage": EventKind(
        ("targets", "for_s"), (), "no voltage: every miner below reboots at its return", is_disturbance=True
    ),
    "limit": EventKind(
        ("targets", "limit_w", "notice_s", "ramp_s", "for_s"),
        ("targets", "limit_w", "for_s"),
        "a curtailment: announced at at_s, in force notice_s later, for for_s",
        is_disturbance=True,
    ),
    "mark": EventKind(
        ("for_s",), ("label",), "no physics: a span that the time means leave out (a price spike)", is_disturbance=True
    ),
    "kill_agent": EventKind(
        ("targets", "signal", "restart_after_s"),
        ("targets",),
        "the runner signals an agent",
        is_disturbance=True,
        is_runners=True,
    ),
    "kill_controller": EventKind(
        ("signal", "restart_after_s"), (), "the runner signals the controller", is_disturbance=True, is_runners=True
    ),
    "cut_link": EventKind(
        ("targets", "for_s"),
        ("targets", "for_s"),
        "the runner cuts an agent's link",
        is_disturbance=True,
        is_runners=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Money beside the series. `clock_factor`: market seconds that pass in one real second."""

    clock_factor: float
    pool_fee_ratio: float
    inference_usd_per_gpu_hour: float
    gpu_mining_usd_per_gpu_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One whole scenario."""

    name: str
    description: str
    seed: int
    duration_s: float
    measure_from_s: float
    site: str
    voltage_v: float
    frequency_hz: float
    power_factor_ratio: float
    ambient_c: float
    spikes_per_minute: float
    nodes: tuple[Node, ...]
    miners: tuple[MinerGroup, ...]
    hosts: tuple[GpuServer, ...]
    cooling: tuple[Cooling, ...]
    loads: tuple[Load, ...]
    meters: tuple[MeterSpec, ...]
    market: Market
    series: Mapping[str, Series]
    events: tuple[Event, ...] = field(default=())

    def node(self, name: str) -> Node:
        """Return the node of that name; KeyError where there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def path(self, name: str) -> tuple[Node, ...]:
        """Return the node and its ancestors, nearest first."""
        chain = [self.node(name)]
        while (parent := chain[-1].parent) is not None:
            chain.append(self.node(parent))
        return tuple(chain)

    def addresses(self) -> dict[str, str]:
        """Return each miner's loopback address by device name."""
        result: dict[str, str] = {}
        for group in self.miners:
            first = _address_number(group.first_address)
            for offset, name in enumerate(group.device_names()):
                result[name] = _address_text(first + offset)
        return result


def _address_number(text: str) -> int:
    a, b, c, d = (int(part) for part in text.split("."))
    return (a << 24) | (b << 16) | (c << 8) | d


def _address_text(number: int) -> str:
    return ".".join(str((number >> shift) & 255) for shift in (24, 16, 8, 0))


def shift_address(text: str, shift: int) -> str:
    """Return a loopback address moved by `shift` in its second part, so that several runs can share one machine.

    >>> shift_address("127.10.1.5", 3)
    '127.13.1.5'
    """
    first, second, *rest = text.split(".")
    return ".".join([first, str((int(second) + shift) % 256), *rest])
