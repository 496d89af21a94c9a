"""What the ledger of watts has decided or learned for good: the events that an engine journals.

Decides: nothing, these are facts. Refuses to know: how they are stored. Invariant: each is journaled with fsync before
anything that follows from it is sent. Watts, floats in seconds on the controller's `now_s` axis, strings, tuples and
enums only, so any record format can hold them; `to_record`/`from_record` are the plain one.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from swingbus.faults import InvalidInput
from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.power.records import build, plain


class JournalTrust(Enum):
    """How far the journal that a controller starts from can be believed."""

    CURRENT = "current"  # proven to be the newest (an anchor kept elsewhere names its last record)
    UNPROVEN = "unproven"  # perhaps restored from an older copy: growth counts silent banks at their ceiling
    LOST = "lost"  # none, or an agent has shown it to be old: every bank counts at its ceiling


class GrantKind(Enum):
    """Why a grant was journaled."""

    GROW = "grow"
    SHRINK = "shrink"  # planned
    SAFETY = "safety"  # by guard: exempt from ramps
    REGRANT = "regrant"  # what the agent already has, under our epoch or after a lapse


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerStarted:
    """A controller took up a new epoch, bound to its instance id; `boot_id` says which boot its `now_s` counts from."""

    epoch: int
    instance: str
    boot_id: str
    trust: JournalTrust
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalDoubted:
    """An agent showed something newer than our journal: banks that have not reported count at their ceiling."""

    at_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BankAdopted:
    """A bank's agent reported under our epoch; from then on no older epoch can reach it.

    Attributes:
        reported_w: the most it may draw without hearing from us again.
        is_doubtful: its past is not covered by our journal: it counts at its ceiling until it settles.
    """

    bank: str
    reported_w: float
    is_doubtful: bool
    agent_instance: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantIssued:
    """Watts at the feeder, to be sent once this is on disk.

    Attributes:
        for_instance: the agent instance that we had last heard; an agent that lost its durable state takes no other.
        reason: stable words for people and `explain`.
    """

    bank: str
    epoch: int
    generation: int
    grant_w: float
    kind: GrantKind
    for_instance: str
    reason: str
    starts_count: int = 0
    ramp_w: float = 0.0
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceWindow:
    """One meter window that a settlement rests on, on the clock of the agent that read the meter."""

    start_s: float
    end_s: float
    mean_w: float
    upper_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledGrant:
    """The grant of one bank that evidence has proven to be in force."""

    bank: str
    epoch: int
    generation: int
    grant_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettled:
    """Evidence shows that a metered group obeys its newest grants: all older ones leave the claim."""

    group: str
    grants: tuple[SettledGrant, ...]
    windows: tuple[EvidenceWindow, ...]
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupExceeded:
    """A group may draw more than all its grants: it counts at the reading's upper bound until it settles.

    Only where even the lower bound is above the grants does it surely disobey, and is named.
    """

    group: str
    upper_w: float
    lower_w: float
    granted_w: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSet:
    """A limit was set or replaced (same feeder, same name)."""

    feeder: str
    limit: Limit
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRemoved:
    """A limit was taken away."""

    feeder: str
    name: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DisturbanceSeen:
    """A blip: no evidence and no growth until `until_s`."""

    until_s: float
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BankIsolated:
    """The bank's supply was read back open with zero current: it claims nothing until it is joined again."""

    bank: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BankJoined:
    """The bank's supply may close: it counts at its ceiling until it settles."""

    bank: str
    at_s: float


BudgetEvent = (
    ControllerStarted
    | JournalDoubted
    | BankAdopted
    | GrantIssued
    | GroupSettled
    | GroupExceeded
    | LimitSet
    | LimitRemoved
    | DisturbanceSeen
    | BankIsolated
    | BankJoined
)

_EVENTS: Mapping[str, type[BudgetEvent]] = types.MappingProxyType(
    {kind.__name__: kind for kind in typing.get_args(BudgetEvent)}
)


def to_record(event: BudgetEvent) -> dict[str, Any]:
    """Return the event as plain JSON values, its type name under `event`."""
    return {"event": type(event).__name__, **plain(event)}


def from_record(record: Mapping[str, Any]) -> BudgetEvent:
    """Return the event that `to_record` wrote; raise `InvalidInput` for anything else."""
    kind = _EVENTS.get(str(record.get("event")))
    if kind is None:
        raise InvalidInput(
            f"{record.get('event')!r} is not a budget event: the journal is newer than this program, or damaged.",
            reason="UNKNOWN_BUDGET_EVENT",
        )
    return build(kind, {name: value for name, value in record.items() if name != "event"})
