"""The flip state machine: the road there, the road back, and what a restart makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swingbus.faults import InvalidInput
from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.flips.boot_axis import BootAxis, axis_at
from swingbus_controller.domain.flips.flip import (
    Direction,
    Flip,
    Phase,
    WattState,
    desired_of,
    is_due,
    new_flip,
    rebased,
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
from swingbus_controller.domain.flips.flip_steps import InvalidTransition, Observation, accepts, recover, step
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.policy import FlipTimes
from swingbus_controller.domain.power.records import build, plain

BOOT = BootAxis(boot_id="b1", zero_unix_s=1_700_000_000.0)
INFERENCE = OperatingPoint(name="inference", mode=Mode.INFERENCE, claim_w=750.0, draw_w=650.0, output=1.0)
LOW = OperatingPoint(name="inference-low", mode=Mode.INFERENCE, claim_w=535.0, draw_w=450.0, output=0.87)
GPU_MINE = OperatingPoint(name="gpu-mine", mode=Mode.MINING, claim_w=430.0, draw_w=380.0, output=1.0)
GPU_REST = OperatingPoint(name="standby", mode=Mode.STANDBY, claim_w=80.0, draw_w=70.0)
MINE = OperatingPoint(name="mine", mode=Mode.MINING, claim_w=3355.0, draw_w=3050.0, output=100.0)
REST = OperatingPoint(name="standby", mode=Mode.STANDBY, claim_w=20.0, draw_w=15.0)


def make_flip(
    origin: OperatingPoint,
    aim: OperatingPoint,
    *,
    kind: DeviceKind = DeviceKind.GPU,
    count: int = 1,
    is_safety: bool = False,
) -> Flip:
    """Return a flip, still PLANNED."""
    return new_flip(
        id="flips/1", bank="g0", kind=kind, count=count, unit_ids=("g0/u0",) if kind is DeviceKind.GPU else (),
        origin=origin, aim=aim, reason="test", author="planner", now_s=0.0, axis=BOOT, times=FlipTimes(),
        is_safety=is_safety,
    )  # fmt: skip


def run(flip: Flip, *events: type[FlipEvent]) -> tuple[Flip, list[Instruction]]:
    """Send plain events one second apart, going on from the flip's last; collect all instructions."""
    instructions: list[Instruction] = []
    for number, kind in enumerate(events, start=int(flip.since_s) + 1):
        event: FlipEvent
        if kind is Cancelled:
            event = Cancelled(event_id=f"e{number}", at_s=float(number), author="ada", reason="changed her mind")
        elif kind is EvidenceLost:
            event = EvidenceLost(event_id=f"e{number}", at_s=float(number), reason="agent dark")
        elif kind is WorkloadFailed:
            event = WorkloadFailed(event_id=f"e{number}", at_s=float(number), reason="exit 1")
        else:
            event = kind(event_id=f"e{number}", at_s=float(number))  # type: ignore[call-arg]
        flip, more = step(flip, event)
        flip.validate()
        instructions += more
    return flip, instructions


def test_gpu_to_inference_asks_for_watts_before_it_stops_the_miner() -> None:
    """A busy unit waits at work, not idle, for the watts it needs."""
    flip, told = run(make_flip(GPU_MINE, INFERENCE), Begun)
    assert flip.phase is Phase.PLANNED
    assert told == [RequestWatts(flip="flips/1", bank="g0", watts_w=320.0, cause="e1")]
    assert desired_of(flip) == (GPU_MINE, Tenancy.RUN)


def test_gpu_to_inference_with_all_evidence_is_active() -> None:
    """Watts, drain, release, start, probe, proof: then and only then ACTIVE."""
    flip, told = run(
        make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld, Drained, Released, Applied, WorkloadReady, VerifiedRunning
    )
    assert flip.phase is Phase.ACTIVE and flip.is_mode_flip
    tenancies = [(i.point.name, i.tenancy) for i in told if isinstance(i, SetDesired)]
    assert tenancies == [("gpu-mine", Tenancy.DRAIN), ("gpu-mine", Tenancy.STOP), ("inference", Tenancy.RUN)]
    assert [e.phase for e in flip.history] == [
        Phase.PLANNED, Phase.DRAINING, Phase.RELEASED, Phase.STARTING, Phase.STARTING, Phase.VERIFYING, Phase.ACTIVE,
    ]  # fmt: skip


