"""Flips over random histories: total, one tenant, always an end."""

from __future__ import annotations

import random
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.flips.boot_axis import BootAxis, axis_at
from swingbus_controller.domain.flips.flip import Direction, Flip, Phase, WattState, desired_of, new_flip, rebased
from swingbus_controller.domain.flips.flip_events import (
    Applied,
    Begun,
    Cancelled,
    Drained,
    EvidenceLost,
    FlipEvent,
    PhaseTimedOut,
    PodReplaced,
    Released,
    Tenancy,
    Vacated,
    VerifiedRunning,
    WattsHeld,
    WattsSettled,
    WorkloadFailed,
    WorkloadReady,
)
from swingbus_controller.domain.flips.flip_steps import InvalidTransition, Observation, recover, step
from swingbus_controller.domain.planning.points import WORKING_MODES, DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.policy import FlipTimes

POD, HEIR = (PodRef(namespace="customers", name=name, uid=f"uid-{name}") for name in ("web-1", "web-2"))
BOOT = BootAxis(boot_id="b1", zero_unix_s=1.7e9)
POINTS = (
    OperatingPoint(name="inference", mode=Mode.INFERENCE, claim_w=750.0, draw_w=650.0, output=1.0),
    OperatingPoint(name="inference-low", mode=Mode.INFERENCE, claim_w=535.0, draw_w=450.0, output=0.87),
    OperatingPoint(name="gpu-mine", mode=Mode.MINING, claim_w=430.0, draw_w=380.0, output=1.0),
    OperatingPoint(name="standby", mode=Mode.STANDBY, claim_w=80.0, draw_w=70.0),
)
PLAIN = (Begun, WattsHeld, WattsSettled, Drained, Released, Applied, WorkloadReady, VerifiedRunning, Vacated)


def make_event(number: int, at_s: float) -> FlipEvent:
    """Return the n-th kind of event."""
    kinds = len(PLAIN)
    if number < kinds:
        return PLAIN[number](event_id=f"e{at_s}", at_s=at_s)
    match number - kinds:
        case 0:
            return WorkloadFailed(event_id=f"e{at_s}", at_s=at_s, reason="died")
        case 1:
            return EvidenceLost(event_id=f"e{at_s}", at_s=at_s, reason="dark")
        case 2:
            return Cancelled(event_id=f"e{at_s}", at_s=at_s, author="ada", reason="no")
        case 3 | 4:
            return PodReplaced(event_id=f"e{at_s}", at_s=at_s, pod=HEIR, had_come=number - kinds == 3)
        case _:
            return PhaseTimedOut(event_id=f"e{at_s}", at_s=at_s, done_count=number - kinds - 5)


EVENTS = len(PLAIN) + 7


