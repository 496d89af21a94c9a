"""Admission: the fleet as it is now has the last word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swingbus_controller.domain.flips.admission import RefusalCode, admit, flip_of
from swingbus_controller.domain.flips.boot_axis import WALL
from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.planning.plan import Authority, Availability, BankView, Holding, PlanView
from swingbus_controller.domain.planning.planner import plan
from swingbus_controller.domain.planning.policy import FlipTimes, Policy

from .sites import H100, NOW_S, POLICY, S21, make_asics, make_gpus, make_market, make_view


def swing() -> PlanView:
    """Return a full site where four GPUs are wanted and miners have to give the watts."""
    return make_view(
        (make_asics("c", "c", points=S21, mining=10), make_gpus("g", "r", at={"gpu-mine": 4})),
        grid_w=10 * 3850 + 4 * 430 + 600,
    )


def test_growth_that_does_not_fit_waits_and_names_what_for() -> None:
    """Miners go first; the GPUs name them and the feeder."""
    view = swing()
    admission = admit(plan(view, make_market(demand=4.0), POLICY, NOW_S), view, NOW_S)
    first, *rest = admission.admitted
    assert (first.move.bank, first.claim_delta_w < 0, first.starts_now) == ("c", True, True)
    assert len(rest) == 4 and not any(f.starts_now for f in rest)
    assert {(f.waits_at, f.waits_for) for f in rest} == {("grid", ("c mine to standby",))}
    assert len({f.unit_ids for f in rest}) == 4


def test_authority_below_control_admits_nothing() -> None:
    """Plans are shown; nothing is done."""
    view = replace(swing(), authority=Authority.ADVISE)
    admission = admit(plan(view, make_market(demand=4.0), POLICY, NOW_S), view, NOW_S)
    assert not admission.admitted and {r.code for r in admission.refused} == {RefusalCode.AUTHORITY}


def test_growth_with_nothing_that_shrinks_is_refused() -> None:
    """The miners went dark after the plan: their watts will not come."""
    view = swing()
    made = plan(view, make_market(demand=4.0), POLICY, NOW_S)
    dark = replace(view.banks[0], availability=Availability.DARK, note="no word for 9 s")
    admission = admit(made, replace(view, banks=(dark, view.banks[1])), NOW_S)
    codes = {(r.move.bank, r.code) for r in admission.refused}
    assert codes == {("c", RefusalCode.UNAVAILABLE), ("g", RefusalCode.NO_WATTS)}
    assert "no word for 9 s" in next(r.detail for r in admission.refused if r.move.bank == "c")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pinned_reason": "hands off"}, RefusalCode.PINNED),
        ({"holdings": (Holding(point="mine", count=10, since_s=NOW_S - 1),)}, RefusalCode.DWELL),
        ({"holdings": (Holding(point="standby", count=10, since_s=0.0),)}, RefusalCode.DEVICES_MOVED),
    ],
)
def test_bank_that_changed_since_the_plan_is_refused(change: dict[str, object], code: RefusalCode) -> None:
    """A pin, a dwell or other devices: the plan is older than the fleet."""
    view = make_view((make_asics("c", "c", points=S21, mining=10),), grid_w=1e6)
    made = plan(view, make_market(power=500.0), POLICY, NOW_S)
    changed = replace(view.banks[0], **change)  # type: ignore[arg-type]
    admission = admit(made, replace(view, banks=(changed,)), NOW_S)
    assert [r.code for r in admission.refused] == [code]
    gone = admit(made, replace(view, banks=()), NOW_S)
    assert [r.code for r in gone.refused] == [RefusalCode.BANK_GONE]


def test_flips_in_flight_are_limited_but_not_for_safety() -> None:
    """Two at a time for money; a shed takes all it needs."""
    policy = Policy(max_flips_in_flight=2, max_devices_per_flip=3)
    view = make_view((make_asics("c", "c", points=S21, mining=12),), grid_w=1e6)
    admission = admit(plan(view, make_market(power=500.0), policy, NOW_S), view, NOW_S)
    assert [f.count for f in admission.admitted] == [3, 3]
    assert {r.code for r in admission.refused} == {RefusalCode.TOO_MANY_FLIPS}
    low = make_view((make_asics("c", "c", points=S21, mining=12, since_s=NOW_S),), grid_w=1_000.0)
    shed = admit(plan(low, make_market(), policy, NOW_S), low, NOW_S)
    assert sum(f.count for f in shed.admitted) == 12 and all(f.is_safety for f in shed.admitted)


def test_admitted_part_becomes_a_planned_flip() -> None:
    """With the move's reason in its words."""
    view = swing()
    admission = admit(plan(view, make_market(demand=4.0), POLICY, NOW_S), view, NOW_S)
    part = admission.admitted[1]
    flip = flip_of(part, view.banks[1], id="flips/9", author="planner", now_s=NOW_S, axis=WALL, times=FlipTimes())
    assert (flip.phase, flip.count, flip.claim_delta_w) == (Phase.PLANNED, 1, 320.0)
    assert flip.reason.startswith("demand: h100 inference pays 2.35")


