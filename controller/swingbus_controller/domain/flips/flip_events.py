"""What can happen to a flip (events, past tense) and what is to be done about it (instructions, imperative).

This room decides nothing. Every event has an id, which the instructions that follow repeat as their cause, and a time; for evidence
that is when its reading began, so that a reading older than the phase shows nothing of it. Invariant: plain values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.planning.points import OperatingPoint

# --- events: past tense, each with its own id and time -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The flip was admitted and is on disk."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WattsHeld:
    """The ledger holds the watts asked for."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WattsSettled:
    """Evidence: the watts given back are proven gone."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Evidence: the old tenant takes no more work and has finished what it had."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """Evidence: no process holds the unit; the miner reads back asleep."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """Evidence: the agent has set the new point and read it back on every device."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadReady:
    """Evidence: the workload's own probe answered."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRunning:
    """Evidence: samples taken after the change show the tenant at work at its point."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacated:
    """Evidence: on its way back to inference the unit is free, and the pod that was asked to leave is gone: nobody comes with the flip."""

    event_id: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFailed:
    """The new tenant died or its driver refused it: no need to wait for the deadline."""

    event_id: str
    at_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceLost:
    """What had been shown in this phase does not hold any more (agent dark, meter frozen, a disturbance)."""

    event_id: str
    at_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTimedOut:
    """The phase's deadline passed. `done_count`: devices of an ASIC flip that show the evidence all the same."""

    event_id: str
    at_s: float
    done_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """An operator, or a newer plan, wants it no more."""

    event_id: str
    at_s: float
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReplaced:
    """The pod that the flip brings comes no more, and another one takes its place. `had_come`: the one before may hold the unit."""

    event_id: str
    at_s: float
    pod: PodRef
    had_come: bool


FlipEvent = (
    Begun
    | WattsHeld
    | WattsSettled
    | Drained
    | Released
    | Applied
    | WorkloadReady
    | VerifiedRunning
    | Vacated
    | WorkloadFailed
    | EvidenceLost
    | PhaseTimedOut
    | Cancelled
    | PodReplaced
)


# --- instructions: imperative, each names its cause ---------------------------------------------------------------------------


class Tenancy(StrEnum):
    """What the units of a flip are to do now."""

    RUN = "run"  # work (or rest) at the point
    DRAIN = "drain"  # still at the point, but finish and take no more
    STOP = "stop"  # nobody: the tenant goes, the unit rests


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDesired:
    """Desired state for the flip's devices (level-triggered: the engine adds it up with the rest of the bank).

    `point` is the point whose watts and workload apply; with STOP it is the point whose tenant has to go.
    `is_undo` marks the road back.
    """

    flip: str
    bank: str
    unit_ids: tuple[str, ...]
    count: int
    point: OperatingPoint
    tenancy: Tenancy
    cause: str
    is_undo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestWatts:
    """Ask the ledger for more counted watts at the bank; it answers with `WattsHeld` when it can."""

    flip: str
    bank: str
    watts_w: float
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseWatts:
    """Give back counted watts at the bank: shrink the grant, settle by evidence. Also withdraws a request not yet met."""

    flip: str
    bank: str
    watts_w: float
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepCharged:
    """The flip failed: count its devices at this until evidence shows better, and name them to the operator."""

    flip: str
    bank: str
    unit_ids: tuple[str, ...]
    count: int
    watts_w: float
    cause: str


Instruction = SetDesired | RequestWatts | ReleaseWatts | KeepCharged
