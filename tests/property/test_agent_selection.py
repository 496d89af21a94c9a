"""Choosing machines: whatever the order and the machines, counts and watts hold."""

from __future__ import annotations

import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from swingbus_agent.domain.counting import device_counted_w, feeder_w
from swingbus_agent.domain.orders import BankCounting, Mode, PointOrder, Urgency
from swingbus_agent.domain.readings import BankSpec, DeviceSpec, Kind
from swingbus_agent.domain.selection import Candidate, Target, choose, fit, target_of

FULL = PointOrder(point="full", mode=Mode.MINING, power_w=2800.0, count=0)
LOW = PointOrder(point="low", mode=Mode.MINING, power_w=1600.0, count=0)
REST = PointOrder(point="rest", mode=Mode.STANDBY, power_w=0.0, count=0)
TARGETS = [target_of(point) for point in (FULL, LOW, REST)]
COUNTING = BankCounting(
    bank="b",
    gpu_limit_ratio=1.07,
    asic_target_ratio=1.1,
    asic_boot_w=0.0,
    rest_w=25.0,
    device_ceiling_w=3300.0,
    cooling_ratio=0.05,
    losses_ratio=0.02,
    fixed_w=400.0,
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[PointOrder], list[Candidate], Urgency]:
    """Return points that hold all machines, the machines, and how to choose."""
    count = draw(st.integers(1, 16))
    full = draw(st.integers(0, count))
    low = draw(st.integers(0, count - full))
    points = [
        PointOrder(point=p.point, mode=p.mode, power_w=p.power_w, count=n)
        for p, n in ((FULL, full), (LOW, low), (REST, count - full - low))
    ]
    machines = [
        Candidate(
            name=f"m{number}",
            unit=0,
            current=draw(st.sampled_from([None, *TARGETS])),
            j_per_th=draw(st.one_of(st.none(), st.floats(15, 60))),
            shed_kw_per_s=draw(st.floats(0, 3)),
            is_answering=draw(st.booleans()),
            is_fixed=draw(st.integers(0, 9)) == 0,
        )
        for number in range(count)
    ]
    return points, machines, draw(st.sampled_from(list(Urgency)))


def running_w(targets: list[Target | None]) -> float:
    """Return the sum of ordered watts; a fixed machine of which nothing is known counts as running full."""
    return sum(2800.0 if target is None else target.power_w for target in targets)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_counts_are_met_exactly_where_nobody_is_fixed(case: tuple[list[PointOrder], list[Candidate], Urgency]) -> None:
    """Each point gets its number of machines, nobody is left out, nobody is chosen twice."""
    points, machines, urgency = case
    assume(not any(machine.is_fixed for machine in machines))
    chosen = choose(points, machines, unit_size=1, urgency=urgency)
    assert set(chosen) == {machine.name for machine in machines}
    for point in points:
        assert sum(target == target_of(point) for target in chosen.values()) == point.count


@settings(max_examples=100, deadline=None)
@given(cases())
def test_choice_with_fixed_machines_never_hands_out_more_watts_than_are_left(
    case: tuple[list[PointOrder], list[Candidate], Urgency],
) -> None:
    """Where the order has room for what the fixed ones hold, all together stay within its watts."""
    points, machines, urgency = case
    chosen = choose(points, machines, unit_size=1, urgency=urgency)
    fixed = [machine for machine in machines if machine.is_fixed]
    assert not {machine.name for machine in fixed} & set(chosen)
    ordered_w = sum(point.power_w * point.count for point in points)
    others_w = sum(target.power_w for target in chosen.values())
    assert others_w <= ordered_w + 1e-9
    places = sorted((p.power_w for p in points for _ in range(p.count)), reverse=True)
    held = sorted((running_w([machine.current]) for machine in fixed), reverse=True)
    # Only a fixed machine for which the order has no place as big as its own can lead beyond the order.
    if all(watts <= place for watts, place in zip(held, places, strict=False)):
        assert others_w + sum(held) <= ordered_w + 1e-9


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 1000))
def test_choice_is_a_function_and_ignores_the_order_of_its_input(
    case: tuple[list[PointOrder], list[Candidate], Urgency], seed: int
) -> None:
    """Same machines, any sequence: the same choice."""
    points, machines, urgency = case
    shuffled = list(machines)
    random.Random(seed).shuffle(shuffled)
    assert choose(points, machines, unit_size=1, urgency=urgency) == choose(
        points, shuffled, unit_size=1, urgency=urgency
    )


