"""A pod that nobody let go pushes a miner out and stays: its bank comes to rest, goes on moving others, and the pool says who is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.power.bank import BankState
from tests.fakes.pod_site import POOL, PodSite
from tests.fakes.reported_site import ReportedSite, settled_reported_site

NODE = {"kubernetes.io/hostname": "gpu1"}


@pytest.fixture
def site() -> Iterator[ReportedSite]:
    """Return a reported site where every GPU mines."""
    made = settled_reported_site()
    yield made
    made.close()


def is_at_rest(site: PodSite) -> bool:
    """Tell whether nothing is under way and every bank's grant is proven."""
    states = {site.state.ledger.state(bank, site.clock.s) for bank in site.banks}
    return site.is_quiet() and states == {BankState.HELD}


def let_in(site: ReportedSite) -> None:
    """Have a stranger push a miner out of a node; that is the scheduler's doing, and the only one."""
    site.cluster.deploy("wild", 1, is_gated=False, namespace="strangers", selector=NODE)
    assert site.run(60, lambda: site.tenants() == {"miner": 7, "llm": 1}), site.explain()
    assert len(site.cluster.preempted) == 1
    site.cluster.preempted.clear()
    site.wrong.clear()


def gate(site: ReportedSite) -> tuple[str, str]:
    """Return what the pool says of the gate."""
    condition = site.condition("GateEnforced")
    return condition.truth.value, condition.reason


@pytest.mark.parametrize("has_price", [True, False])
def test_a_bank_with_a_stranger_comes_to_rest_and_the_pool_names_it(site: ReportedSite, has_price: bool) -> None:
    """Where inference pays it gets a place, else it stays on a miner's; nobody is evicted or made in vain; undone when it goes."""
    if not has_price:
        site.market.inference = None
    let_in(site)
    made = sum(call.startswith("make") for call in site.cluster.log)
    assert site.run(60, lambda: is_at_rest(site)), site.explain()
    site.run(60)
    assert is_at_rest(site), site.explain()
    assert gate(site) == ("False", "UngatedPods")
    assert "strangers/wild" in site.condition("GateEnforced").message
    assert site.tenants() == {"miner": 7, "llm": 1}
    assert sum(call.startswith("make") for call in site.cluster.log) - made <= 1
    places = sum(p.count for p in site.state.holdings["gpu1/gpus"].placements if p.point.startswith("serve"))
    assert places == (1 if has_price else 0)
    site.cluster.deploy("wild", 0)
    assert site.run(120, lambda: site.tenants() == {"miner": 8, "llm": 0} and is_at_rest(site)), site.explain()
    assert site.run(30, lambda: gate(site) == ("True", "AllLetGo"))
    assert not site.cluster.evicted
    site.assert_right()


def test_miners_come_beside_a_stranger_and_none_is_meant_for_its_gpu(site: ReportedSite) -> None:
    """Mining is switched off and on again while it is there: the other GPUs rest and mine, its own is left to it, nothing is in vain."""
    site.market.inference = None
    let_in(site)
    site.cluster.state.see_pool(replace(POOL, is_mining_enabled=False))
    assert site.run(120, lambda: site.tenants() == {"miner": 0, "llm": 1} and is_at_rest(site)), site.explain()
    stays = site.cluster.pods_of("wild")[0].ref
    site.cluster.state.see_pool(POOL)
    flips = set(site.state.flips)
    assert site.run(60, lambda: site.tenants() == {"miner": 7, "llm": 1} and is_at_rest(site)), site.explain()
    site.run(120)
    assert is_at_rest(site), site.explain()
    assert len(site.state.flips.keys() - flips) == 7
    assert gate(site) == ("False", "UngatedPods")
    assert site.cluster.state.pod(stays) is not None
    site.cluster.deploy("wild", 0)
    assert site.run(120, lambda: site.tenants() == {"miner": 8, "llm": 0} and is_at_rest(site)), site.explain()
    assert not site.cluster.evicted
    assert not site.flips(Phase.ROLLED_BACK, Phase.FAILED)
    site.assert_right()
