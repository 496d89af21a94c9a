"""The power tree, its limits, and what a bank counts at."""

from __future__ import annotations

import math

import pytest

from swingbus.faults import InvalidInput, NotFound
from swingbus_controller.domain.power.bank import (
    BankSpec,
    CountingFactors,
    DeviceKind,
    OperatingPoint,
    ceiling_w,
    counted_w,
    grant_w,
    runnable_count,
)
from swingbus_controller.domain.power.limits import Limit, breaker_limit_w, lowest_limit_w
from swingbus_controller.domain.power.tree import Feeder, MeterSpec, PowerTree


def make_asics(**changes: float) -> BankSpec:
    """Return 10 ASICs of 3000 W with boot draw, cooling and losses."""
    return BankSpec(
        name="c1/s19",
        agent="c1",
        feeder="c1",
        kind=DeviceKind.ASIC,
        device_count=10,
        device_ceiling_w=3000.0,
        device_floor_w=15.0,
        factors=CountingFactors(asic_boot_w=changes.get("boot_w", 3200.0)),
        host_w=100.0,
        cooling_ratio=0.1,
        losses_ratio=0.02,
        start_peak_w=50.0,
    )


def test_losses_on_a_path_multiply() -> None:
    """One watt below two lossy feeders is more than one watt above both."""
    tree = PowerTree(
        [
            Feeder(name="grid"),
            Feeder(name="t1", parent="grid", losses_ratio=0.01),
            Feeder(name="c1", parent="t1", losses_ratio=0.02, uncontrolled_max_w=100.0, uncontrolled_step_w=40.0),
        ]
    )
    assert tree.loss_factor("c1", "grid") == pytest.approx(1.01 * 1.02)
    assert tree.path("c1")[0] == ("c1", 1.0)
    assert tree.uncontrolled_max_w("grid") == pytest.approx(100.0 * 1.01 * 1.02)
    assert tree.uncontrolled_step_w("t1") == pytest.approx(40.0 * 1.02)
    assert tree.subtree("t1") == {"t1", "c1"}


def test_nearest_meter_is_found_upwards() -> None:
    """A feeder without a meter belongs to the next one above that has one."""
    tree = PowerTree(
        [
            Feeder(name="grid", meter=MeterSpec(reader="head")),
            Feeder(name="c1", parent="grid", meter=MeterSpec(reader="c1")),
            Feeder(name="pdu", parent="c1"),
        ]
    )
    assert tree.nearest_meter("pdu") == "c1"
    assert tree.nearest_meter("grid") == "grid"


@pytest.mark.parametrize(
    ("feeders", "reason"),
    [
        ([Feeder(name="a"), Feeder(name="b")], "NOT_ONE_ROOT"),
        ([Feeder(name="a"), Feeder(name="a")], "FEEDER_TWICE"),
        ([Feeder(name="a"), Feeder(name="b", parent="x")], "UNKNOWN_PARENT"),
        ([Feeder(name="g"), Feeder(name="a", parent="b"), Feeder(name="b", parent="a")], "FEEDER_CYCLE"),
        ([Feeder(name="a", losses_ratio=-0.1)], "BAD_FEEDER"),
    ],
)
def test_a_tree_that_cannot_be_is_refused(feeders: list[Feeder], reason: str) -> None:
    """Each kind of wrong tree has its own reason."""
    with pytest.raises(InvalidInput) as refused:
        PowerTree(feeders)
    assert refused.value.reason == reason


def test_an_unknown_feeder_is_not_found() -> None:
    """The error names what there is."""
    with pytest.raises(NotFound, match="grid"):
        PowerTree([Feeder(name="grid")]).path("nowhere")


