"""One simulated GPU server: caps, bursts, reboots."""

from __future__ import annotations

import pytest

from swingbus_sim.ports import GpuHealth
from tests.unit.sim.builders import make_host, run_host


def test_cap_bites_within_a_second_and_not_at_once() -> None:
    """A requested limit is enforced 0.1 to 1 s later, then the draw stays at it."""
    host, shelf = make_host()
    shelf.set_work("inference", 1.0)
    run_host(host, 5.0)
    assert host.gpus[0].power_w == pytest.approx(688.0, rel=0.03)
    shelf.request_limit(0, 300.0)
    run_host(host, 0.1, start_s=5.0)
    assert host.gpus[0].enforced_w == 700.0

    run_host(host, 2.0, start_s=5.1)

    assert host.gpus[0].enforced_w == 300.0
    assert host.gpus[0].power_w <= 300.0 * 1.05
    assert shelf.readings[0].throttle_reasons == 0x4


def test_idle_gpu_may_draw_its_enforced_limit() -> None:
    """The potential of an idle GPU is its limit, not its draw."""
    host, shelf = make_host()
    run_host(host, 2.0)
    idle_w, idle_potential_w = host.power_w, host.potential_w
    for index in range(8):
        shelf.request_limit(index, 200.0)
    run_host(host, 3.0, start_s=2.0)

    assert idle_w < 2300.0 and idle_potential_w > 7500.0
    assert host.potential_w == pytest.approx(host.gpu_class.host_w(1600.0))


def test_spike_lifts_inference_together_within_five_percent_of_the_cap() -> None:
    """A burst comes on all inference GPUs at once and passes the cap by less than 5 %."""
    host, shelf = make_host()
    shelf.set_work("inference", 1.0)
    for index in range(8):
        shelf.request_limit(index, 400.0)
    run_host(host, 5.0)
    before_w = sum(g.power_w for g in host.gpus)
    run_host(host, 0.2, start_s=5.0, is_spiking=True)

    after_w = sum(g.power_w for g in host.gpus)
    assert before_w < after_w <= 8 * 400.0 * 1.05


def test_driver_reset_loses_limits_and_books_the_difference() -> None:
    """After a reload the default limit rules, and the watts above the lost one are disobedient until asked again."""
    host, shelf = make_host()
    shelf.set_work("inference", 1.0)
    for index in range(8):
        shelf.request_limit(index, 300.0)
    run_host(host, 5.0)
    host.reset_driver(5.0, "gpu_limits_lost")
    run_host(host, 3.0, start_s=5.0)
    assert shelf.requested_limits_w() == (None,) * 8
    assert host.gpus[0].disobedient_w > 300.0

    for index in range(8):
        shelf.request_limit(index, 300.0)
    run_host(host, 0.1, start_s=8.0)
    assert host.gpus[0].disobedient_w > 300.0, "a request is no cap yet"
    run_host(host, 3.0, start_s=8.1)

    assert all(g.disobedient_w == 0.0 and g.enforced_w == 300.0 for g in host.gpus)


def test_outage_longer_than_the_battery_reboots_the_server() -> None:
    """A ride-through server keeps its limits; one without loses them and is down for its boot time."""
    riding, riding_shelf = make_host(rides_through_s=10.0)
    falling, falling_shelf = make_host()
    for host, shelf in ((riding, riding_shelf), (falling, falling_shelf)):
        shelf.request_limit(0, 300.0)
        run_host(host, 2.0)
        assert run_host(host, 2.0, start_s=2.0, is_powered=False)[-1] == 0.0
        run_host(host, 1.0, start_s=4.0)

    assert riding.is_up and riding_shelf.requested_limits_w()[0] == 300.0
    assert not falling.is_up and falling_shelf.requested_limits_w()[0] is None
    assert falling_shelf.readings[0].health is GpuHealth.LOST
    run_host(falling, 6.0, start_s=5.0)
    assert falling.is_up


def test_tenants_share_a_server_by_their_gpus() -> None:
    """Wall watts go to the tenant whose GPUs draw them."""
    host, shelf = make_host()
    shelf.set_work("mining", 1.0)
    run_host(host, 5.0)
    mining_w, inference_w = host.tenant_watts()

    assert mining_w == pytest.approx(host.power_w) and inference_w == 0.0
