"""What the controller orders and what this agent reports back, without wire types.

Decides nothing. Invariant: an order is complete (all banks of the agent, all devices of each bank) and level-triggered,
so that receiving it twice, late or out of order does no harm. Watts are at the feeder unless the name says `device`;
times ending in `_boottime_s` are on this host's CLOCK_BOOTTIME.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mode(Enum):
    """What devices do; values are the wire's numbers."""

    UNKNOWN = 0
    MINING = 1
    INFERENCE = 2
    STANDBY = 3
    OFF = 4


class Urgency(Enum):
    """How machines are chosen; values are the wire's numbers."""

    PLANNED = 1
    EMERGENCY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PointOrder:
    """Devices of a bank that shall stand (in a report: that do stand) at one operating point."""

    point: str
    mode: Mode
    power_w: float  # limit to enforce (GPU) or target (ASIC), per device; 0 where the mode needs none
    count: int
    workload: str = ""
    units: tuple[int, ...] = ()  # empty: the agent chooses


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeShareStep:
    """What a bank falls to from a wall-clock moment on when nobody renews; `start_unix_s` None means now."""

    start_unix_s: float | None
    power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOrder:
    """What one bank may draw and should do."""

    bank: str
    generation: int  # of the grant; points may change under the same grant
    grant_w: float
    device_budget_w: float
    points: tuple[PointOrder, ...]
    urgency: Urgency = Urgency.PLANNED
    safe_shares: tuple[SafeShareStep, ...] = ()
    locked_out: bool = False
    locked_devices: tuple[str, ...] = ()
    starts_per_s: float = 0.0  # 0 = no limit
    for_instance: str = ""  # the run of this agent that the grant is meant for


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOrder:
    """Desired state of this agent; `generation` grows with every change within the epoch."""

    epoch: int
    controller_instance: str
    generation: int
    hash: str
    banks: tuple[BankOrder, ...]
    marker: int
    ttl_s: float
    ticket: str = ""  # echo of the newest ticket on this stream: dates the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class BankCounting:
    """How watts enforced on devices are counted at the feeder; the site's owner sets it, the controller sends it."""

    bank: str
    gpu_limit_ratio: float
    asic_target_ratio: float
    asic_boot_w: float
    rest_w: float
    device_ceiling_w: float  # of a device of which nothing is known
    cooling_ratio: float
    losses_ratio: float
    fixed_w: float  # host, cooling at nameplate, start peak


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptOrder:
    """Fences this agent to an epoch without changing watts; banks without counting are unmanaged."""

    epoch: int
    controller_instance: str
    marker: int
    counting: tuple[BankCounting, ...] = ()
    ticket: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalReply:
    """How long the grants last, counted from when this agent sent its renewal."""

    sent_boottime_ns: int
    epoch: int
    ttl_s: float
    marker: int
    ticket: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerReport:
    """A device that is not where it shall be."""

    device: str
    reason: str  # in_flight, ignored, self_woke, unreachable, hung, quarantined
    attempt_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitWorkload:
    """A workload of one unit by name; `reason` is empty unless it failed."""

    unit: int
    workload: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingReport:
    """Who holds one unit where pods are the workloads; `has_process` is also true while nobody can say."""

    unit: int
    holders: tuple[str, ...]  # pods, as namespace/name
    workload: str  # empty without holders, or where they are of both tenants
    has_process: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BankReport:
    """What one bank really has."""

    bank: str
    epoch: int
    generation: int
    grant_w: float
    allowed_w: float
    applied_generation: int = 0  # 0 = none
    applied_boottime_s: float = 0.0
    has_in_flight: bool = False
    held_count: int = 0
    observed: tuple[PointOrder, ...] = ()
    stragglers: tuple[StragglerReport, ...] = ()
    counted_power_w: float = 0.0
    safe_shares: tuple[SafeShareStep, ...] = ()
    ready_workloads: tuple[UnitWorkload, ...] = ()
    failed_workloads: tuple[UnitWorkload, ...] = ()
    released_units: tuple[int, ...] = ()
    reported_w: float | None = None  # most it may draw without hearing from the controller again; None: not known yet
    is_lapsed: bool = False
    is_lost: bool = False
    unheld_count: int = 0
    locked_out: bool = False  # by the order that is durable at the agent
    locked_devices: tuple[str, ...] = ()
    unit_holdings: tuple[HoldingReport, ...] = ()  # one per unit where pods are the workloads


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """Effective state of this agent."""

    epoch: int
    generation: int
    hash: str
    banks: tuple[BankReport, ...]
    marker: int
    boottime_s: float
    boot_id: str
    refusal: str = ""
    instance_uid: str = ""
    sequence: int = 0  # + 1 per report of this instance
    fence_instance: str = ""