def test_limit_that_fell_since_the_plan_admits_only_what_fits_together() -> None:
    """Each of eight units would fit alone; the watts are there for two of them, and nothing shrinks."""
    view = make_view((make_gpus("g", "r", at={"standby": 8}),), grid_w=1e6)
    made = plan(view, make_market(demand=8.0), POLICY, NOW_S)
    now_w = 600.0 + 8 * 80.0
    fell = make_view(view.banks, grid_w=now_w + 2 * 670.0 + 100.0)
    admission = admit(made, fell, NOW_S)
    assert [f.starts_now for f in admission.admitted] == [True, True]
    assert [r.code for r in admission.refused] == [RefusalCode.NO_WATTS] * 6


def test_waiting_flips_together_ask_for_no_more_than_what_shrinks() -> None:
    """One miner's 3.8 kW less the 3 kW that the limit fell since: room for two units, not four."""
    view = swing()
    made = plan(view, make_market(demand=4.0), POLICY, NOW_S)
    freed_w = -sum(m.claim_delta_w for m in made.moves if m.claim_delta_w < 0)
    fell = make_view(view.banks, grid_w=10 * 3850 + 4 * 430 + 600 - (freed_w - 2 * 320.0 - 100.0))
    admission = admit(made, fell, NOW_S)
    assert len([f for f in admission.admitted if f.claim_delta_w > 0]) == 2
    assert [r.code for r in admission.refused] == [RefusalCode.NO_WATTS] * 2


def full_but_for(spare_w: float) -> PlanView:
    """Return the full site of `swing`, with a little room beside."""
    view = swing()
    return make_view(view.banks, grid_w=10 * 3850 + 4 * 430 + 600 + spare_w)


def test_gpus_come_in_lower_where_their_full_watts_have_to_be_made_first() -> None:
    """105 W more each fit for two of four now; the miner that rests is for all of them, and for raising those two."""
    view = full_but_for(2 * 105.0 + 50.0)
    made = plan(view, make_market(demand=4.0), POLICY, NOW_S)
    assert {m.to_point for m in made.moves if m.bank == "g"} == {"inference"}
    admission = admit(made, view, NOW_S)
    first, *rest = admission.admitted
    assert (first.move.bank, first.claim_delta_w < 0) == ("c", True)
    assert [(f.to_point, f.starts_now, f.claim_delta_w) for f in rest] == [
        ("inference-low", True, 105.0),
        ("inference-low", True, 105.0),
        ("inference", False, 320.0),
        ("inference", False, 320.0),
    ]
    flip = flip_of(rest[0], view.banks[1], id="f", author="planner", now_s=NOW_S, axis=WALL, times=FlipTimes())
    assert (flip.aim.name, flip.claim_delta_w) == ("inference-low", 105.0)
    assert flip.reason.endswith("; comes in at inference-low, inference has to wait for watts")


@pytest.mark.parametrize("ago_s", [0.0, 100.0])
def test_gpus_that_came_in_lower_are_raised_when_the_watts_are_there(ago_s: float) -> None:
    """At once: no dwell keeps them low, else the watts that were made for them would be somebody else's by then."""
    asics = make_asics("c", "c", points=S21, mining=9, standby=1)
    gpus = make_gpus("g", "r", at={"inference-low": 4}, since_s=NOW_S - ago_s)
    view = make_view((asics, gpus), grid_w=9 * 3850 + 4 * 535 + 600 + asics.fixed_claim_w + 900)
    admission = admit(plan(view, make_market(demand=4.0), POLICY, NOW_S), view, NOW_S)
    raised = [f for f in admission.admitted if f.move.bank == "g"]
    assert [(f.to_point, f.starts_now) for f in raised] == [("inference", True)] * 4
    assert len({f.unit_ids for f in raised}) == 4


def since(bank: BankView, *, since_s: float, mode_since_s: float) -> BankView:
    """Return it with devices that came to their mode then, and to their point later."""
    held = [replace(h, since_s=since_s, mode_since_s=mode_since_s) for h in bank.holdings]
    return replace(bank, holdings=tuple(held))


