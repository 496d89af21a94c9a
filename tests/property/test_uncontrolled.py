"""Uncontrolled load by what a meter leaves over: two hosts' clocks, lags, late deliveries; banks that move, loads that surge."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.power.evidence import MeterHistory
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.reports import MeterWindow
from swingbus_controller.domain.power.tree import MeterSpec
from swingbus_controller.domain.power.uncontrolled import LoadWatch

WINDOW_S = 60.0
MAX_W, STEP_W = 100_000.0, 500.0
PROTOCOL = ProtocolSettings(uncontrolled_window_s=WINDOW_S)
# From a moment to when every meter has told of it: lag, length, slack and delivery.
TOLD_S = 20.0
Power = Callable[[float], float]
Lost = Callable[[int], bool]


def never(end: int) -> bool:
    """Lose no reading."""
    return False


class Meter:
    """A meter of true watts on its reader's own clock; `arrivals` are (our clock, window)."""

    def __init__(self, feeder: str, power: Power, *, clock_s: float, lag_s: float, length_s: int, seed: int) -> None:
        self.history = MeterHistory(
            MeterSpec(reader=feeder, error_ratio=0.0, quantum_w=1.0, lag_s=lag_s, energy_count_j=1.0)
        )
        self._feeder, self._power, self._clock_s, self._length_s = feeder, power, clock_s, length_s
        self._chance = random.Random(seed)

    def arrivals(self, seconds: int, lost: Lost = never) -> Iterator[tuple[float, MeterWindow]]:
        """Yield what comes in; readings whose end is `lost` never do."""
        energy_j, came_s = 0.0, 0.0
        for end in range(self._length_s, seconds, self._length_s):
            parts = range(end - self._length_s, end)
            # Nobody's reading is the same three times.
            mean_w = sum(self._power(t - self.history.meter.lag_s) for t in parts) / len(parts) + 0.1 * (end % 7)
            before_j, energy_j = energy_j, energy_j + mean_w * self._length_s
            came_s = max(came_s, end + self._chance.choice((0.1, 0.3, 0.9, 2.5)))
            if not lost(end):
                yield (
                    came_s,
                    MeterWindow(
                        feeder=self._feeder,
                        reader=self._feeder,
                        boot_id="b",
                        start_s=end - self._length_s + self._clock_s,
                        end_s=end + self._clock_s,
                        mean_w=mean_w,
                        energy_start_j=before_j,
                        energy_end_j=energy_j,
                    ),
                )


