"""Roles of units for any bank: swaps lose and double none, nobody who is right is made wrong, and repeated they come to rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.cluster.pod_moves import UnitWish
from swingbus_controller.domain.flips.placement import Holdings, Placement
from swingbus_controller.domain.flips.unit_roles import find_limit_swaps, find_swaps, swap_roles
from swingbus_controller.domain.planning.points import Mode, OperatingPoint

TENANTS = (Mode.MINING, Mode.INFERENCE, Mode.STANDBY)


def ref(name: str) -> PodRef:
    """Return a life of a pod."""
    return PodRef(namespace="customers", name=name, uid=f"uid-{name}")


Bank = tuple[list[UnitWish], dict[int, Mode], dict[int, PodRef], set[int]]


@st.composite
def banks(draw: st.DrawFn) -> Bank:
    """Return wishes, who stays where, and which units anybody holds, leavers among them."""
    count = draw(st.integers(1, 8))
    names = [ref(f"p{n}") for n in range(3)]
    wishes, seen, pods, held = [], {}, {}, set()
    for unit in range(count):
        tenant = draw(st.sampled_from(TENANTS))
        pod = draw(st.sampled_from([None, *names])) if tenant is Mode.INFERENCE else None
        flip = "f" if pod is not None else draw(st.sampled_from(["", "g"]))
        wishes.append(UnitWish(unit=unit, tenant=tenant, flip=flip, pod=pod))
        match draw(st.sampled_from(["empty", "leaver", "miner", "customer"])):
            case "leaver":
                held.add(unit)
            case "miner":
                held.add(unit)
                seen[unit] = Mode.MINING
            case "customer":
                held.add(unit)
                seen[unit], pods[unit] = Mode.INFERENCE, draw(st.sampled_from(names))
            case _:
                pass
    return wishes, seen, pods, held


def swapped(wishes: list[UnitWish], swaps: list[tuple[int, int]]) -> list[UnitWish]:
    """Return the wishes with the roles of units exchanged."""
    found = list(wishes)
    for one, two in swaps:
        found[one], found[two] = replace(found[two], unit=one), replace(found[one], unit=two)
    return found


def rights(
    wishes: list[UnitWish], seen: dict[int, Mode], pods: dict[int, PodRef], held: set[int]
) -> tuple[int, int, int]:
    """Return how many are in a place of their kind, how many in one kept for them by name, and how many such places nobody else has."""
    kind = sum(seen.get(wish.unit) is wish.tenant for wish in wishes)
    named = sum(wish.pod is not None and pods.get(wish.unit) == wish.pod for wish in wishes)
    clear = sum(wish.pod is not None and (wish.unit not in held or pods.get(wish.unit) == wish.pod) for wish in wishes)
    return kind, named, clear


@settings(max_examples=500)
@given(banks(), st.sets(st.integers(0, 7)))
def test_swaps_lose_no_role_touch_no_unit_twice_and_make_nobody_wrong(bank: Bank, fixed: set[int]) -> None:
    """The roles are the same ones; a unit is in one swap at most and never a fixed one; each swap puts somebody right, nobody wrong."""
    wishes, seen, pods, held = bank
    swaps = find_swaps(wishes, seen, held_units=held, fixed_units=fixed, pods=pods)
    units = [unit for swap in swaps for unit in swap]
    assert len(units) == len(set(units))
    assert not set(units) & fixed
    after = swapped(wishes, swaps)
    roles = [Counter((w.tenant, w.flip, w.pod) for w in each) for each in (wishes, after)]
    assert roles[0] == roles[1]
    before = rights(wishes, seen, pods, held)
    for at in range(len(swaps)):
        now = rights(swapped(wishes, swaps[: at + 1]), seen, pods, held)
        assert all(new >= old for new, old in zip(now, before, strict=True))
        assert now != before
        before = now


@settings(max_examples=300)
@given(banks())
def test_repeated_swaps_come_to_rest_with_every_wish_fulfilled_that_can_be(bank: Bank) -> None:
    """At rest nobody is in a wrong place while an empty one of the kind stands unclaimed, and no two could just change places."""
    wishes, seen, pods, held = bank
    for _ in range(40):
        swaps = find_swaps(wishes, seen, held_units=held, pods=pods)
        if not swaps:
            break
        wishes = swapped(wishes, swaps)
    assert not swaps
    wrong = [wish for wish in wishes if seen.get(wish.unit) not in (None, wish.tenant)]
    free = {wish.tenant for wish in wishes if wish.unit not in held and wish.pod is None}
    assert not any(seen[wish.unit] in free for wish in wrong)


def test_three_who_are_in_a_ring_of_wrong_places_all_get_right() -> None:
    """A named pod took the unnamed place, another customer sits on a miner's, the miner on the named one: two rounds mend it."""
    a, b = ref("a"), ref("b")
    wishes = [
        UnitWish(unit=0, tenant=Mode.INFERENCE, flip="f", pod=a),
        UnitWish(unit=1, tenant=Mode.INFERENCE),
        UnitWish(unit=2, tenant=Mode.MINING),
    ]
    seen = {0: Mode.MINING, 1: Mode.INFERENCE, 2: Mode.INFERENCE}
    pods = {1: a, 2: b}
    for _ in range(2):
        wishes = swapped(wishes, find_swaps(wishes, seen, held_units={0, 1, 2}, pods=pods))
    assert [wish.tenant for wish in wishes] == [Mode.MINING, Mode.INFERENCE, Mode.INFERENCE]
    assert wishes[1].pod == a