def test_inference_without_its_probe_is_not_verified() -> None:
    """Watts and limits are set, but only the workload's own probe says ready."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld, Drained, Released, Applied, Applied)
    assert flip.phase is Phase.STARTING
    assert not accepts(flip, VerifiedRunning(event_id="e", at_s=9.0))


def test_workload_never_ready_stops_it_and_restarts_the_miner() -> None:
    """The start times out: the half-started tenant goes first, the old one returns, the watts go back."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld, Drained, Released, Applied)
    flip, told = run(flip, PhaseTimedOut, Released, Applied, VerifiedRunning)
    assert flip.phase is Phase.ROLLED_BACK and "starting" in (flip.undo_cause or "")
    tenancies = [(i.point.name, i.tenancy, i.is_undo) for i in told if isinstance(i, SetDesired)]
    assert tenancies[:2] == [("inference", Tenancy.STOP, True), ("gpu-mine", Tenancy.RUN, True)]
    assert [i.watts_w for i in told if isinstance(i, ReleaseWatts)] == [320.0]


def test_workload_that_dies_is_undone_without_waiting() -> None:
    """A crash of the new tenant needs no deadline."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld, Drained, Released, WorkloadFailed)
    assert flip.direction is Direction.UNDO and flip.phase is Phase.RELEASED


def test_undo_that_fails_too_leaves_the_unit_resting_and_charged() -> None:
    """Nothing works: nobody may hold the unit, and all of its watts stay counted."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld, Drained, Released, Applied)
    flip, told = run(flip, PhaseTimedOut, PhaseTimedOut)
    assert flip.phase is Phase.FAILED
    assert desired_of(flip)[1] is Tenancy.STOP
    assert [i.watts_w for i in told if isinstance(i, KeepCharged)] == [750.0]
    assert not [i for i in told if isinstance(i, ReleaseWatts)]


def test_growth_without_watts_rolls_back_untouched() -> None:
    """The watts never came: nobody was disturbed."""
    flip, told = run(make_flip(GPU_MINE, INFERENCE), Begun, PhaseTimedOut)
    assert flip.phase is Phase.ROLLED_BACK
    assert {type(i) for i in told} == {RequestWatts, SetDesired, ReleaseWatts}


def test_asic_to_standby_gives_watts_back_only_after_release_and_ends_on_settling() -> None:
    """Asleep by read-back, then settled by evidence; a return value is neither."""
    flip, told = run(make_flip(MINE, REST, kind=DeviceKind.ASIC, count=40), Begun, Drained)
    assert not [i for i in told if isinstance(i, ReleaseWatts)]
    flip, told = run(flip, Released)
    assert flip.phase is Phase.SETTLING and [i.watts_w for i in told if isinstance(i, ReleaseWatts)] == [40 * 3335.0]
    assert desired_of(flip) == (REST, Tenancy.RUN)
    flip, told = run(flip, WattsSettled)
    assert flip.phase is Phase.ACTIVE and told == []


def test_asic_wake_waits_in_settling_for_its_watts() -> None:
    """Machines at rest wait asleep."""
    flip, _ = run(make_flip(REST, MINE, kind=DeviceKind.ASIC, count=3), Begun)
    assert flip.phase is Phase.SETTLING and desired_of(flip) == (REST, Tenancy.RUN)
    flip, _ = run(flip, WattsHeld, Applied, VerifiedRunning)
    assert flip.phase is Phase.ACTIVE