@settings(max_examples=100, deadline=None)
@given(cases())
def test_choice_that_is_in_force_moves_nobody(case: tuple[list[PointOrder], list[Candidate], Urgency]) -> None:
    """Choosing again after the choice was carried out changes nothing."""
    points, machines, urgency = case
    assume(not any(machine.is_fixed for machine in machines))
    chosen = choose(points, machines, unit_size=1, urgency=urgency)
    settled = [
        Candidate(name=m.name, unit=0, current=chosen[m.name], j_per_th=m.j_per_th, shed_kw_per_s=m.shed_kw_per_s)
        for m in machines
    ]
    assert choose(points, settled, unit_size=1, urgency=urgency) == chosen


@settings(max_examples=100, deadline=None)
@given(cases(), st.floats(0, 60_000))
def test_fitted_targets_are_within_what_is_allowed_or_all_at_rest(
    case: tuple[list[PointOrder], list[Candidate], Urgency], allowed_w: float
) -> None:
    """Nothing rises; the sum fits unless even everything at rest does not."""
    points, machines, urgency = case
    machines = [
        Candidate(name=m.name, unit=0, current=m.current, j_per_th=m.j_per_th, is_answering=m.is_answering)
        for m in machines
    ]
    chosen = choose(points, machines, unit_size=1, urgency=urgency)
    spec = BankSpec(
        bank="b",
        kind=Kind.ASIC,
        device_class="c",
        unit_size=1,
        devices=tuple(DeviceSpec(device=machine.name) for machine in machines),
        value_fields=(),
        counter_fields=(),
        points=(),
    )
    fitted = fit(chosen, machines, spec=spec, counting=COUNTING, allowed_w=allowed_w, floor_w=0.0)
    counted = [device_counted_w(COUNTING, Kind.ASIC, t.mode, t.power_w) for t in fitted.values()]
    assert all(fitted[name].power_w <= chosen[name].power_w for name in chosen)
    is_all_rest = all(target.mode is Mode.STANDBY for target in fitted.values())
    assert feeder_w(COUNTING, counted) <= allowed_w + 1e-3 or is_all_rest


def test_planned_rest_takes_the_worst_and_return_takes_the_best() -> None:
    """Worst J/TH off first, best back first."""
    machines = [Candidate(name=f"m{n}", unit=0, current=TARGETS[0], j_per_th=float(n)) for n in (30, 20, 40, 25)]
    points = [
        PointOrder(point="full", mode=Mode.MINING, power_w=2800.0, count=2),
        PointOrder(point="rest", mode=Mode.STANDBY, power_w=0.0, count=2),
    ]
    chosen = choose(points, machines, unit_size=1, urgency=Urgency.PLANNED)
    assert {name for name, target in chosen.items() if target.mode is Mode.STANDBY} == {"m30", "m40"}
    asleep = [Candidate(name=m.name, unit=0, current=chosen[m.name], j_per_th=m.j_per_th) for m in machines]
    more = [
        PointOrder(point="full", mode=Mode.MINING, power_w=2800.0, count=3),
        PointOrder(point="rest", mode=Mode.STANDBY, power_w=0.0, count=1),
    ]
    again = choose(more, asleep, unit_size=1, urgency=Urgency.PLANNED)
    assert {name for name, target in again.items() if target.mode is Mode.STANDBY} == {"m40"}


def test_emergency_rests_who_sheds_fastest() -> None:
    """Proven kW per second first, whatever they cost."""
    machines = [
        Candidate(name=f"m{n}", unit=0, current=TARGETS[0], j_per_th=20.0, shed_kw_per_s=float(n)) for n in (1, 3, 2)
    ]
    points = [
        PointOrder(point="full", mode=Mode.MINING, power_w=2800.0, count=1),
        PointOrder(point="rest", mode=Mode.STANDBY, power_w=0.0, count=2),
    ]
    chosen = choose(points, machines, unit_size=1, urgency=Urgency.EMERGENCY)
    assert chosen["m1"].mode is Mode.MINING


def test_named_units_get_their_point() -> None:
    """Where the controller names units, those move."""
    machines = [Candidate(name=f"unit-{n}", unit=n, current=None) for n in range(4)]
    points = [
        PointOrder(point="serve", mode=Mode.INFERENCE, power_w=600.0, count=8, workload="llama", units=(3,)),
        PointOrder(point="mine", mode=Mode.MINING, power_w=300.0, count=8, workload="miner"),
    ]
    chosen = choose(points, machines, unit_size=4, urgency=Urgency.PLANNED)
    assert chosen["unit-3"].workload == "llama"
    assert sum(target.workload == "llama" for target in chosen.values()) == 2
