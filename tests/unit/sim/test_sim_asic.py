"""One simulated miner: ramps, orders, lies and reboots."""

from __future__ import annotations

import pytest

from swingbus_sim.catalogue import ASIC_CLASSES
from swingbus_sim.ports import AsicState, NetworkFault
from tests.unit.sim.builders import AsicBench, make_asic


def test_luxos_table_holds_the_recorded_anchors() -> None:
    """The 25 LuxOS profiles pass through the four recorded points."""
    rows = {round(p.hashrate_ths, 1): p.power_w for p in ASIC_CLASSES["s19k-pro-luxos"].profiles}

    assert len(rows) == 25
    assert (rows[39.2], rows[80.5], rows[121.8], rows[163.1]) == (784.0, 1657.0, 2794.0, 4195.0)


def test_sleep_ramps_down_within_seconds_and_wake_comes_later() -> None:
    """Shedding takes seconds, restoring waits for the wake and overshoots before it settles."""
    bench = AsicBench(make_asic())
    bench.run(5.0)
    bench.asic.sleep(bench.now_s)
    bench.run(8.0)
    assert bench.asic.power_w < 40.0 and bench.asic.state is AsicState.SLEEPING and bench.asic.hashrate_ths == 0.0

    bench.asic.wake(bench.now_s)
    early = bench.run(9.0)
    assert max(early) < 0.2 * 2794.0
    peak_w = max(bench.run(20.0))
    bench.run(60.0)

    assert peak_w > 2794.0 * 1.01
    assert bench.asic.power_w == pytest.approx(2794.0, rel=0.02)
    assert bench.asic.hashrate_ths == pytest.approx(121.8, rel=0.03)


def test_ignored_sleep_is_accepted_and_counted_as_disobedience() -> None:
    """A machine that ignores sleep goes on mining, says so, and its watts are in the books."""
    bench = AsicBench(make_asic())
    bench.asic.faults.ignores_sleep = True
    bench.asic.sleep(bench.now_s)
    bench.run(5.0)

    assert bench.asic.state is AsicState.MINING
    assert bench.asic.reading(bench.now_s).state is AsicState.MINING
    assert bench.asic.disobedient_w == pytest.approx(2794.0 - 25.0, rel=0.03)
    assert bench.asic.disobeys_cause == "ignore_sleep"


def test_obedient_machine_has_no_disobedience_on_any_path() -> None:
    """Orders in any order leave nothing in the books of a machine that obeys."""
    bench = AsicBench(make_asic())
    for order in (bench.asic.sleep, bench.asic.wake, bench.asic.sleep):
        order(bench.now_s)
        bench.run(3.0)
        assert bench.asic.disobedient_w == 0.0
    bench.asic.set_profile(bench.now_s, "440MHz")
    bench.asic.reboot(bench.now_s)
    bench.run(40.0)

    assert bench.asic.disobedient_w == 0.0 and bench.asic.disobeys_since_s is None


def test_self_waker_waits_until_it_sleeps_and_can_be_put_back() -> None:
    """An armed self-waker wakes only after it lay asleep for its delay, and obeys the next sleep."""
    bench = AsicBench(make_asic())
    bench.asic.faults.wakes_when_asleep_for_s = 5.0
    bench.run(10.0)
    assert bench.asic.disobeys_since_s is None
    bench.asic.sleep(bench.now_s)
    bench.run(25.0)
    assert bench.asic.disobeys_cause == "wake_by_itself" and bench.asic.power_w > 1000.0

    bench.asic.sleep(bench.now_s)
    bench.run(8.0)

    assert bench.asic.power_w < 40.0 and bench.asic.disobedient_w == 0.0


@pytest.mark.parametrize(("class_name", "is_awake"), [("s19k-pro-luxos", False), ("m60s-whatsminer", True)])
def test_reboot_nobody_ordered_wakes_only_volatile_sleep(class_name: str, is_awake: bool) -> None:
    """Lasting sleep survives a reboot; volatile sleep is lost, and those watts are disobedient."""
    bench = AsicBench(make_asic(class_name=class_name, is_mining=False))
    bench.run(2.0)
    before_s = bench.asic.reading(bench.now_s).uptime_s
    bench.asic.restart_by_itself(bench.now_s, "outage")
    assert bench.asic.weather(bench.now_s).fault is NetworkFault.REFUSED
    bench.run(60.0)

    assert (bench.asic.state is AsicState.MINING) is is_awake
    assert (bench.asic.disobedient_w > 2000.0) is is_awake
    assert bench.asic.reading(bench.now_s).uptime_s < before_s


def test_volatile_sleeper_is_caught_during_its_boot() -> None:
    """A sleep sent while the board boots takes effect before it hashes."""
    bench = AsicBench(make_asic(class_name="m60s-whatsminer", is_mining=False))
    bench.asic.restart_by_itself(bench.now_s, "outage")
    bench.run(10.0)
    bench.asic.sleep(bench.now_s)

    assert max(bench.run(40.0)) < 400.0
    assert bench.asic.state is AsicState.SLEEPING and bench.asic.disobedient_w == 0.0


def test_draws_more_shows_only_at_the_meter() -> None:
    """The reported watts stay nominal while the true draw is higher."""
    bench = AsicBench(make_asic())
    bench.asic.faults.draws_more_ratio = 1.5
    bench.run(30.0)

    assert bench.asic.power_w == pytest.approx(1.5 * 2794.0, rel=0.02)
    assert bench.asic.reading(bench.now_s).power_w == pytest.approx(2794.0, rel=0.02)
    assert bench.asic.disobeys_cause == "draws_more"


def test_pool_loss_lowers_the_draw_but_not_the_potential() -> None:
    """Want of work is no evidence: what the machine may draw stays its profile."""
    bench = AsicBench(make_asic())
    bench.run(1.0)
    bench.asic.lose_pool()
    bench.run(8.0)
    assert bench.asic.power_w < 900.0 and bench.asic.potential_w == pytest.approx(2794.0, rel=0.01)
    assert not bench.asic.reading(bench.now_s).pool_is_alive

    bench.asic.regain_pool(bench.now_s)

    assert max(bench.run(20.0)) > 2780.0


def test_late_writes_overtake_each_other_for_some_seed() -> None:
    """Two orders sent one second apart can end in the wrong order, and the books name it."""
    outcomes = set()
    for seed in range(30):
        bench = AsicBench(make_asic(seed=seed))
        bench.asic.faults.late_write_s = 6.0
        bench.asic.wake(bench.now_s)
        bench.run(1.0)
        bench.asic.sleep(bench.now_s)
        bench.run(25.0)
        outcomes.add((bench.asic.state, bench.asic.disobeys_cause))

    assert (AsicState.SLEEPING, "") in outcomes
    assert (AsicState.MINING, "reordered write") in outcomes


def test_power_limit_moves_a_whatsminer_and_not_a_luxos_machine() -> None:
    """A firmware without the verb changes nothing."""
    whatsminer = AsicBench(make_asic(class_name="m60s-whatsminer"))
    luxos = AsicBench(make_asic())
    for bench in (whatsminer, luxos):
        bench.asic.set_power_limit(bench.now_s, 2400.0)
        bench.run(30.0)

    assert whatsminer.asic.power_w == pytest.approx(2400.0, rel=0.02)
    assert whatsminer.asic.reading(30.0).power_limit_w == pytest.approx(2400.0)
    assert luxos.asic.power_w == pytest.approx(2794.0, rel=0.02)