def test_one_asic_that_ignores_sleep_does_not_undo_the_others() -> None:
    """39 sleep, one lies: the flip goes on with 39 and tells of the one."""
    flip, _ = run(make_flip(MINE, REST, kind=DeviceKind.ASIC, count=40), Begun)
    flip, told = step(flip, PhaseTimedOut(event_id="late", at_s=130.0, done_count=39))
    assert (flip.phase, flip.count, flip.missed_count) == (Phase.SETTLING, 39, 1)
    assert [i.watts_w for i in told if isinstance(i, ReleaseWatts)] == [39 * 3335.0]
    assert [i.count for i in told if isinstance(i, SetDesired)] == [39]


def test_wake_that_half_works_gives_the_rest_of_its_watts_back() -> None:
    """Two of three woke: the third's watts are released."""
    flip, _ = run(make_flip(REST, MINE, kind=DeviceKind.ASIC, count=3), Begun, WattsHeld, Applied)
    flip, told = step(flip, PhaseTimedOut(event_id="late", at_s=999.0, done_count=2))
    assert (flip.phase, flip.count) == (Phase.ACTIVE, 2)
    assert [i.watts_w for i in told if isinstance(i, ReleaseWatts)] == [3335.0]


def test_shed_that_cannot_drain_presses_on_and_fails_charged() -> None:
    """There are no watts for a way back, so a shed never restarts what it stopped."""
    flip, _ = run(make_flip(INFERENCE, GPU_REST, is_safety=True), Begun, PhaseTimedOut)
    assert flip.phase is Phase.RELEASED
    flip, told = run(flip, PhaseTimedOut)
    assert flip.phase is Phase.FAILED and desired_of(flip) == (GPU_REST, Tenancy.RUN)
    assert [i.watts_w for i in told if isinstance(i, KeepCharged)] == [750.0]


def test_shed_cannot_be_cancelled() -> None:
    """Safety is nobody's to cancel."""
    flip, _ = run(make_flip(INFERENCE, GPU_REST, is_safety=True), Begun)
    with pytest.raises(InvalidTransition, match="not cancelled"):
        run(flip, Cancelled)


def test_cap_flip_never_drains() -> None:
    """A cap keeps the tenant and is not a mode flip."""
    flip, told = run(make_flip(INFERENCE, LOW), Begun, Applied, VerifiedRunning)
    assert flip.phase is Phase.ACTIVE and not flip.is_mode_flip
    assert [i.tenancy for i in told if isinstance(i, SetDesired)] == [Tenancy.RUN]
    assert [i.watts_w for i in told if isinstance(i, ReleaseWatts)] == [215.0]


def test_work_to_less_work_keeps_its_watts_until_it_is_done() -> None:
    """The road back is paid for until nobody needs it."""
    flip, told = run(make_flip(INFERENCE, GPU_MINE), Begun, Drained, Released, Applied)
    assert not [i for i in told if isinstance(i, ReleaseWatts)] and flip.claim_w == 750.0
    flip, told = run(flip, VerifiedRunning)
    assert [i.watts_w for i in told if isinstance(i, ReleaseWatts)] == [320.0]


def test_cancel_in_mid_drain_returns_to_the_old_tenant() -> None:
    """Cancelling undoes; it does not abandon."""
    flip, told = run(make_flip(INFERENCE, GPU_MINE), Begun, Cancelled)
    assert (flip.direction, flip.phase) == (Direction.UNDO, Phase.STARTING)
    assert desired_of(flip) == (INFERENCE, Tenancy.RUN) and told[-1].cause == "e2"


def test_lost_evidence_has_to_be_shown_again() -> None:
    """What was shown before a disturbance counts no more."""
    flip, _ = run(
        make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld, Drained, Released, Applied, EvidenceLost, WorkloadReady
    )
    assert flip.phase is Phase.STARTING
    flip, _ = run(flip, Applied)
    assert flip.phase is Phase.VERIFYING


