"""Who comes and leaves with a plan's moves; banks that bar points, bound inference or have a dwell of their own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.flips.parties import assign_parties, parties_of
from swingbus_controller.domain.planning.plan import Askers, BankView, Move, Party, Reason
from swingbus_controller.domain.planning.planner import plan
from swingbus_controller.domain.planning.points import DeviceKind, Mode
from tests.unit.planner.sites import NOW_S, POLICY, make_gpus, make_market, make_view


def a_move(units: tuple[str, ...], start: str, end: str, reason: Reason = Reason.DEMAND) -> Move:
    """Return a move of units of bank `g` between two points."""
    modes = {"gpu-mine": Mode.MINING, "standby": Mode.STANDBY}
    modes |= {"inference": Mode.INFERENCE, "inference-low": Mode.INFERENCE}
    return Move(
        bank="g",
        kind=DeviceKind.GPU,
        from_point=start,
        to_point=end,
        from_mode=modes[start],
        to_mode=modes[end],
        count=len(units),
        unit_ids=units,
        reason=reason,
        detail="",
        gain_usd_per_h=0.0,
        cost_usd=0.0,
        claim_delta_w=0.0,
    )


def a_bank(*, since_s: float = 0.0, **at: int) -> BankView:
    """Return bank `g`, its points named with underscores."""
    return make_gpus("g", "rack", at={name.replace("_", "-"): n for name, n in at.items()}, since_s=since_s)


def units_at(bank: BankView, point: str) -> tuple[str, ...]:
    """Return the units of a point."""
    return tuple(unit for holding in bank.holdings if holding.point == point for unit in holding.unit_ids)


@settings(max_examples=300)
@given(st.integers(0, 8), st.integers(0, 8), st.lists(st.integers(1, 4), max_size=6), st.integers(0, 3))
def test_who_comes_comes_whole_in_line_and_on_units_of_its_own(
    mining: int, resting: int, sizes: list[int], empty: int
) -> None:
    """A unit is in one part; each party gets all it asks for; the first who does not fit stops those behind it."""
    bank = a_bank(gpu_mine=mining, standby=resting, inference=empty)
    idle = tuple(Party(name="", count=1, unit_ids=(unit,)) for unit in units_at(bank, "inference"))
    line = tuple(Party(name=f"p{n}", count=size) for n, size in enumerate(sizes))
    bank = replace(bank, parties_out=idle)
    moves = [
        a_move(units_at(bank, point), point, "inference") for point in ("gpu-mine", "standby") if units_at(bank, point)
    ]
    parts = assign_parties(bank, line, moves, POLICY, NOW_S)
    units = [unit for found in parts.values() for _, ids, _ in found for unit in ids]
    assert len(units) == len(set(units))
    for at, found in parts.items():
        assert all(set(ids) <= set(moves[at].unit_ids) and count == len(ids) for count, ids, _ in found)
    got = Counter[str]()
    for found in parts.values():
        for count, _, name in found:
            got[name] += count
    # Empty places are the first's: they are too few for it, else it would be there.
    expected, left, spare = {}, mining + resting, empty
    for party in line:
        need = party.count - spare
        if need <= 0 or need > left:
            break
        expected[party.name], left, spare = need, left - need, 0
    assert dict(got) == expected


def test_who_leaves_leaves_whole_and_after_its_dwell_and_nobody_in_its_stead() -> None:
    """The first to go is in its dwell: for money nobody goes, for a limit it does."""
    ripe, fresh = a_bank(inference=2), a_bank(since_s=NOW_S - 1.0, inference=1)
    young = replace(fresh.holdings[0], unit_ids=("9",))
    bank = replace(
        ripe,
        holdings=(*ripe.holdings, young),
        parties_out=(
            Party(name="young", count=1, unit_ids=("9",)),
            Party(name="pair", count=2, unit_ids=units_at(ripe, "inference")),
        ),
    )
    one = a_move(units_at(ripe, "inference")[:1], "inference", "gpu-mine")
    assert assign_parties(bank, (), [one], POLICY, NOW_S) == {0: []}
    forced = replace(one, reason=Reason.LIMIT)
    assert assign_parties(bank, (), [forced], POLICY, NOW_S) == {0: [(1, ("9",), "young")]}
    three = replace(one, count=3)
    assert assign_parties(bank, (), [three], POLICY, NOW_S) == {0: [(2, units_at(ripe, "inference"), "pair")]}


def test_who_works_here_uninvited_gets_the_units_that_it_has() -> None:
    """The plan chose other units of the same point: they are exchanged."""
    bank = a_bank(gpu_mine=4)
    mine = units_at(bank, "gpu-mine")
    worker = Party(name="p", count=1, unit_ids=(mine[3],))
    move = a_move(mine[:1], "gpu-mine", "inference")
    assert assign_parties(bank, [worker], [move], POLICY, NOW_S) == {0: [(1, (mine[3],), "p")]}


def test_parties_leave_idle_units_first() -> None:
    """Then holders, in the order given; who holds nothing is none."""
    parties = parties_of({"a": [3, 2], "b": [], "c": [5]}, [7, 6], 4, leaving={"c"})
    assert [(party.name, party.count, party.unit_ids) for party in parties] == [
        ("", 4, ("6",)),
        ("", 4, ("7",)),
        ("a", 8, ("3", "2")),
        ("c", 4, ("5",)),
    ]
    assert [party.goes_anyway for party in parties] == [True, True, False, True]


def wanted(bank: BankView, *, demand: float = 8.0, at_most: int | None = None) -> dict[str, int]:
    """Return what the planner wants of a bank where watts are no matter."""
    askers = {} if at_most is None else {"g": Askers(at_most=at_most)}
    view = replace(make_view((bank,), grid_w=1e6), askers=askers)
    made = plan(view, make_market(demand=demand), POLICY, NOW_S)
    target = made.target("g")
    assert target is not None
    return dict(target.counts)


def test_inference_goes_to_a_bank_only_as_far_as_somebody_would_use_it_there() -> None:
    """Demand of a class is eight, three would come here."""
    bank = a_bank(gpu_mine=8)
    assert wanted(bank) == {"inference": 8}
    assert wanted(bank, at_most=3) == {"inference": 3, "gpu-mine": 5}
    assert wanted(bank, at_most=0) == {"gpu-mine": 8}


def test_devices_leave_a_barred_point_though_it_costs_and_none_goes_there() -> None:
    """Mining is barred: who mines rests though mining earns; who would serve does so at the point that is not barred."""
    bank = replace(a_bank(gpu_mine=8), barred_points=frozenset({"gpu-mine"}))
    assert wanted(bank, demand=0.0) == {"standby": 8}
    capped = replace(a_bank(standby=8), barred_points=frozenset({"inference"}))
    assert wanted(capped).get("inference-low") == 8


def test_a_banks_own_dwell_counts_for_it() -> None:
    """Its devices mine since a minute: with its own dwell of two minutes they stay, with one of half a minute they go."""
    bank = a_bank(since_s=NOW_S - 60.0, gpu_mine=8)
    assert wanted(replace(bank, dwell_s={Mode.MINING: 120.0})) == {"gpu-mine": 8}
    assert wanted(replace(bank, dwell_s={Mode.MINING: 30.0})) == {"inference": 8}


@settings(max_examples=300)
@given(st.permutations(range(6)), st.integers(0, 6), st.data())
def test_a_unit_that_somebody_leaves_with_is_not_also_changed_to_another_limit(
    order: list[int], leaving: int, data: st.DataObject
) -> None:
    """A plan names units by number, who leaves takes its own: each unit is in one part, and as many change as were planned."""
    bank = a_bank(inference=6)
    units = units_at(bank, "inference")
    capped = data.draw(st.integers(0, 6 - leaving))
    # Those that stand empty, in an order that the plan does not know.
    empty = tuple(Party(name="", count=1, unit_ids=(units[n],)) for n in order)
    bank = replace(bank, parties_out=empty)
    moves = [
        move
        for move in (
            a_move(units[:leaving], "inference", "standby"),
            a_move(units[leaving : leaving + capped], "inference", "inference-low"),
        )
        if move.unit_ids
    ]
    parts = assign_parties(bank, (), moves, POLICY, NOW_S)
    chosen = [
        [unit for _, ids, _ in parts[at] for unit in ids] if at in parts else list(move.unit_ids)
        for at, move in enumerate(moves)
    ]
    assert [len(each) for each in chosen] == [len(move.unit_ids) for move in moves]
    assert len({unit for each in chosen for unit in each}) == sum(map(len, chosen))


def test_a_limit_that_was_changed_a_moment_ago_is_not_changed_in_anothers_stead() -> None:
    """The unit that is left was set less than its dwell ago: the change of another one comes with a later plan, but not a shed's."""
    bank = a_bank(inference=2)
    (holding,) = bank.holdings
    fresh = replace(holding, count=1, unit_ids=holding.unit_ids[:1], since_s=NOW_S - 1.0, mode_since_s=0.0)
    old = replace(holding, count=1, unit_ids=holding.unit_ids[1:])
    leaver = Party(name="", count=1, unit_ids=old.unit_ids)
    bank = replace(bank, holdings=(fresh, old), parties_out=(leaver,))
    out = a_move(fresh.unit_ids, "inference", "standby")
    for reason, expected in ((Reason.CAP_TO_FIT, []), (Reason.LIMIT, [(1, fresh.unit_ids, "")])):
        moves = [out, a_move(old.unit_ids, "inference", "inference-low", reason)]
        parts = assign_parties(bank, (), moves, POLICY, NOW_S)
        assert parts == {0: [(1, old.unit_ids, "")], 1: expected}


