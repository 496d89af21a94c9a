"""A flip: one move of devices from one operating point to another, finished by evidence or undone.

`flip_steps.step` decides, for one flip, what an event means and what is to be done next; it does nothing itself, knows no agent, no ledger
and no clock, and takes nobody's word for a change: only evidence moves it on. Every phase has a deadline and an undo.

    PLANNED -> DRAINING -> RELEASED -> SETTLING -> STARTING -> VERIFYING -> ACTIVE | ROLLED_BACK | FAILED

    PLANNED    journaled, nothing touched. A growing flip of a busy unit waits here for its watts, so that nobody idles for them.
    DRAINING   the old tenant is told to finish; until evidence `Drained` (or its grace ends).
    RELEASED   the old tenant is told to go; until evidence `Released`: no process holds the GPU, the miner reads back asleep.
    SETTLING   the unit is free. Going to rest: its watts are given back, until `WattsSettled`. Going to work from rest: its watts
               are asked for, until `WattsHeld`.
    STARTING   the new point is set; until `Applied`, and for inference also `WorkloadReady` by its own probe.
    VERIFYING  until `VerifiedRunning`: samples taken after the change show the new tenant at work.

An undo is the same road back (`direction` UNDO): stop what was half started, restart what ran, ROLLED_BACK on evidence. A pod that has
gone by itself is not waited for (`Vacated`): its place of inference stands empty then, with its watts, for the next one. If the undo fails
too, the unit is asked to rest, stays charged in full, and the flip is FAILED. A shed (`is_safety`) is never undone,
for an undo would draw watts that are not there: it presses on and then FAILS, charged, so that the guard finds others.
Watts are counted at the larger of both points until the flip is over: the road back is always paid for.

Times are seconds of the controller's CLOCK_BOOTTIME, on the flip's own axis: a jump of the wall clock neither ends nor prolongs a phase,
and a restart in the same boot goes on.

Invariants: from the first instruction to the end a unit has at most one tenant (`desired_of` names it); a flip that is over
emits nothing more; `step` either moves, or raises `InvalidTransition` with the story so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from swingbus.faults import InvalidInput
from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.flips.boot_axis import WALL, BootAxis
from swingbus_controller.domain.flips.flip_events import Tenancy
from swingbus_controller.domain.planning.points import WORKING_MODES, DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.policy import FlipTimes


class Phase(StrEnum):
    """Where a flip is."""

    PLANNED = "planned"
    DRAINING = "draining"
    RELEASED = "released"
    SETTLING = "settling"
    STARTING = "starting"
    VERIFYING = "verifying"
    ACTIVE = "active"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


TERMINAL = frozenset({Phase.ACTIVE, Phase.ROLLED_BACK, Phase.FAILED})


class Direction(StrEnum):
    """Whether the flip goes to its aim or back to where it began."""

    FORWARD = "forward"
    UNDO = "undo"


class WattState(StrEnum):
    """What the flip has agreed with the ledger about its difference in watts."""

    UNCHANGED = "unchanged"
    ASKED = "asked"
    HELD = "held"
    GIVEN_BACK = "given_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One line of a flip's story."""

    at_s: float
    phase: Phase
    direction: Direction
    event: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One move under way.

    Args:
        id: its name; also the cause that its instructions carry.
        bank: the bank.
        unit_ids: the units that move (GPU); empty for ASICs, whose agent chooses `count` machines.
        count: devices that move.
        origin, aim: the operating points, with their counted watts per device.
        is_safety: a shed for a limit or a curtailment: not undone, not cancelled.
        watts: what is agreed with the ledger about `claim_delta_w`.
        evidence: what has been shown in the present phase.
        undo_cause: why it is being undone.
        missed_count: devices of an ASIC flip left out on the way because they did not follow.
        axis: the boot that every time in here counts from; a record without one has Unix seconds.
        pod: in a cluster, who comes into inference with it, or leaves; None where nobody has to be named.
    """

    id: str
    bank: str
    kind: DeviceKind
    unit_ids: tuple[str, ...]
    count: int
    origin: OperatingPoint
    aim: OperatingPoint
    reason: str
    author: str
    created_at_s: float
    times: FlipTimes
    is_safety: bool = False
    phase: Phase = Phase.PLANNED
    direction: Direction = Direction.FORWARD
    since_s: float
    deadline_s: float
    watts: WattState = WattState.UNCHANGED
    evidence: frozenset[str] = frozenset()
    undo_cause: str | None = None
    missed_count: int = 0
    history: tuple[HistoryEntry, ...] = ()
    axis: BootAxis = WALL
    pod: PodRef | None = None

    @property
    def is_mode_flip(self) -> bool:
        """Whether the mode changes; a cap flip changes watts within a mode."""
        return self.origin.mode is not self.aim.mode

    @property
    def is_over(self) -> bool:
        """Whether the flip has ended, one way or another."""
        return self.phase in TERMINAL

    @property
    def claim_delta_w(self) -> float:
        """Counted watts that the flip adds (+) or gives back (-) when it succeeds."""
        return self.count * (self.aim.claim_w - self.origin.claim_w)

    @property
    def claim_w(self) -> float:
        """Counted watts of its devices while it is open: the larger of both points."""
        return self.count * max(self.aim.claim_w, self.origin.claim_w)

    @property
    def source(self) -> OperatingPoint:
        """The point being left, in the present direction."""
        return self.origin if self.direction is Direction.FORWARD else self.aim

    @property
    def destination(self) -> OperatingPoint:
        """The point being gone to, in the present direction."""
        return self.aim if self.direction is Direction.FORWARD else self.origin

    @property
    def has_tenant_to_drain(self) -> bool:
        """Whether somebody works on the units in the mode that is being left."""
        return self.is_mode_flip and self.source.mode in WORKING_MODES

    @property
    def has_touched_nothing(self) -> bool:
        """Whether it has drained nobody and started nothing yet: it can end without an undo."""
        return self.phase is Phase.PLANNED or (self.phase is Phase.SETTLING and not self.has_tenant_to_drain)

    @property
    def may_stand_empty(self) -> bool:
        """Whether its end needs nobody at work: back in inference a place may stand empty, as any other of that mode."""
        return self.direction is Direction.UNDO and self.is_mode_flip and self.destination.mode is Mode.INFERENCE

    def story(self) -> str:
        """Tell what happened so far, one clause per event."""
        told = [f"{e.event}->{e.phase}{'(undo)' if e.direction is Direction.UNDO else ''}" for e in self.history]
        return f"flip {self.id} of {self.bank}, {self.origin.name} to {self.aim.name}: " + (
            ", ".join(told) if told else "planned"
        )

    def validate(self) -> None:
        """Raise InvalidInput if fields contradict each other."""
        problems = []
        if self.count < 1:
            problems.append(f"count is {self.count}, must be at least 1")
        if self.origin == self.aim:
            problems.append("from and to are the same point")
        if self.kind is DeviceKind.ASIC and Mode.INFERENCE in (self.origin.mode, self.aim.mode):
            problems.append("an ASIC can only mine or rest")
        if len(set(self.unit_ids)) != len(self.unit_ids) or (self.unit_ids and self.count % len(self.unit_ids)):
            problems.append(f"{self.count} devices do not make {len(self.unit_ids)} whole units")
        if self.direction is Direction.UNDO and self.undo_cause is None:
            problems.append("an undo without a cause")
        if not self.is_over and self.deadline_s < self.since_s:
            problems.append("the deadline lies before the phase began")
        if problems:
            raise InvalidInput(f"flip {self.id} of {self.bank}: " + "; ".join(problems), metadata={"flip": self.id})


def new_flip(
    *,
    id: str,
    bank: str,
    kind: DeviceKind,
    count: int,
    origin: OperatingPoint,
    aim: OperatingPoint,
    reason: str,
    author: str,
    now_s: float,
    axis: BootAxis,
    times: FlipTimes,
    unit_ids: tuple[str, ...] = (),
    is_safety: bool = False,
    pod: PodRef | None = None,
) -> Flip:
    """Plan a flip: nothing is touched until `Begun`.

    Raises:
        InvalidInput: fields contradict each other (an ASIC to inference, no devices, from equals to).
    """
    flip = Flip(
        id=id, bank=bank, kind=kind, unit_ids=unit_ids, count=count, origin=origin, aim=aim, reason=reason, author=author,
        created_at_s=now_s, times=times, is_safety=is_safety, since_s=now_s, deadline_s=now_s + times.planned_s,
        axis=axis, pod=pod,
    )  # fmt: skip
    flip.validate()
    return flip


def desired_of(flip: Flip) -> tuple[OperatingPoint, Tenancy]:
    """Return what the flip's devices are to do now: the one point whose tenant may be there, and whether it may stay.

    A pure function of the flip, so that desired state can be rebuilt at any time and never depends on an order arriving.
    """
    match flip.phase:
        case Phase.ACTIVE:
            return flip.aim, Tenancy.RUN
        case Phase.ROLLED_BACK:
            return flip.origin, Tenancy.RUN
        case Phase.FAILED:
            return (flip.aim, Tenancy.RUN) if presses_on(flip) else (flip.origin, Tenancy.STOP)
        case Phase.PLANNED:
            return flip.origin, Tenancy.RUN
        case Phase.DRAINING:
            return flip.source, Tenancy.DRAIN
        case Phase.RELEASED:
            return flip.source, Tenancy.STOP
        case Phase.SETTLING if flip.watts is WattState.GIVEN_BACK:
            return flip.destination, Tenancy.RUN  # free and resting, its watts on the way back
        case Phase.SETTLING:
            return flip.source, Tenancy.STOP if flip.has_tenant_to_drain else Tenancy.RUN
        case Phase.STARTING | Phase.VERIFYING:
            return flip.destination, Tenancy.RUN


def rebased(flip: Flip, axis: BootAxis, *, now_s: float) -> Flip:
    """Return the flip on this boot's axis: after a reboot only the wall clock connects the two.

    A wall clock that was set back meanwhile must not put the phase's beginning into the future, where no evidence would count.
    """
    if flip.axis.boot_id == axis.boot_id:
        return flip
    shift_s = min(flip.axis.zero_unix_s - axis.zero_unix_s, now_s - flip.since_s)
    return replace(
        flip,
        axis=axis,
        created_at_s=flip.created_at_s + shift_s,
        since_s=flip.since_s + shift_s,
        deadline_s=flip.deadline_s + shift_s,
        history=tuple(replace(entry, at_s=entry.at_s + shift_s) for entry in flip.history),
    )


def is_due(flip: Flip, now_s: float) -> bool:
    """Whether the present phase's deadline has passed, so that the owner should send `PhaseTimedOut`."""
    return not flip.is_over and now_s >= flip.deadline_s


def presses_on(flip: Flip) -> bool:
    """A shed keeps wanting its aim even when it failed: there are no watts to go back to."""
    return flip.is_safety and flip.direction is Direction.FORWARD and flip.claim_delta_w <= 0