def test_two_pods_of_two_units_that_lie_crosswise_get_their_own_places() -> None:
    """One is there on units of both flips, the other waits: the flip of the first follows it, so that the second has two free ones."""
    a, b = ref("a"), ref("b")
    wishes = [UnitWish(unit=u, tenant=Mode.INFERENCE, flip=f, pod=p) for u, f, p in ((0, "f", a), (1, "f", a))]
    wishes += [UnitWish(unit=u, tenant=Mode.INFERENCE, flip="g", pod=b) for u in (2, 3)]
    swaps = find_swaps(wishes, dict.fromkeys((0, 2), Mode.INFERENCE), held_units={0, 2}, pods={0: a, 2: a})
    assert swaps == [(2, 1)]


def test_a_place_that_is_kept_by_name_moves_where_kubelet_gave_its_gpu_to_another() -> None:
    """One who was let into the empty place got the GPU of the other place: the flip takes the empty one, and its own pod can come."""
    waiting, came = ref("waits"), ref("came")
    wishes = [
        UnitWish(unit=0, tenant=Mode.INFERENCE, flip="f", pod=waiting),
        UnitWish(unit=1, tenant=Mode.STANDBY),
        UnitWish(unit=2, tenant=Mode.INFERENCE),
    ]
    seen, pods = {0: Mode.INFERENCE}, {0: came}
    assert find_swaps(wishes, seen, held_units={0}, pods=pods) == [(0, 2)]
    assert not find_swaps(wishes, seen, held_units={0, 2}, pods=pods)
    # Who has a place of its own by name gets that one.
    wishes[2] = replace(wishes[2], flip="g", pod=came)
    assert find_swaps(wishes, seen, held_units={0}, pods=pods) == [(0, 2)]


def test_a_place_that_is_kept_for_a_pod_that_waits_is_nobody_elses() -> None:
    """Somebody came uninvited: the place named for another one stays its."""
    wishes = [
        UnitWish(unit=0, tenant=Mode.INFERENCE, flip="f", pod=ref("a")),
        UnitWish(unit=1, tenant=Mode.MINING),
    ]
    assert not find_swaps(wishes, {1: Mode.INFERENCE}, held_units={1}, pods={1: ref("b")})


POINTS = {
    name: OperatingPoint(name=name, mode=mode, claim_w=claim_w, draw_w=claim_w)
    for name, mode, claim_w in (
        ("serve", Mode.INFERENCE, 700.0),
        ("capped", Mode.INFERENCE, 500.0),
        ("mine", Mode.MINING, 600.0),
        ("standby", Mode.STANDBY, 80.0),
    )
}


@settings(max_examples=500)
@given(st.lists(st.tuples(st.sampled_from(sorted(POINTS)), st.sampled_from(["empty", "serves", "fixed"])), max_size=8))
def test_the_lower_limits_of_inference_are_where_nobody_serves(units: list[tuple[str, str]]) -> None:
    """Afterwards no empty place is above one that serves, but where a unit keeps its role; what the bank counts is what it was."""
    held = Holdings(
        bank="b",
        placements=tuple(
            Placement(point=point, count=1, units=(unit,), since_s=float(unit), mode_since_s=0.0)
            for unit, (point, _) in enumerate(units)
        ),
    )
    of = {what: [unit for unit, (_, is_what) in enumerate(units) if is_what == what] for what in ("empty", "serves")}
    fixed = {unit for unit, (_, what) in enumerate(units) if what == "fixed"}
    swaps = find_limit_swaps(POINTS, held, empty_units=of["empty"], serving_units=of["serves"], fixed_units=fixed)
    after, _ = swap_roles(held, (), swaps)
    at = {unit: placement.point for placement in after.placements for unit in placement.units}
    assert sorted(at) == list(range(len(units)))
    assert Counter(at.values()) == Counter(point for point, _ in units)
    assert all(
        at[unit] == units[unit][0]
        for unit in range(len(units))
        if unit in fixed or units[unit][0] in ("mine", "standby")
    )
    claims_w = {what: [POINTS[at[u]].claim_w for u in of[what] if at[u] in ("serve", "capped")] for what in of}
    assert max(claims_w["empty"], default=0.0) <= min(claims_w["serves"], default=1e9)
    assert not find_limit_swaps(POINTS, after, empty_units=of["empty"], serving_units=of["serves"], fixed_units=fixed)
