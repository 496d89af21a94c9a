"""What the spool sends, merges and drops, as pure decisions."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from swingbus_agent.domain.merging import can_merge, merge_rounds, remap_round
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.readings import (
    AgentEvent,
    BankRound,
    BankSpec,
    Condition,
    DeviceSpec,
    Inventory,
    Kind,
    MeterRound,
    Round,
)
from swingbus_agent.domain.spool_policy import (
    Acknowledged,
    Bounds,
    Drop,
    Merge,
    StoredBatch,
    begin_sending,
    is_rolled_back,
    parse_ranges,
    plan_relief,
    sent,
    settled,
)

BOUNDS = Bounds(max_bytes=1000, max_age_s=100.0)


def batches(count: int, size_bytes: int = 100, level: int = 0) -> list[StoredBatch]:
    """Return one batch a second from 1000 s on."""
    return [
        StoredBatch(sequence=n, first_sequence=n, size_bytes=size_bytes, level=level, sample_unix_s=1000.0 + n)
        for n in range(1, count + 1)
    ]


def make_round(at_s: float, watts: float | None = 100.0, **changes: object) -> Round:
    """Return a round with one device, one counter and one meter."""
    bank = BankRound(
        bank_index=0,
        values=(watts, 20.0),
        counters=(at_s * 10.0,),
        conditions=(Condition.OK,),
        modes=(Mode.MINING,),
        read_boottime_ns=(int(at_s * 1e9),),
    )
    meter = MeterRound(
        meter_index=0,
        window_start_boottime_ns=int((at_s - 2) * 1e9),
        window_end_boottime_ns=int((at_s - 1) * 1e9),
        marker=int(at_s),
        power_w=watts,
        energy_j=at_s * 100.0,
    )
    round_ = Round(
        sample_unix_s=at_s,
        sample_boottime_ns=int(at_s * 1e9),
        boot_id="b",
        banks=(bank,),
        meters=(meter,),
        host_values=(1.0,),
    )
    return replace(round_, **changes)  # type: ignore[arg-type]


def test_spool_inside_its_bounds_is_left_alone() -> None:
    """Nothing to do, nothing done."""
    assert plan_relief(batches(9), bounds=BOUNDS, now_s=1010.0) == ()


def test_full_spool_merges_neighbours_of_the_same_ten_seconds_first() -> None:
    """Raw rounds become ten-second means before anything is dropped."""
    steps = plan_relief(batches(30), bounds=BOUNDS, now_s=1031.0)
    assert steps and all(isinstance(step, Merge) and step.level == 1 for step in steps)
    for step in steps:
        assert len({(1000 + sequence) // 10 for sequence in step.sequences}) == 1


def test_only_neighbours_without_a_number_between_them_are_merged() -> None:
    """What was dropped, refused or acknowledged between two batches is not in their mean, and must not seem to be."""
    stored = [each for each in batches(30) if each.sequence % 4]
    steps = plan_relief(stored, bounds=BOUNDS, now_s=1031.0)
    assert steps
    for step in steps:
        assert isinstance(step, Merge)
        assert step.sequences == tuple(range(step.first_sequence, step.sequences[-1] + 1))


def test_mean_of_means_stands_for_all_that_is_in_them() -> None:
    """A second thinning keeps the first number of the first mean, and a drop counts every round in a mean."""
    means = [
        StoredBatch(sequence=n, first_sequence=n - 4, size_bytes=100, level=1, sample_unix_s=1000.0 + n)
        for n in range(5, 100, 5)
    ]
    merges = [step for step in plan_relief(means, bounds=BOUNDS, now_s=1100.0) if isinstance(step, Merge)]
    assert merges[0].level == 2 and merges[0].first_sequence == 1 and merges[0].sequences[0] == 5
    busy = [each.sequence for each in means[:1]]
    (drop,) = plan_relief(means, bounds=BOUNDS, now_s=1112.5, busy=busy)
    assert drop == Drop(sequences=(10,), round_count=5, reason="old")


def test_mean_is_off_the_way_only_with_every_number_in_it() -> None:
    """The controller may hold its last round alone, from before the link was cut."""
    sending = sent(begin_sending(credit=4, newest_sequence=9), 8, 5)
    assert settled(sending, Acknowledged(up_to=2, ranges=((8, 8),))).in_flight == {8: 5}
    assert not settled(sending, Acknowledged(up_to=2, ranges=((4, 8),))).in_flight
    assert not settled(sending, Acknowledged(up_to=8)).in_flight


def test_spool_of_thinnest_batches_drops_the_oldest() -> None:
    """Where nothing can be merged any more, the oldest goes."""
    steps = plan_relief(batches(20, level=2), bounds=BOUNDS, now_s=1021.0)
    assert len(steps) == 1 and isinstance(steps[0], Drop) and steps[0].reason == "full"
    assert steps[0].sequences == tuple(range(1, len(steps[0].sequences) + 1))


def test_old_batches_are_dropped_by_age() -> None:
    """Age is a bound of its own."""
    steps = plan_relief(batches(5), bounds=BOUNDS, now_s=1103.5)
    assert steps == (Drop(sequences=(1, 2, 3), round_count=3, reason="old"),)


@given(st.integers(1, 60), st.sets(st.integers(1, 60)), st.integers(0, 2))
def test_what_is_on_its_way_is_never_touched(count: int, busy: set[int], level: int) -> None:
    """Neither merged nor dropped, whatever the bounds say."""
    for step in plan_relief(batches(count, level=level), bounds=BOUNDS, now_s=1040.0, busy=busy):
        assert not busy & set(step.sequences)


@given(st.lists(st.sampled_from(["live", "back", "ack", "store"]), max_size=60), st.integers(1, 5), st.integers(0, 20))
def test_a_session_sends_every_batch_once_and_never_more_than_its_credit(
    moves: list[str], credit: int, stored_count: int
) -> None:
    """Whatever the order of events, no sequence goes twice and credit holds."""
    newest = stored_count
    sending = begin_sending(credit=credit, newest_sequence=newest)
    gone: list[int] = []
    for move in moves:
        if move == "store":
            newest += 1
        elif move == "ack" and sending.in_flight:
            sending = settled(sending, Acknowledged(up_to=0, ranges=((min(sending.in_flight),) * 2,)))
        elif sending.room:
            after = sending.live_cursor if move == "live" else sending.cursor
            last = newest if move == "live" else sending.live_from - 1
            if after < last:
                sending = sent(sending, after + 1, after + 1)
                gone.append(after + 1)
        assert len(sending.in_flight) <= credit
    assert len(gone) == len(set(gone))


def test_ranges_cover_what_they_hold_and_a_broken_pair_is_left_out() -> None:
    """Flat ranges are pairs; a reversed or single number is never guessed at."""
    acknowledged = Acknowledged(up_to=3, ranges=parse_ranges([5, 6, 9, 8, 11]))
    assert [s for s in range(1, 13) if acknowledged.covers(s, s)] == [1, 2, 3, 5, 6]


def test_controller_that_knows_more_shows_a_rolled_back_spool() -> None:
    """More acknowledged than ever given out: the file is an old copy."""
    assert is_rolled_back(newest_sequence=5, acknowledged=Acknowledged(up_to=4, ranges=((9, 9),)))
    assert not is_rolled_back(newest_sequence=9, acknowledged=Acknowledged(up_to=4, ranges=((9, 9),)))


def test_merged_round_is_the_mean_with_last_counters_and_every_event() -> None:
    """Means are over what was there; counters, events and the earliest marker survive."""
    event = AgentEvent(kind="gpu_xid_seen", message="m", at_unix_s=1.0)
    merged = merge_rounds([make_round(10.0, 100.0, events=(event,)), make_round(11.0, None), make_round(12.0, 300.0)])
    assert merged.thinned and merged.events == (event,)
    assert merged.banks[0].values == (200.0, 20.0) and merged.banks[0].counters == (120.0,)
    meter = merged.meters[0]
    assert meter.power_w == 200.0 and meter.energy_j == 1200.0 and meter.marker == 10
    assert (meter.window_start_boottime_ns, meter.window_end_boottime_ns) == (8_000_000_000, 11_000_000_000)


def test_worst_condition_survives_a_merge() -> None:
    """A device that hung for a second inside the mean is not healthy."""
    hung = make_round(11.0)
    hung = replace(hung, banks=(replace(hung.banks[0], conditions=(Condition.HUNG,)),))
    assert merge_rounds([make_round(10.0), hung, make_round(12.0)]).banks[0].conditions == (Condition.HUNG,)


def test_rounds_of_different_boots_or_shapes_are_not_merged() -> None:
    """Boot times of two boots are never compared."""
    assert not can_merge([make_round(1.0), make_round(2.0, boot_id="other")])
    wider = make_round(2.0)
    wider = replace(wider, banks=(replace(wider.banks[0], conditions=(Condition.OK,) * 2),))
    assert not can_merge([make_round(1.0), wider])


def inventory(devices: tuple[str, ...], fields: tuple[str, ...] = ("power_w", "temperature_c")) -> Inventory:
    """Return an inventory of one bank."""
    bank = BankSpec(
        bank="b",
        kind=Kind.GPU,
        device_class="c",
        unit_size=1,
        devices=tuple(DeviceSpec(device=name) for name in devices),
        value_fields=fields,
        counter_fields=("energy_j",),
        points=(),
    )
    return Inventory(
        version="1",
        hostname="h",
        banks=(bank,),
        meters=(),
        host_fields=("load_1m",),
        unsupported=(),
        writes_enabled=False,
    )


def test_old_round_is_laid_out_by_the_present_inventory() -> None:
    """Devices and fields are found by name; a newcomer is unavailable, what is gone is left out."""
    moved = remap_round(
        make_round(5.0, 77.0), inventory(("x",)), inventory(("new", "x"), ("temperature_c", "power_w", "extra"))
    )
    bank = moved.banks[0]
    assert bank.values == (None, None, None, 20.0, 77.0, None)
    assert bank.conditions == (Condition.UNAVAILABLE, Condition.OK) and bank.modes == (Mode.UNKNOWN, Mode.MINING)
    assert moved.meters == () and moved.host_values == (1.0,)
