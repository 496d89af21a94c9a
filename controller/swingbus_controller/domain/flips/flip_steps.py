"""What moves a flip on: an event, or what is seen after a restart. The phases are told in `flip`.

Decides for one flip what an event means and what is to be done next; does nothing itself. Invariants: a flip that is over emits nothing
more; `step` either moves, or raises `InvalidTransition` with the story so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from swingbus.faults import WrongState
from swingbus_controller.domain.flips.flip import (
    TERMINAL,
    Direction,
    Flip,
    HistoryEntry,
    Phase,
    WattState,
    desired_of,
)
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
    Vacated,
    VerifiedRunning,
    WattsHeld,
    WattsSettled,
    WorkloadFailed,
    WorkloadReady,
)
from swingbus_controller.domain.planning.points import WORKING_MODES, DeviceKind, Mode, OperatingPoint

HISTORY_LIMIT = 64


class InvalidTransition(WrongState):
    """An event that the flip's phase does not allow; the message tells the story so far."""

    default_reason = "INVALID_TRANSITION"


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
        case Vacated() if flip.phase in (Phase.STARTING, Phase.VERIFYING) and flip.may_stand_empty:
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

    Every deadline is a fresh one, for it bounds the time in which somebody looks, and a restart voids what was shown before. With the old
    one each restart late in a phase would undo flips, and fail sheds, for want of evidence that nobody had the time to see. The price: a
    controller that is killed again and again keeps its flips open, each counted at the larger of both points, so that no watts are at risk.
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


_EVIDENCE = (Drained, Released, Applied, WorkloadReady, VerifiedRunning, Vacated, WattsSettled)
_WAITS_FOR_WATTS = (Phase.PLANNED, Phase.SETTLING)


def _needed_to_verify(flip: Flip) -> frozenset[str]:
    """A workload that starts must answer its own probe; one that only gets another cap keeps running."""
    if flip.destination.mode is Mode.INFERENCE and flip.is_mode_flip:
        return frozenset({"Applied", "WorkloadReady"})
    return frozenset({"Applied"})


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