def watch(
    load: Power,
    banks: list[Power],
    *,
    seconds: int = 300,
    lags_s: tuple[float, float] = (0.0, 0.0),
    lengths_s: tuple[int, int] = (1, 1),
    lost: dict[str, Lost] | None = None,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Return (moment, U) at every window of the feeder's meter."""

    def total(t: float) -> float:
        return load(t) + sum(bank(t) for bank in banks)

    head = Meter("head", total, clock_s=7e3, lag_s=lags_s[0], length_s=lengths_s[0], seed=seed)
    groups = [
        Meter(f"c{n}", power, clock_s=-300.0 * n, lag_s=lags_s[1], length_s=lengths_s[1], seed=seed + n + 1)
        for n, power in enumerate(banks)
    ]
    stream = [
        (at_s, number, meter, window)
        for number, meter in enumerate([head, *groups])
        for at_s, window in meter.arrivals(seconds, (lost or {}).get(meter.history.meter.reader, never))
    ]
    made = LoadWatch(max_w=MAX_W, step_w=STEP_W)
    seen: list[tuple[float, float]] = []
    for at_s, _, meter, window in sorted(stream, key=lambda item: item[:2]):
        assert meter.history.add(window, at_s, PROTOCOL)
        if meter is head:
            seen.append((at_s, made.take(window, head.history, [g.history for g in groups], at_s, PROTOCOL)))
    return seen


def steps(chance: random.Random, *, every_s: int, high_w: float) -> Power:
    """Return watts that jump to another level now and then."""
    levels = [chance.uniform(0.0, high_w) for _ in range(400)]
    shift = chance.randrange(every_s)
    return lambda t: levels[int((t + 200 + shift) // every_s)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lags_s=st.tuples(st.sampled_from((0.0, 1.0, 3.0)), st.sampled_from((0.0, 1.0, 3.0))),
    lengths_s=st.tuples(st.sampled_from((1, 2, 5)), st.sampled_from((1, 2, 5))),
)
def test_moving_banks_are_not_taken_for_load_and_surges_are_not_missed(
    seed: int, lags_s: tuple[float, float], lengths_s: tuple[int, int]
) -> None:
    """Whatever the clocks: U holds every surge that outlasts a move of the banks, and what it holds beyond is no bank's doing."""
    chance = random.Random(seed)
    load = steps(chance, every_s=55, high_w=20_000.0)
    banks = [steps(chance, every_s=90, high_w=30_000.0) for _ in range(2)]
    seen = watch(load, banks, lags_s=lags_s, lengths_s=lengths_s, seed=seed)
    assert len(seen) > 20
    for at_s, u_w in seen:
        past = [load(at_s - back) for back in range(int(WINDOW_S + 3 * TOLD_S))]
        if at_s < WINDOW_S:
            assert u_w == MAX_W
        if at_s > WINDOW_S + 3 * TOLD_S:
            assert u_w <= max(past) + 2 * STEP_W + 100.0, at_s
        # A level of the load that has stood long enough to be told beside banks that stand still.
        told = [load(at_s - back) for back in range(int(TOLD_S), int(WINDOW_S))]
        stood = [w for w in set(told) if told.count(w) > 2 * TOLD_S]
        assert u_w >= max(stood, default=0.0) + STEP_W - 100.0, at_s


def test_move_of_a_bank_alone_leaves_u_where_it_was() -> None:
    """30 kW of growth within a second, told late and with another lag: U stays at the load and dU."""
    seen = watch(lambda t: 5000.0, [lambda t: 10_000.0 if t < 150 else 40_000.0], lags_s=(0.0, 3.0))
    late = [u_w for at_s, u_w in seen if at_s > WINDOW_S + 2 * TOLD_S]
    assert late and max(late) <= 5000.0 + STEP_W + 10.0


def test_load_that_hides_in_a_bank_that_hardly_moves_is_counted() -> None:
    """It rises whenever the bank falls, by less than dU: the bank counts at the least that it may have drawn then."""
    seen = watch(lambda t: 5000.0 + 400.0 * (int(t) % 2), [lambda t: 10_000.0 - 400.0 * (int(t) % 2)])
    assert min(u_w for _, u_w in seen) >= 5400.0 + STEP_W


def test_noise_of_a_bank_is_averaged_as_the_feeder_averages_it() -> None:
    """A feeder that reads means of 10 s beside a bank that swings every second: U is the load, not less."""
    seen = watch(lambda t: 5000.0, [lambda t: 10_000.0 + 8000.0 * (int(t) % 2)], lengths_s=(10, 1))
    assert all(u_w >= 5000.0 + STEP_W for at_s, u_w in seen)


def test_gap_at_the_feeder_begins_the_history_anew() -> None:
    """No reading for longer than a dead meter's time: U_max, and again a whole window until it may fall."""
    seen = watch(lambda t: 5000.0, [lambda t: 10_000.0], lost={"head": lambda end: 150 <= end < 170})
    assert min(u_w for at_s, u_w in seen if at_s < 150) < 6000.0
    assert {u_w for at_s, u_w in seen if 170 < at_s < 170 + WINDOW_S} == {MAX_W}


def test_bank_whose_meter_dies_counts_at_nothing() -> None:
    """Its whole draw may be anybody's: nothing is told while it is awaited, then U rises by all of it."""
    seen = watch(lambda t: 5000.0, [lambda t: 50_000.0], lost={"c0": lambda end: end >= 150})
    assert min(u_w for at_s, u_w in seen if at_s < 150) < 6000.0
    assert all(u_w >= 55_000.0 for at_s, u_w in seen if at_s > 150 + PROTOCOL.meter_dead_s + 2.0)


def test_lost_readings_of_a_bank_are_a_gap_and_no_load() -> None:
    """A few seconds without its readings tell nothing of that time, and what was known before still holds."""
    seen = watch(lambda t: 5000.0, [lambda t: 50_000.0], lost={"c0": lambda end: 150 <= end < 156})
    assert max(u_w for at_s, u_w in seen if at_s > WINDOW_S + 2 * TOLD_S) < 6000.0


def test_bank_whose_readings_leave_a_hole_in_every_stretch_tells_nothing() -> None:
    """One reading in nine seconds is a living meter, but of the time between them nothing is known: U stays at U_max."""
    seen = watch(lambda t: 5000.0, [lambda t: 50_000.0], lost={"c0": lambda end: end % 9 != 0})
    assert {u_w for _, u_w in seen} == {MAX_W}


def test_meter_that_contradicts_its_counter_tells_nothing() -> None:
    """A bank's meter that reads twice what its energy says would hide load: U stays at U_max."""
    head = Meter("head", lambda t: 60_000.0, clock_s=0.0, lag_s=0.0, length_s=1, seed=1)
    liar = Meter("c0", lambda t: 60_000.0, clock_s=0.0, lag_s=0.0, length_s=1, seed=2)
    made = LoadWatch(max_w=MAX_W, step_w=STEP_W)
    for (at_s, window), (_, said) in zip(head.arrivals(200), liar.arrivals(200), strict=True):
        half_j = said.mean_w / 2.0
        liar.history.add(
            MeterWindow(
                feeder="c0", reader="c0", boot_id="b", start_s=said.start_s, end_s=said.end_s, mean_w=said.mean_w,
                energy_start_j=said.start_s * half_j, energy_end_j=said.end_s * half_j,
            ),
            at_s,
            PROTOCOL,
        )  # fmt: skip
        head.history.add(window, at_s, PROTOCOL)
        assert made.take(window, head.history, [liar.history], at_s, PROTOCOL) == MAX_W