def test_limits_are_lowered_where_nobody_is_and_raised_where_somebody_is() -> None:
    """The plan names units by number; the first two are held, the others stand empty."""
    for start, end, delta_w, expected in (
        ("inference", "inference-low", -1.0, [2, 3]),
        ("inference-low", "inference", 1.0, [0, 1]),
    ):
        bank = a_bank(**{start.replace("-", "_"): 4})
        units = units_at(bank, start)
        empty = tuple(Party(name="", count=1, unit_ids=(unit,), goes_anyway=True) for unit in units[2:])
        bank = replace(bank, parties_out=empty)
        move = replace(a_move(units[1:3], start, end), claim_delta_w=delta_w)
        parts = assign_parties(bank, (), [move], POLICY, NOW_S)
        assert sorted(unit for _, ids, _ in parts[0] for unit in ids) == [units[n] for n in expected]


def test_nobody_is_sent_away_in_place_of_one_who_goes_anyway() -> None:
    """One place is to be given up at the lower limit, where a pod is; the empty one is at the higher: for money the pod stays."""
    bank = a_bank(inference=1, inference_low=1)
    high, low = units_at(bank, "inference"), units_at(bank, "inference-low")
    for leaver in (Party(name="", count=1, unit_ids=high), Party(name="leaves", count=1, unit_ids=high)):
        leavers = (replace(leaver, goes_anyway=True), Party(name="stays", count=1, unit_ids=low))
        bank = replace(bank, parties_out=leavers)
        out = a_move(low, "inference-low", "gpu-mine")
        assert assign_parties(bank, (), [out], POLICY, NOW_S) == {0: []}
        forced = replace(out, reason=Reason.LIMIT)
        assert assign_parties(bank, (), [forced], POLICY, NOW_S) == {0: [(1, low, "stays")]}
        both = [out, a_move(high, "inference", "gpu-mine")]
        assert assign_parties(bank, (), both, POLICY, NOW_S) == {0: [(1, low, "stays")], 1: [(1, high, leaver.name)]}
