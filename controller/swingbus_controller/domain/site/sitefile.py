"""What a site file says: one site, its power tree, its banks and the rules for them, as frozen values.

Decides nothing. Refuses to know: TOML, clocks, agents as they really are. Invariant: a `SiteFile` that exists is consistent:
every bank names a known feeder and class, every meter one reader, no name is given twice. What an agent reports beyond it
stays unmanaged: its watts are part of the uncontrolled load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.planning.points import DeviceKind, Mode
from swingbus_controller.domain.planning.policy import Policy
from swingbus_controller.domain.power.bank import BankSpec
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.tree import PowerTree


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedSetting:
    """A setting of the protocol that differs from its default, and why."""

    name: str
    value: float
    default: float | None
    why: str
    commissioned: bool  # measured at this site, not chosen

    def sentence(self) -> str:
        """Return `name=value (default value): why` for people."""
        default = "none" if self.default is None else f"{self.default:g}"
        source = "commissioned: " if self.commissioned else ""
        return f"{self.name}={self.value:g} (default {default}): {source}{self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """What power costs beside its market price."""

    adder_usd_per_mwh: str = "0"
    demand_charge_usd_per_kw_month: str = "0"
    demand_window_s: float = 900.0
    take_or_pay_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPoint:
    """One operating point of a class: `power_w` is enforced on a device, `counted_w` is what it counts at the device."""

    name: str
    mode: Mode
    power_w: float
    counted_w: float
    draw_w: float
    hashrate_ths: float | None = None
    throughput_ratio: float | None = None
    workload: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """Devices of one model, firmware and power curve.

    Attributes:
        ceiling_w: what one device draws or is limited to after its own reboot.
        floor_w: an ASIC's sleep draw, a GPU's lowest limit.
        workloads: workload name by mode (GPU); empty where none runs.
    """

    name: str
    kind: DeviceKind
    ceiling_w: float
    floor_w: float
    points: tuple[ClassPoint, ...]
    unit_size: int = 1
    workloads: Mapping[Mode, str] = field(default_factory=lambda: MappingProxyType({}))
    inference_class: str = ""
    mining_class: str = ""
    commissioned: bool = False

    def point(self, name: str) -> ClassPoint | None:
        """Return a point by name, None if there is none."""
        return next((point for point in self.points if point.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteBank:
    """One bank as the site file declares it; `spec` is what the ledger counts with, its name is `agent/bank`.

    Attributes:
        node, pool: where pods are its workloads, its node in the cluster and its CapacityPool; else empty.
    """

    agent: str
    bank: str
    feeder: str
    device_class: str
    device_count: int
    spec: BankSpec
    node: str = ""
    pool: str = ""

    @property
    def is_in_cluster(self) -> bool:
        """Whether pods are its workloads."""
        return bool(self.node)

    @property
    def name(self) -> str:
        """`agent/bank`, the bank's name in the ledger."""
        return f"{self.agent}/{self.bank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeederNote:
    """What the site file says of a feeder beyond the power tree."""

    kind: str
    meter: str = ""  # id of its meter, unique in the site; empty if it has none
    meter_agent: str = ""  # the only agent whose readings of it are believed


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReservation:
    """Inference capacity sold firm, as the site file declares it."""

    name: str
    inference_class: str
    gpu_count: int
    start_unix_s: float
    end_unix_s: float
    price_usd_per_gpu_h: str
    uptime_ratio: float
    credit_steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedSignal:
    """How long a pushed signal is believed, and what stands in after that.

    Attributes:
        signal: name with its unit, as the market API spells it.
        fallback: decimal that stands in while no fresh value is there; empty means none.
    """

    signal: str
    stale_after_s: float
    fallback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketPlace:
    """Where prices and demand come from, and how the market's clock runs.

    Attributes:
        feed: path of a feed file (see `adapters/market_file`), relative to the site file; empty means pushes only.
        speed_ratio: market seconds per wall second, 1 but in demos.
        anchor_unix_s, start_unix_s: at the wall's anchor the market's clock shows start.
        signals: signals that are pushed.
    """

    feed: str = ""
    speed_ratio: float = 1.0
    anchor_unix_s: float = 0.0
    start_unix_s: float = 0.0
    signals: tuple[PushedSignal, ...] = ()

    def market_unix_s(self, wall_unix_s: float) -> float:
        """Return what the market's clock shows.

        >>> MarketPlace(speed_ratio=60.0, anchor_unix_s=1000.0, start_unix_s=5000.0).market_unix_s(1010.0)
        5600.0
        """
        return self.start_unix_s + (wall_unix_s - self.anchor_unix_s) * self.speed_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFile:
    """One site as its owner declares it."""

    name: str
    authority: Authority
    price_zone: str
    tariff: Tariff
    protocol: ProtocolSettings
    changed_settings: tuple[ChangedSetting, ...]
    tree: PowerTree
    feeder_notes: Mapping[str, FeederNote]
    classes: Mapping[str, DeviceClass]
    banks: tuple[SiteBank, ...]
    reservations: tuple[SiteReservation, ...]
    market: MarketPlace
    policy: Policy
    # Looked up for every batch and every meter: a site of a thousand banks is not searched from its beginning each time.
    _bank_of: Mapping[tuple[str, str], SiteBank] = field(init=False, repr=False, compare=False)
    _feeder_of_meter: Mapping[str, str] = field(init=False, repr=False, compare=False)
    _feeders_in_order: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _banks_below: Mapping[str, tuple[SiteBank, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        depth = {name: len(self.tree.path(name)) for name in self.tree.feeders}
        below: dict[str, list[SiteBank]] = {name: [] for name in self.tree.feeders}
        for bank in self.banks:
            if bank.feeder in below:  # else the reader refuses the file a moment later, and says where
                for feeder, _ in self.tree.path(bank.feeder):
                    below[feeder].append(bank)
        object.__setattr__(self, "_bank_of", {(bank.agent, bank.bank): bank for bank in self.banks})
        object.__setattr__(
            self, "_feeder_of_meter", {n.meter: name for name, n in self.feeder_notes.items() if n.meter}
        )
        object.__setattr__(self, "_feeders_in_order", tuple(sorted(self.tree.feeders, key=lambda f: (depth[f], f))))
        object.__setattr__(self, "_banks_below", {name: tuple(banks) for name, banks in below.items()})

    def agents(self) -> tuple[str, ...]:
        """Return every agent that the file names, for banks or meters, in name order."""
        readers = {note.meter_agent for note in self.feeder_notes.values() if note.meter_agent}
        return tuple(sorted(readers | {bank.agent for bank in self.banks}))

    def bank(self, agent: str, bank: str) -> SiteBank | None:
        """Return a declared bank, None for one that is unmanaged."""
        return self._bank_of.get((agent, bank))

    def banks_below(self, feeder: str) -> tuple[SiteBank, ...]:
        """Return the banks that hang on a feeder or on one below it, in the file's order."""
        return self._banks_below[feeder]

    def feeder_of_meter(self, meter: str) -> str | None:
        """Return the feeder that a meter measures, None for a meter that the file does not know."""
        return self._feeder_of_meter.get(meter)

    def feeders_in_order(self) -> tuple[str, ...]:
        """Return all feeders, parents before children, else in name order."""
        return self._feeders_in_order