@pytest.mark.parametrize("mode_since_s", [NOW_S - 100.0, 0.0], ids=["within its mode's dwell", "after it"])
def test_gpus_that_were_raised_keep_it_for_the_cap_s_dwell(mode_since_s: float) -> None:
    """Though nobody asks any more: a cap is not changed to and fro."""
    gpus = since(make_gpus("g", "r", at={"inference": 4}), since_s=NOW_S - 1.0, mode_since_s=mode_since_s)
    view = make_view((gpus,), grid_w=1e6)
    admission = admit(plan(view, make_market(demand=0.0), POLICY, NOW_S), view, NOW_S)
    assert not [f for f in admission.admitted if f.to_point == "inference-low"]
    later_s = NOW_S + POLICY.cap_dwell_s
    later = admit(plan(view, make_market(demand=0.0), POLICY, later_s), view, later_s)
    assert [f.to_point != "inference" for f in later.admitted] == [True] * 4


@pytest.mark.parametrize("mode_since_s", [NOW_S - 100.0, 0.0], ids=["within its mode's dwell", "after it"])
def test_gpus_that_were_lowered_stay_for_the_cap_s_dwell(mode_since_s: float) -> None:
    """A limit took their watts a second ago; the same watts come and go with what else the site draws."""
    gpus = since(make_gpus("g", "r", at={"inference-low": 4}), since_s=NOW_S - 1.0, mode_since_s=mode_since_s)
    view = make_view((gpus,), grid_w=1e6)
    admission = admit(plan(view, make_market(demand=4.0), POLICY, NOW_S), view, NOW_S)
    assert not admission.admitted
    later_s = NOW_S + POLICY.cap_dwell_s
    later = admit(plan(view, make_market(demand=4.0), POLICY, later_s), view, later_s)
    assert [f.to_point for f in later.admitted] == ["inference"] * 4


def test_gpus_with_another_program_at_the_lower_point_are_not_raised_at_once() -> None:
    """To raise them it would have to be stopped, a second after it was started."""
    other = tuple(replace(p, workload="small-llm") if p.name == "inference-low" else p for p in H100)
    gpus = replace(make_gpus("g", "r", at={"inference-low": 4}, since_s=NOW_S - 1.0), points=other)
    assert plan(make_view((gpus,), grid_w=1e6), make_market(demand=4.0), POLICY, NOW_S).moves == ()


def test_pinned_gpus_are_not_raised() -> None:
    """A pin means as it is."""
    gpus = make_gpus("g", "r", at={"inference-low": 4}, since_s=NOW_S, pinned_reason="hands off")
    assert plan(make_view((gpus,), grid_w=1e6), make_market(demand=4.0), POLICY, NOW_S).moves == ()


def test_lower_point_of_another_program_is_no_way_in() -> None:
    """To raise it the program would have to be stopped."""
    view = full_but_for(260.0)
    other = tuple(replace(p, workload="small-llm") if p.name == "inference-low" else p for p in view.banks[1].points)
    view = replace(view, banks=(view.banks[0], replace(view.banks[1], points=other)))
    admission = admit(plan(view, make_market(demand=4.0), POLICY, NOW_S), view, NOW_S)
    assert [(f.to_point, f.starts_now) for f in admission.admitted[1:]] == [("inference", False)] * 4


def test_barred_point_is_no_way_in() -> None:
    """What a pool or an operator has ruled out is not used because it is cheap."""
    view = full_but_for(260.0)
    barred = replace(view.banks[1], barred_points=frozenset({"inference-low"}))
    view = replace(view, banks=(view.banks[0], barred))
    admission = admit(plan(view, make_market(demand=4.0), POLICY, NOW_S), view, NOW_S)
    assert [(f.to_point, f.starts_now) for f in admission.admitted[1:]] == [("inference", False)] * 4


def test_miners_wait_for_the_profile_that_was_planned() -> None:
    """A lower profile would cost an ASIC a restart now, and another one when it is raised."""
    view = make_view((make_asics("c", "c", standby=2),), grid_w=1e6)
    made = plan(view, make_market(power=0.0), POLICY, NOW_S)
    assert {m.to_point for m in made.moves} == {"mine"}
    tight = make_view(view.banks, grid_w=2 * 2420.0 + 100.0)  # enough for both at the lower profile
    admission = admit(made, tight, NOW_S)
    assert not admission.admitted and {r.code for r in admission.refused} == {RefusalCode.NO_WATTS}
