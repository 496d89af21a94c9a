"""What must hold for the judge, the meters and the machines whatever happens to them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_sim.judge.attribution import Sample, attribute
from swingbus_sim.meters.meter import Meter
from swingbus_sim.physics.faults import MeterFault
from swingbus_sim.scenario import MeterSpec
from tests.unit.sim.builders import AsicBench, MadeTruth, make_asic

_WATTS = st.floats(min_value=0.0, max_value=1e6, allow_nan=False)


@given(power_w=_WATTS, limit_w=_WATTS, lowered_w=_WATTS, disobedient_w=_WATTS, uncontrolled_w=_WATTS)
@settings(max_examples=100, deadline=None)
def test_attribution_explains_the_excess_and_no_more(
    power_w: float, limit_w: float, lowered_w: float, disobedient_w: float, uncontrolled_w: float
) -> None:
    """The parts are positive, each within its explanation, and add up to the excess."""
    sample = Sample(
        power_w=power_w,
        limit_w=limit_w,
        limit_lowered_w=lowered_w,
        disobedient_w=disobedient_w,
        uncontrolled_w=uncontrolled_w,
    )
    parts = attribute(sample)

    assert all(watts > 0.0 for watts in parts.values())
    assert parts.get("disobedient", 0.0) <= disobedient_w
    assert sum(parts.values()) == pytest.approx(max(0.0, power_w - limit_w), abs=0.6)


@given(seconds=st.lists(st.integers(min_value=80_000, max_value=120_000), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_verdict_is_guilty_exactly_when_an_unexplained_second_was_over(seconds: list[int]) -> None:
    """With nothing in the ledger, one second over the limit is enough, and nothing less is."""
    truth = MadeTruth()
    for watts in seconds:
        truth.tell(1.0, float(watts))
    verdict = truth.verdict()

    is_over = any(watts > 100_000 for watts in seconds)
    assert (verdict["verdict"] == "GUILTY") is is_over
    assert verdict["over_cap_ws"]["authorised"] >= sum(max(0, w - 100_000) for w in seconds) - 0.5 * len(seconds)


@given(
    steps=st.lists(
        st.tuples(
            _WATTS,
            st.sampled_from(
                (
                    MeterFault(),
                    MeterFault(is_frozen=True),
                    MeterFault(is_power_frozen=True),
                    MeterFault(lag_s=3.0),
                    MeterFault(gain_ratio=1.05),
                )
            ),
        ),
        min_size=5,
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_meter_never_counts_backwards(steps: list[tuple[float, MeterFault]]) -> None:
    """Energy, sequence and window end never fall, whatever is wrong with the meter."""
    spec = MeterSpec(
        name="m",
        node="grid",
        address="127.0.0.1",
        port=5020,
        window_s=0.2,
        lag_s=0.3,
        gain_error_ratio=0.0,
        declared_error_ratio=0.005,
        word_order="big",
    )
    meter = Meter(
        spec, fault=MeterFault(), random=Random(1), nominal_v=240.0, frequency_hz=60.0, power_factor_ratio=0.98
    )
    seen = (0, 0, 0)
    for number, (watts, fault) in enumerate(steps, start=1):
        meter.set_fault(fault)
        meter.observe(number / 10, 0.1, watts, 1.0)
        values = meter.values(number / 10)
        if values is not None:
            now = (values.energy_j, values.sequence, values.window_end_ms)
            assert all(new >= old for new, old in zip(now, seen, strict=True))
            seen = now


@given(
    orders=st.lists(
        st.tuples(
            st.sampled_from(("sleep", "wake", "reboot", "440MHz", "590MHz")), st.floats(min_value=0.1, max_value=4.0)
        ),
        max_size=12,
    ),
    class_name=st.sampled_from(("s19k-pro-luxos", "m60s-whatsminer")),
)
@settings(max_examples=60, deadline=None)
def test_machine_without_a_planted_fault_is_never_in_the_books(
    orders: list[tuple[str, float]], class_name: str
) -> None:
    """The judge's excuses come from planted faults only: an obedient machine, however ordered about, gives none."""
    bench = AsicBench(make_asic(class_name=class_name))
    for order, pause_s in orders:
        if order == "sleep":
            bench.asic.sleep(bench.now_s)
        elif order == "wake":
            bench.asic.wake(bench.now_s)
        elif order == "reboot":
            bench.asic.reboot(bench.now_s)
        else:
            bench.asic.set_profile(bench.now_s, order)
        for _ in range(round(pause_s * 10)):
            bench.run(0.1)
            assert bench.asic.disobeys_since_s is None
            assert 0.0 <= bench.asic.power_w < 3600.0 * 1.2