def test_event_after_the_end_is_refused_with_the_story() -> None:
    """The message tells what happened so far."""
    flip, _ = run(make_flip(INFERENCE, LOW), Begun, Applied, VerifiedRunning)
    with pytest.raises(
        InvalidTransition, match=r"story so far: flip flips/1 of g0, inference to inference-low: Begun->starting"
    ):
        run(flip, VerifiedRunning)


def test_flips_that_make_no_sense_are_refused() -> None:
    """An ASIC serves nobody; a flip to itself is none; no devices make no flip."""
    for kwargs in (
        {"origin": MINE, "aim": INFERENCE, "kind": DeviceKind.ASIC},
        {"origin": MINE, "aim": MINE, "kind": DeviceKind.ASIC},
        {"origin": MINE, "aim": REST, "kind": DeviceKind.ASIC, "count": 0},
    ):
        with pytest.raises(InvalidInput, match="flips/1"):
            make_flip(**kwargs)  # type: ignore[arg-type]


def test_evidence_older_than_the_phase_is_refused() -> None:
    """A reading from before the change cannot show the change."""
    flip, _ = run(make_flip(INFERENCE, LOW), Begun, Applied)
    with pytest.raises(InvalidTransition, match="before the phase began"):
        step(flip, VerifiedRunning(event_id="old", at_s=flip.since_s - 0.5))


def test_deadline_is_due_only_after_its_time() -> None:
    """Each phase has its own deadline; the end has none."""
    flip, _ = run(make_flip(INFERENCE, GPU_MINE), Begun)
    assert not is_due(flip, 120.9) and is_due(flip, 121.0)


@pytest.mark.parametrize(
    ("seen", "has_watts", "phase", "desired"),
    [
        (Mode.MINING, True, Phase.DRAINING, (GPU_MINE, Tenancy.DRAIN)),
        (Mode.MINING, False, Phase.PLANNED, (GPU_MINE, Tenancy.RUN)),
        (Mode.STANDBY, True, Phase.STARTING, (INFERENCE, Tenancy.RUN)),
        (Mode.STANDBY, False, Phase.SETTLING, (GPU_MINE, Tenancy.STOP)),
        (Mode.INFERENCE, True, Phase.STARTING, (INFERENCE, Tenancy.RUN)),
        (Mode.INFERENCE, False, Phase.RELEASED, (INFERENCE, Tenancy.STOP)),
    ],
)
def test_recovery_goes_by_what_is_seen(
    seen: Mode, has_watts: bool, phase: Phase, desired: tuple[OperatingPoint, Tenancy]
) -> None:
    """The stored phase (VERIFYING) is not believed; the machine and the ledger are."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld, Drained, Released, Applied, WorkloadReady)
    assert flip.phase is Phase.VERIFYING
    again, told = recover(flip, Observation(tenant_mode=seen, has_watts=has_watts), event_id="boot", now_s=50.0)
    assert (again.phase, desired_of(again)) == (phase, desired)
    assert told and all(i.cause == "boot" for i in told)


def test_recovery_of_an_ended_flip_does_nothing() -> None:
    """What is over stays over."""
    flip, _ = run(make_flip(INFERENCE, LOW), Begun, Applied, VerifiedRunning)
    assert recover(flip, Observation(tenant_mode=Mode.MINING), event_id="boot", now_s=9.0) == (flip, ())


def test_recovery_without_sight_waits_and_repeats_its_wishes() -> None:
    """Nothing to see is not evidence of anything."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun)
    again, told = recover(flip, Observation(tenant_mode=None), event_id="boot", now_s=50.0)
    assert again.phase is Phase.PLANNED and again.deadline_s == 650.0
    assert [type(i) for i in told] == [SetDesired, RequestWatts]


