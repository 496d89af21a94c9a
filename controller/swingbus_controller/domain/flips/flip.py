"""A flip: one move of devices from one operating point to another, finished by evidence or undone.

`step` decides, for one flip, what an event means and what is to be done next; it does nothing itself, knows no agent, no ledger
and no clock, and takes nobody's word for a change: only evidence moves it on. Every phase has a deadline and an undo.

    PLANNED -> DRAINING -> RELEASED -> SETTLING -> STARTING -> VERIFYING -> ACTIVE | ROLLED_BACK | FAILED

    PLANNED    journaled, nothing touched. A growing flip of a busy unit waits here for its watts, so that nobody idles for them.
    DRAINING   the old tenant is told to finish; until evidence `Drained` (or its grace ends).
    RELEASED   the old tenant is told to go; until evidence `Released`: no process holds the GPU, the miner reads back asleep.
    SETTLING   the unit is free. Going to rest: its watts are given back, until `WattsSettled`. Going to work from rest: its watts
               are asked for, until `WattsHeld`.
    STARTING   the new point is set; until `Applied`, and for inference also `WorkloadReady` by its own probe.
    VERIFYING  until `VerifiedRunning`: samples taken after the change show the new tenant at work.

An undo is the same road back (`direction` UNDO): stop what was half started, restart what ran, ROLLED_BACK on evidence. If the
undo fails too, the unit is asked to rest, stays charged in full, and the flip is FAILED. A shed (`is_safety`) is never undone,
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

from swingbus.faults import InvalidInput, WrongState
from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.flips.boot_axis import WALL, BootAxis
from swingbus_controller.domain.flips.flip_events import (
    Applied,
    Begun,
    Cancelled,
    Drained,
    EvidenceLost,
    FlipEvent,
    Instruction,
    KeepCharged,
    PhaseTimedOut,
    PodReplaced,
    Released,
    ReleaseWatts,
    RequestWatts,
    SetDesired,
    Tenancy,
    VerifiedRunning,
    WattsHeld,
    WattsSettled,
    WorkloadFailed,
    WorkloadReady,
)
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


HISTORY_LIMIT = 64


class InvalidTransition(WrongState):
    """An event that the flip's phase does not allow; the message tells the story so far."""

    default_reason = "INVALID_TRANSITION"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What evidence shows of a flip's devices after a restart; the stored phase is not believed.

    Args:
        tenant_mode: the mode they are seen in: MINING, INFERENCE or STANDBY (nobody works); None if they cannot be seen.
        point: name of the point that is enforced, read back, if known (tells caps apart).
        has_watts: whether the ledger holds the larger of both points for them.
    """

    tenant_mode: Mode | None
    point: str | None = None
    has_watts: bool = False


_Step = tuple[Flip, tuple[Instruction, ...]]


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
            return (flip.aim, Tenancy.RUN) if _presses_on(flip) else (flip.origin, Tenancy.STOP)
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


def accepts(flip: Flip, event: FlipEvent) -> bool:
    """Whether `step` would take this event now; evidence that comes round again with every sample need not be sent twice."""
    try:
        step(flip, event)
    except InvalidTransition:
        return False
    return True


def step(flip: Flip, event: FlipEvent) -> _Step:
    """Tell what an event means for a flip and what is to be done next.

    Raises:
        InvalidTransition: the phase does not allow the event; the flip is unchanged.
    """
    if flip.is_over:
        raise _invalid(flip, event, "the flip is over")
    if isinstance(event, _EVIDENCE) and event.at_s < flip.since_s:
        raise _invalid(flip, event, "it was taken before the phase began, so it shows nothing of it")
    forward = flip.direction is Direction.FORWARD
    match event:
        case Begun() if flip.phase is Phase.PLANNED and flip.watts is WattState.UNCHANGED:
            return _begin(flip, event)
        case WattsHeld() if flip.watts is WattState.ASKED and flip.phase in (Phase.PLANNED, Phase.SETTLING):
            held = replace(flip, watts=WattState.HELD)
            return _drain(held, event) if flip.phase is Phase.PLANNED else _start(held, event)
        case Drained() if flip.phase is Phase.DRAINING:
            return _stop(flip, event)
        case Released() if flip.phase in (Phase.DRAINING, Phase.RELEASED):
            return _after_release(flip, event)
        case WattsSettled() if flip.phase is Phase.SETTLING and flip.watts is WattState.GIVEN_BACK:
            return _finish(flip, event)
        case Applied() | WorkloadReady() if flip.phase is Phase.STARTING:
            shown = flip.evidence | {type(event).__name__}
            if _needed_to_verify(flip) <= shown:
                return _enter(flip, Phase.VERIFYING, event), ()
            return replace(_noted(flip, event), evidence=shown), ()
        case VerifiedRunning() if flip.phase is Phase.VERIFYING:
            return _finish(flip, event)
        case WorkloadFailed() if flip.phase in (Phase.STARTING, Phase.VERIFYING):
            return _give_up(flip, event, f"workload failed: {event.reason}")
        case PodReplaced() if forward and flip.pod is not None and flip.aim.mode is Mode.INFERENCE:
            heir = replace(flip, pod=event.pod, evidence=frozenset())  # what the one before has shown is not its own
            is_held = event.had_come and flip.phase in (Phase.STARTING, Phase.VERIFYING)
            return _stop(heir, event) if is_held else (_noted(heir, event), ())
        case EvidenceLost():
            return replace(_noted(flip, event, event.reason), evidence=frozenset()), ()
        case PhaseTimedOut():
            if forward and flip.kind is DeviceKind.ASIC and 0 < event.done_count < flip.count:
                narrowed = _narrow(flip, event)
                if narrowed is not None:
                    return narrowed
            return _give_up(flip, event, f"{flip.phase} took longer than {event.at_s - flip.since_s:.0f} s")
        case Cancelled() if forward and not flip.is_safety:
            return _give_up(flip, event, f"cancelled by {event.author}: {event.reason}")
        case Cancelled():
            raise _invalid(
                flip, event, "a shed for safety is not cancelled" if forward else "it is being undone already"
            )
        case _:
            raise _invalid(flip, event, "the phase does not allow it")


def recover(flip: Flip, observation: Observation, *, event_id: str, now_s: float) -> _Step:
    """Go on after a restart from what is seen, trusting no stored phase: only the aim, the direction and the ledger's claims.

    Evidence has to be shown anew. Where nothing can be seen the flip waits, with a fresh deadline, and fails charged at its end.
    """
    if flip.is_over:
        return flip, ()
    event = EvidenceLost(event_id=event_id, at_s=now_s, reason="controller restarted")
    is_growth = flip.claim_delta_w > 0
    if is_growth:
        watts = WattState.HELD if observation.has_watts else WattState.UNCHANGED
    else:
        watts = WattState.UNCHANGED if observation.has_watts or not flip.claim_delta_w else WattState.GIVEN_BACK
    flip = replace(flip, watts=watts, evidence=frozenset())
    lacks_growth = is_growth and watts is not WattState.HELD
    seen = observation.tenant_mode
    if seen is None:
        point, tenancy = desired_of(flip)
        # A request that may have been lost is made again; asking twice is harmless, the ledger knows the flip.
        again = replace(flip, watts=WattState.ASKED) if lacks_growth and flip.phase in _WAITS_FOR_WATTS else flip
        asks: tuple[Instruction, ...] = (_ask(flip, event),) if again.watts is WattState.ASKED else ()
        return _enter(again, flip.phase, event, "restarted, nothing to see yet"), (
            _desire(flip, point, tenancy, event),
            *asks,
        )
    if flip.direction is Direction.UNDO:
        if not flip.is_mode_flip or (seen is flip.origin.mode and seen in WORKING_MODES):
            return _start(flip, event)
        return _stop(flip, event)
    if not flip.is_mode_flip:
        return _begin_growth_in_settling(flip, event) if lacks_growth else _start(flip, event)
    if seen is flip.aim.mode and seen in WORKING_MODES:
        # Work without watts: the ledger forgot the growth, so the tenant has to go.
        if lacks_growth:
            return _undo(flip, event, "running without its watts after a restart", has_started=True)
        return _start(flip, event)
    if seen is flip.origin.mode and seen in WORKING_MODES:
        if flip.watts is WattState.GIVEN_BACK and flip.aim.mode in WORKING_MODES:
            return _undo(flip, event, "its watts were given back before it moved", has_started=False)
        return _begin(flip, event)
    if seen in WORKING_MODES:
        return _stop(flip, event)  # a third tenant: nobody's plan, it has to go before anything starts
    if flip.aim.mode in WORKING_MODES:
        return _begin_growth_in_settling(flip, event) if lacks_growth else _start(flip, event)
    return _after_release(flip, event)


_EVIDENCE = (Drained, Released, Applied, WorkloadReady, VerifiedRunning, WattsSettled)
_WAITS_FOR_WATTS = (Phase.PLANNED, Phase.SETTLING)


def _needed_to_verify(flip: Flip) -> frozenset[str]:
    """A workload that starts must answer its own probe; one that only gets another cap keeps running."""
    if flip.destination.mode is Mode.INFERENCE and flip.is_mode_flip:
        return frozenset({"Applied", "WorkloadReady"})
    return frozenset({"Applied"})


def _presses_on(flip: Flip) -> bool:
    """A shed keeps wanting its aim even when it failed: there are no watts to go back to."""
    return flip.is_safety and flip.direction is Direction.FORWARD and flip.claim_delta_w <= 0


def _noted(flip: Flip, event: FlipEvent, note: str = "") -> Flip:
    entry = HistoryEntry(
        at_s=event.at_s, phase=flip.phase, direction=flip.direction, event=type(event).__name__, note=note
    )
    return replace(flip, history=(*flip.history, entry)[-HISTORY_LIMIT:])


def _enter(flip: Flip, phase: Phase, event: FlipEvent, note: str = "") -> Flip:
    allowed_s = 0.0 if phase in TERMINAL else getattr(flip.times, f"{phase.value}_s")
    moved = replace(flip, phase=phase, since_s=event.at_s, deadline_s=event.at_s + allowed_s, evidence=frozenset())
    return _noted(moved, event, note)


def _desire(flip: Flip, point: OperatingPoint, tenancy: Tenancy, event: FlipEvent) -> SetDesired:
    return SetDesired(
        flip=flip.id, bank=flip.bank, unit_ids=flip.unit_ids, count=flip.count, point=point, tenancy=tenancy,
        cause=event.event_id, is_undo=flip.direction is Direction.UNDO,
    )  # fmt: skip


def _ask(flip: Flip, event: FlipEvent) -> RequestWatts:
    return RequestWatts(flip=flip.id, bank=flip.bank, watts_w=abs(flip.claim_delta_w), cause=event.event_id)


def _give_back(flip: Flip, event: FlipEvent) -> ReleaseWatts:
    return ReleaseWatts(flip=flip.id, bank=flip.bank, watts_w=abs(flip.claim_delta_w), cause=event.event_id)


def _lacks_growth(flip: Flip) -> bool:
    """Whether it goes to more watts than the ledger holds: also late, after a restart, where its agent never heard of them."""
    return flip.direction is Direction.FORWARD and flip.claim_delta_w > 0 and flip.watts is not WattState.HELD


def _begin(flip: Flip, event: FlipEvent) -> _Step:
    lacks_growth = _lacks_growth(flip)
    if flip.has_tenant_to_drain:
        if lacks_growth:
            return _enter(replace(flip, watts=WattState.ASKED), Phase.PLANNED, event), (_ask(flip, event),)
        return _drain(flip, event)
    return _begin_growth_in_settling(flip, event) if lacks_growth else _start(flip, event)


def _begin_growth_in_settling(flip: Flip, event: FlipEvent) -> _Step:
    return _enter(replace(flip, watts=WattState.ASKED), Phase.SETTLING, event), (_ask(flip, event),)


def _drain(flip: Flip, event: FlipEvent) -> _Step:
    return _enter(flip, Phase.DRAINING, event), (_desire(flip, flip.source, Tenancy.DRAIN, event),)


def _stop(flip: Flip, event: FlipEvent) -> _Step:
    return _enter(flip, Phase.RELEASED, event), (_desire(flip, flip.source, Tenancy.STOP, event),)


def _start(flip: Flip, event: FlipEvent) -> _Step:
    return _enter(flip, Phase.STARTING, event), (_desire(flip, flip.destination, Tenancy.RUN, event),)


def _after_release(flip: Flip, event: FlipEvent) -> _Step:
    """The unit is free: go to work, or give the watts back and rest."""
    if flip.destination.mode in WORKING_MODES:
        if flip.watts is WattState.GIVEN_BACK or _lacks_growth(flip):
            return _begin_growth_in_settling(flip, event)
        return _start(flip, event)
    if flip.direction is Direction.FORWARD and flip.claim_delta_w < 0:
        resting = _enter(replace(flip, watts=WattState.GIVEN_BACK), Phase.SETTLING, event)
        return resting, (_give_back(flip, event), _desire(flip, flip.aim, Tenancy.RUN, event))
    return _finish(flip, event)


def _finish(flip: Flip, event: FlipEvent) -> _Step:
    if flip.direction is Direction.FORWARD:
        gives_back = flip.claim_delta_w < 0 and flip.watts is not WattState.GIVEN_BACK
        done = _enter(flip, Phase.ACTIVE, event)
        if gives_back:
            return replace(done, watts=WattState.GIVEN_BACK), (_give_back(flip, event),)
        return done, ()
    return _roll_back(flip, event, flip.undo_cause or "")


def _roll_back(flip: Flip, event: FlipEvent, cause: str) -> _Step:
    withdraws = flip.claim_delta_w > 0 and flip.watts in (WattState.ASKED, WattState.HELD)
    over = _enter(replace(flip, undo_cause=cause), Phase.ROLLED_BACK, event, cause)
    told = _desire(flip, flip.origin, Tenancy.RUN, event)
    if withdraws:
        return replace(over, watts=WattState.GIVEN_BACK), (told, _give_back(flip, event))
    return over, (told,)


def _give_up(flip: Flip, event: FlipEvent, cause: str) -> _Step:
    """A phase cannot be finished: undo it, or fail where there is no way back."""
    if flip.direction is Direction.UNDO:
        return _fail(flip, event, f"{flip.undo_cause}; the undo failed too: {cause}")
    if flip.is_safety:
        if flip.phase is Phase.DRAINING:
            return _stop(flip, event)  # its grace is over
        return _fail(flip, event, cause)
    if flip.has_touched_nothing:
        return _roll_back(flip, event, cause)
    return _undo(flip, event, cause, has_started=flip.phase in (Phase.STARTING, Phase.VERIFYING))


def _undo(flip: Flip, event: FlipEvent, cause: str, *, has_started: bool) -> _Step:
    back = replace(flip, direction=Direction.UNDO, undo_cause=cause)
    if flip.is_mode_flip and flip.aim.mode in WORKING_MODES and has_started:
        return _stop(back, event)
    if flip.watts is WattState.GIVEN_BACK:
        return _begin_growth_in_settling(back, event)
    return _start(back, event)


def _fail(flip: Flip, event: FlipEvent, cause: str) -> _Step:
    failed = _enter(replace(flip, undo_cause=cause), Phase.FAILED, event, cause)
    point, tenancy = desired_of(failed)
    charged = KeepCharged(
        flip=flip.id,
        bank=flip.bank,
        unit_ids=flip.unit_ids,
        count=flip.count,
        watts_w=flip.claim_w,
        cause=event.event_id,
    )
    return failed, (_desire(flip, point, tenancy, event), charged)


def _narrow(flip: Flip, event: PhaseTimedOut) -> _Step | None:
    """Go on with the ASICs that followed and leave out the rest, rather than wake 39 machines because the 40th lies.

    Returns None in phases that have no evidence per device.
    """
    left_out = flip.count - event.done_count
    smaller = replace(flip, count=event.done_count, missed_count=flip.missed_count + left_out)
    back_w = left_out * (flip.aim.claim_w - flip.origin.claim_w)
    spare: tuple[Instruction, ...] = ()
    if back_w > 0 and flip.watts is WattState.HELD:
        spare = (ReleaseWatts(flip=flip.id, bank=flip.bank, watts_w=back_w, cause=event.event_id),)
    match flip.phase:
        case Phase.DRAINING | Phase.RELEASED:
            moved, instructions = _after_release(smaller, event)
        case Phase.STARTING:
            moved, instructions = _enter(smaller, Phase.VERIFYING, event), ()
        case Phase.VERIFYING:
            moved, instructions = _finish(smaller, event)
        case _:
            return None
    told = _desire(moved, *desired_of(moved), event)
    return moved, (told, *spare, *(i for i in instructions if not isinstance(i, SetDesired)))


def _invalid(flip: Flip, event: FlipEvent, why: str) -> InvalidTransition:
    return InvalidTransition(
        f"{type(event).__name__} in {flip.phase} ({flip.direction}): {why}; story so far: {flip.story()}",
        metadata={"flip": flip.id, "phase": flip.phase.value, "event": type(event).__name__},
    )