def test_a_limit_ramps_down_holds_and_ends() -> None:
    """Between start and the end of its ramp a limit falls in steps, each as low as the line is at the step's end."""
    limit = Limit(name="event", limit_w=400.0, source="t", start_s=100.0, end_s=300.0, ramp_s=50.0, ramp_from_w=600.0)
    assert limit.lowest_w(99.0) is None
    assert limit.lowest_w(100.0) == limit.lowest_w(102.4) == 590.0
    assert limit.lowest_w(125.0) == 490.0
    falls = [limit.lowest_w(100.0 + tenth / 10.0) for tenth in range(501)]
    line = [600.0 - 4.0 * tenth / 10.0 for tenth in range(501)]
    assert all(
        fall is not None and straight - 10.0 <= fall <= straight for fall, straight in zip(falls, line, strict=True)
    )
    assert len(set(falls)) == 20
    assert limit.lowest_w(150.0) == 400.0
    assert limit.lowest_w(299.0) == 400.0
    assert limit.lowest_w(300.0) is None


def test_a_limit_counts_ahead_of_its_start() -> None:
    """Within the lead time the lowest value ahead counts, even after the end has passed."""
    limit = Limit(name="event", limit_w=400.0, source="t", start_s=100.0, end_s=110.0)
    assert limit.lowest_w(90.0, 12.0) == 400.0
    assert limit.lowest_w(87.0, 12.0) is None
    assert lowest_limit_w([limit, Limit(name="contract", limit_w=500.0, source="t")], 0.0) == 500.0
    assert lowest_limit_w([], 0.0) == math.inf


@pytest.mark.parametrize(
    "fields",
    [
        {"limit_w": -1.0},
        {"limit_w": math.nan},
        {"limit_w": 1.0, "start_s": 5.0, "end_s": 5.0},
        {"limit_w": 1.0, "ramp_s": 5.0},
        {"limit_w": 10.0, "start_s": 0.0, "ramp_s": 5.0, "ramp_from_w": 5.0},
    ],
)
def test_a_limit_that_cannot_be_is_refused(fields: dict[str, float]) -> None:
    """Negative, endless, rising or rampless limits are refused."""
    with pytest.raises(InvalidInput):
        Limit(name="x", source="t", **fields)


def test_breaker_formula_uses_the_lowest_voltage() -> None:
    """0.8 x sqrt(3) x 400 V x 1000 A x 0.95."""
    watts = breaker_limit_w(rated_current_a=1000, min_voltage_v=400, power_factor_ratio=0.95)
    assert watts == pytest.approx(526_543, rel=1e-5)
    with pytest.raises(InvalidInput):
        breaker_limit_w(rated_current_a=0, min_voltage_v=400, power_factor_ratio=0.95)


def test_an_asic_counts_at_boot_draw_or_above_its_target() -> None:
    """max(boot, 1.1 x target) while it runs, its sleep draw asleep."""
    spec = make_asics()
    assert counted_w(spec, 2000.0) == 3200.0
    assert counted_w(spec, 3000.0) == pytest.approx(3300.0)
    assert counted_w(spec, 0.0) == 15.0


def test_a_grant_pays_for_everything_that_follows() -> None:
    """Devices, host, cooling, losses and the start peak are in it; resting devices too."""
    spec = make_asics()
    watts = grant_w(spec, [OperatingPoint(count=4, device_w=3000.0)])
    assert watts == pytest.approx(((4 * 3300.0 + 6 * 15.0) * 1.1 + 100.0 + 50.0) * 1.02)
    assert runnable_count(spec, watts, 3000.0) == 4
    assert runnable_count(spec, watts - 1.0, 3000.0) == 3
    assert ceiling_w(spec) == pytest.approx((10 * 3300.0 * 1.1 + 150.0) * 1.02)
    with pytest.raises(InvalidInput, match="11"):
        grant_w(spec, [OperatingPoint(count=11, device_w=3000.0)])


def test_a_gpu_counts_at_its_limit_even_idle() -> None:
    """A GPU's limit x 1.07, until commissioned."""
    spec = BankSpec(
        name="g",
        agent="g",
        feeder="c",
        kind=DeviceKind.GPU,
        device_count=8,
        device_ceiling_w=700.0,
        device_floor_w=200.0,
    )
    assert counted_w(spec, 700.0) == pytest.approx(749.0)
    assert grant_w(spec, []) == pytest.approx(8 * 214.0)