def test_restart_in_the_same_boot_leaves_the_times_alone() -> None:
    """The wall clock may have jumped: the boot's clock has not."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld)
    assert rebased(flip, axis_at("b1", now_s=50.0, now_unix_s=5.0), now_s=50.0) == flip


def test_reboot_puts_the_times_on_the_new_axis() -> None:
    """The phase began and ends at the same moments of the wall clock as before."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld)
    after = axis_at("b2", now_s=30.0, now_unix_s=BOOT.unix_s(90.0))
    again = rebased(flip, after, now_s=30.0)
    assert after.unix_s(again.deadline_s) == BOOT.unix_s(flip.deadline_s)
    assert (again.since_s, again.created_at_s) == (flip.since_s - 60.0, -60.0)
    assert [e.at_s for e in again.history] == [e.at_s - 60.0 for e in flip.history]
    assert rebased(again, axis_at("b2", now_s=40.0, now_unix_s=0.0), now_s=40.0) == again


def test_reboot_with_the_wall_clock_set_back_leaves_no_phase_in_the_future() -> None:
    """Evidence of now must count: the phase begins now at the latest and has its whole time."""
    flip, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld)
    again = rebased(flip, axis_at("b2", now_s=30.0, now_unix_s=0.0), now_s=30.0)
    assert (again.since_s, again.deadline_s) == (30.0, 30.0 + flip.deadline_s - flip.since_s)
    assert step(again, Drained(event_id="d", at_s=31.0))[0].phase is Phase.RELEASED


def test_record_without_an_axis_has_unix_seconds() -> None:
    """What an older program recorded is read, and rebased at the first start."""
    record = plain(make_flip(GPU_MINE, INFERENCE))
    del record["axis"]
    record |= {"created_at_s": BOOT.unix_s(5.0), "since_s": BOOT.unix_s(5.0), "deadline_s": BOOT.unix_s(605.0)}
    again = rebased(build(Flip, record), BOOT, now_s=20.0)
    assert (again.created_at_s, again.since_s, again.deadline_s) == (5.0, 5.0, 605.0)


def test_pod_that_is_replaced_after_it_came_has_its_unit_released_first() -> None:
    """Whoever is next is started only on a unit that is free by evidence, and shows everything anew."""
    first, second = (PodRef(namespace="customers", name=name, uid=name) for name in ("one", "two"))
    flip, _ = run(replace(make_flip(GPU_MINE, INFERENCE), pod=first), Begun, WattsHeld, Drained, Released, Applied)
    event = PodReplaced(event_id="e9", at_s=9.0, pod=second, had_come=True)
    moved, told = step(flip, event)
    assert (moved.phase, moved.pod, moved.evidence, moved.watts) == (
        Phase.RELEASED,
        second,
        frozenset(),
        WattState.HELD,
    )
    assert [(i.point.name, i.tenancy) for i in told if isinstance(i, SetDesired)] == [("gpu-mine", Tenancy.STOP)]
    waiting, told = step(flip, replace(event, had_come=False))
    assert (waiting.phase, waiting.pod, waiting.evidence, told) == (Phase.STARTING, second, frozenset(), ())
    with pytest.raises(InvalidTransition):
        step(make_flip(GPU_MINE, INFERENCE), event)


def test_place_of_inference_whose_pod_is_gone_ends_an_undo() -> None:
    """Nobody comes with a flip that goes back: where its pod left by itself nobody is waited for. On the way there somebody comes."""
    leaving, _ = run(make_flip(INFERENCE, GPU_MINE), Begun, Drained)
    back, _ = step(leaving, Cancelled(event_id="e8", at_s=8.0, author="ada", reason="a budget says no"))
    event = Vacated(event_id="e9", at_s=9.0)
    over, told = step(back, event)
    assert (back.phase, over.phase, over.undo_cause) == (
        Phase.STARTING,
        Phase.ROLLED_BACK,
        "cancelled by ada: a budget says no",
    )
    assert [(i.point.name, i.tenancy) for i in told if isinstance(i, SetDesired)] == [("inference", Tenancy.RUN)]
    with pytest.raises(InvalidTransition):
        step(back, replace(event, at_s=7.0))
    coming, _ = run(make_flip(GPU_MINE, INFERENCE), Begun, WattsHeld, Drained, Released, Applied)
    with pytest.raises(InvalidTransition):
        step(coming, event)
