"""The governor's settings, the shape of a bank as it sees it, and the words of its answers.

Decides: nothing. Refuses to know: how they come about (`governor`). Invariant: times are CLOCK_BOOTTIME of this host,
watts are at the bank's feeder unless a name says device.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from swingbus.faults import InvalidInput
from swingbus_agent.domain.grant import DurableState, SafeShareStep


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorSettings:
    """Times of the agent's side.

    Attributes:
        ttl_max_s: a controller cannot lend for longer than this, whatever it says.
        quarantine_s: longest known delay of the firmware's writes (at least 60 s) and two windows.
        refresh_s: how far the lease on disk may lag behind the living one.
        above_count: samples above the grant before the agent sheds unasked.
    """

    ttl_max_s: float = 120.0
    quarantine_s: float = 62.0
    refresh_s: float = 30.0
    above_count: int = 2

    def __post_init__(self) -> None:
        if not (self.ttl_max_s > 0.0 and self.quarantine_s >= 0.0 and self.refresh_s > 0.0 and self.above_count >= 1):
            raise InvalidInput("governor times must be above 0, quarantine 0 or more.", reason="BAD_GOVERNOR")


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernedBank:
    """One bank as the governor sees it.

    Attributes:
        devices: names of all its devices.
        device_ceiling_w: what a device that is not held counts at (counted watts, as `BankSpec` has them).
        overhead_ratio: watts at the feeder per counted device watt, less 1 (cooling and losses).
        safe_share_w: what it falls to at most when nobody renews.
    """

    name: str
    devices: tuple[str, ...]
    device_ceiling_w: float
    overhead_ratio: float = 0.0
    safe_share_w: float = 0.0
    schedule: tuple[SafeShareStep, ...] = ()


class Verdict(Enum):
    """What became of one grant in a message."""

    ACCEPTED = "accepted"  # in force once it is on disk
    RENEWED = "renewed"  # the same grant, living longer
    OLD_EPOCH = "old-epoch"
    OTHER_INSTANCE = "other-instance"  # same epoch, another controller
    OLD_GENERATION = "old-generation"
    CHANGED = "changed"  # same generation, other watts: never taken
    UNKNOWN_TICKET = "unknown-ticket"  # answers nothing that this run asked: its age is not known
    LAPSED = "lapsed"  # this grant is over; only a newer one lifts it
    NOT_FOR_THIS_RUN = "not-for-this-run"  # memory is lost; made for another run of the agent
    UNKNOWN_BANK = "unknown-bank"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a message; nothing accepted is in force until `persist` is on disk and confirmed."""

    epoch_verdict: Verdict
    banks: tuple[tuple[str, Verdict], ...] = ()
    persist: DurableState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What the executor must obey now: watts at the feeder, and whether any device may be raised."""

    watts: float
    may_raise: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteStart:
    """Whether a device write may be dispatched (after `persist` is on disk and confirmed, where given)."""

    may_write: bool
    why: str
    persist: DurableState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedNow:
    """Everything of the grant is read back, at `at_s`."""

    epoch: int
    generation: int
    at_s: float
    counted_w: float
    unheld_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorReport:
    """What the agent tells of one bank."""

    bank: str
    instance: str
    boot_id: str
    fence_epoch: int
    fence_instance: str
    grant_epoch: int
    grant_generation: int
    grant_w: float | None
    reported_w: float | None
    is_lapsed: bool
    is_lost: bool
    applied: AppliedNow | None