@st.composite
def flips(draw: st.DrawFn) -> Flip:
    """Return any sensible flip of a GPU unit or of ASICs."""
    kind = draw(st.sampled_from(DeviceKind))
    points = POINTS if kind is DeviceKind.GPU else POINTS[2:]
    origin, aim = draw(st.permutations(points))[:2]
    return new_flip(
        id="f", bank="b", kind=kind, count=1 if kind is DeviceKind.GPU else 3, origin=origin, aim=aim, reason="r",
        unit_ids=("u",) if kind is DeviceKind.GPU else (), author="a", now_s=0.0, axis=BOOT, times=FlipTimes(),
        is_safety=aim.claim_w < origin.claim_w and draw(st.booleans()),
        pod=POD if kind is DeviceKind.GPU and draw(st.booleans()) else None,
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(flip=flips(), numbers=st.lists(st.integers(0, EVENTS - 1), max_size=40))
def test_step_is_total_apart_from_invalid_transition(flip: Flip, numbers: list[int]) -> None:
    """Any event in any phase gives a valid flip or InvalidTransition; an ended flip takes nothing."""
    for at, number in enumerate(numbers):
        event = make_event(number, float(at))
        try:
            after, instructions = step(flip, event)
        except InvalidTransition:
            continue
        assert not flip.is_over
        after.validate()
        assert all(i.cause == event.event_id for i in instructions)
        assert after.phase is not Phase.ACTIVE or after.direction is Direction.FORWARD
        assert not isinstance(event, Vacated) or (flip.may_stand_empty and after.phase is Phase.ROLLED_BACK)
        assert not isinstance(event, PodReplaced) or (after.pod == HEIR and not after.evidence and not after.is_over)
        flip = after


class World:
    """One unit with its truth: who works on it. Follows desired state, or fails as told; reports only what is so."""

    def __init__(self, flip: Flip, chance: random.Random, reliability: float) -> None:
        self.tenant = flip.origin
        self.chance = chance
        self.reliability = reliability
        self.has_watts = flip.claim_delta_w <= 0
        self.most_tenants = 1

    def obey(self, flip: Flip) -> None:
        """Do what is desired, perhaps."""
        if self.chance.random() > self.reliability:
            return
        point, tenancy = desired_of(flip)
        if tenancy is Tenancy.RUN and point.name != self.tenant.name:
            if self.tenant.mode in WORKING_MODES and point.mode in WORKING_MODES and self.tenant.mode is not point.mode:
                self.most_tenants = 2  # two workloads would hold one unit
            self.tenant = point
        elif tenancy is Tenancy.STOP:
            self.tenant = POINTS[3]

    def evidence(self, flip: Flip, at_s: float) -> list[FlipEvent]:
        """Return what samples show now."""
        name = f"w{at_s}"
        shown: list[FlipEvent] = []
        if flip.watts is WattState.ASKED and self.chance.random() < self.reliability:
            self.has_watts = True
            shown.append(WattsHeld(event_id=name, at_s=at_s))
        if flip.watts is WattState.GIVEN_BACK and self.chance.random() < self.reliability:
            shown.append(WattsSettled(event_id=name, at_s=at_s))
        point, _ = desired_of(flip)
        if self.tenant.mode is Mode.STANDBY:
            shown.append(Released(event_id=name, at_s=at_s))
        if flip.phase is Phase.DRAINING and self.chance.random() < self.reliability:
            shown.append(Drained(event_id=name, at_s=at_s))
        if self.tenant.name == point.name:
            shown += [Applied(event_id=name, at_s=at_s), WorkloadReady(event_id=name, at_s=at_s)]
            shown.append(VerifiedRunning(event_id=name, at_s=at_s))
        return shown


@settings(max_examples=100, deadline=None)
@given(
    flip=flips(), seed=st.integers(0, 10_000), reliability=st.sampled_from((0.0, 0.3, 0.8, 1.0)), crashes=st.booleans()
)
def test_every_flip_ends_with_one_tenant_at_most(flip: Flip, seed: int, reliability: float, crashes: bool) -> None:
    """With deadlines that are kept, crashes and failing machines included: an end, and never two tenants on a unit."""
    chance = random.Random(seed)
    world = World(flip, chance, reliability)
    flip, _ = step(flip, Begun(event_id="begin", at_s=0.0))
    restarts = 0
    for second in range(1, 40_000, 10):
        if flip.is_over:
            break
        at_s = float(second)
        if crashes and restarts < 5 and chance.random() < 0.1:
            restarts += 1
            seen = None if chance.random() < 0.2 else world.tenant.mode
            flip, _ = recover(
                flip,
                Observation(tenant_mode=seen, point=world.tenant.name, has_watts=world.has_watts),
                event_id=f"boot{second}",
                now_s=at_s,
            )
        world.obey(flip)
        events = world.evidence(flip, at_s)
        if at_s >= flip.deadline_s:
            events = [PhaseTimedOut(event_id=f"t{second}", at_s=at_s)]
        for event in events:
            phase = flip.phase
            try:
                flip, _ = step(flip, event)
            except InvalidTransition:
                continue  # the sample says what the phase does not ask
            if flip.phase is not phase:
                break  # the rest of this sample was taken before the phase began
    assert flip.is_over, flip.story()
    assert world.most_tenants == 1, flip.story()
    if reliability == 1.0 and not crashes:
        assert flip.phase is Phase.ACTIVE, flip.story()
    if flip.phase is Phase.ACTIVE:
        assert world.tenant.mode is flip.aim.mode or flip.aim.mode is Mode.STANDBY


@settings(max_examples=100, deadline=None)
@given(
    flip=flips(),
    numbers=st.lists(st.integers(0, EVENTS - 1), max_size=10),
    now_s=st.floats(0.0, 1e6),
    now_unix_s=st.floats(0.0, 4e9),
)
def test_rebasing_keeps_every_span_and_nothing_begins_in_the_future(
    flip: Flip, numbers: list[int], now_s: float, now_unix_s: float
) -> None:
    """Whatever the wall clock says after a reboot: no phase gets longer or shorter, and a second rebase changes nothing."""
    for at, number in enumerate(numbers):
        with suppress(InvalidTransition):
            flip, _ = step(flip, make_event(number, float(at)))
    after = axis_at("b2", now_s=now_s, now_unix_s=now_unix_s)
    again = rebased(flip, after, now_s=now_s)
    assert again.since_s <= now_s + 1e-3
    assert abs((again.deadline_s - again.since_s) - (flip.deadline_s - flip.since_s)) < 1e-3
    assert (again.phase, again.watts, again.evidence) == (flip.phase, flip.watts, flip.evidence)
    assert rebased(again, axis_at("b2", now_s=now_s + 5.0, now_unix_s=0.0), now_s=now_s + 5.0) == again
