"""What operators say of pods: pools that only advise, drain, are missing or overlap; disruption budgets; limits that fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from swingbus_controller.domain.cluster.facts import OnBlocked, PoolMode
from swingbus_controller.domain.flips.flip import Direction, Phase
from tests.fakes.pod_site import POOL, PodAgent, PodSite

MakeSite = Callable[..., PodSite]


def quiet(site: PodSite, *, serving: int, mining: int, seconds: int = 200) -> None:
    """Wait until so many GPUs truly work for each, and nothing is under way."""

    def is_there() -> bool:
        return site.tenants() == {"miner": mining, "llm": serving} and site.is_quiet()

    assert site.run(seconds, is_there), f"{site.tenants()}\n{site.explain()}"
    site.assert_right()


def serving_site(pod_site: MakeSite, replicas: int, **more: Any) -> PodSite:
    """Return a site where a workload of so many pods is served and has been for its dwell."""
    site = pod_site()
    site.cluster.deploy("web", replicas, **more)
    quiet(site, serving=replicas, mining=8 - replicas)
    site.run(15)
    return site


def frozen_by(site: PodSite, change: Callable[[], None], undo: Callable[[], None]) -> None:
    """Check that a change freezes both nodes as they are, and that all goes on once it is undone."""
    change()
    site.run(2)
    calls, flips = len(site.cluster.log), len(site.state.flips)
    site.cluster.deploy("web", 4)
    site.run(60)
    assert site.tenants() == {"miner": 6, "llm": 2}
    assert (len(site.cluster.log), len(site.state.flips)) == (calls, flips)
    site.assert_right()
    undo()
    quiet(site, serving=4, mining=4)


def test_a_pool_that_only_advises_moves_nobody(pod_site: MakeSite) -> None:
    """Advisory: what runs runs on, no call is made; set to Auto the demand is served."""
    site = serving_site(pod_site, 2)
    see = site.cluster.state.see_pool
    frozen_by(site, lambda: see(replace(POOL, mode=PoolMode.ADVISORY)), lambda: see(POOL))


def test_without_its_pool_a_bank_is_frozen(pod_site: MakeSite) -> None:
    """Somebody deletes the pool: nobody is moved until it is back."""
    site = serving_site(pod_site, 2)
    state = site.cluster.state
    frozen_by(site, lambda: state.lose_pool("pool"), lambda: state.see_pool(POOL))


def test_two_pools_that_select_a_node_freeze_it(pod_site: MakeSite) -> None:
    """A second pool selects the same nodes: nobody is moved until it is gone."""
    site = serving_site(pod_site, 2)
    state = site.cluster.state
    other = replace(POOL, name="other", uid="pool-2")
    frozen_by(site, lambda: state.see_pool(other), lambda: state.lose_pool("other"))


def test_a_pool_of_another_site_freezes_its_banks(pod_site: MakeSite) -> None:
    """The pool is said to be another site's: nobody is moved until that is mended."""
    site = serving_site(pod_site, 2)
    see = site.cluster.state.see_pool
    frozen_by(site, lambda: see(replace(POOL, site="south")), lambda: see(POOL))


def test_a_pool_that_drains_sends_everybody_away_and_takes_nobody(pod_site: MakeSite) -> None:
    """Drain: miners leave, pods are evicted and wait behind the gate, all GPUs rest; set to Auto they come back."""
    site = serving_site(pod_site, 2)
    site.cluster.state.see_pool(replace(POOL, mode=PoolMode.DRAIN))
    quiet(site, serving=0, mining=0, seconds=300)
    site.run(60)
    assert site.tenants() == {"miner": 0, "llm": 0}
    assert [pod.is_gated for pod in site.cluster.pods_of("web")] == [True, True]
    assert len(site.cluster.evicted) == 2
    site.cluster.state.see_pool(POOL)
    quiet(site, serving=2, mining=6)


def test_a_pool_that_does_not_mine_lets_its_gpus_rest(pod_site: MakeSite) -> None:
    """Mining is switched off: the miners leave, pods are served all the same."""
    site = serving_site(pod_site, 2)
    site.cluster.state.see_pool(replace(POOL, is_mining_enabled=False))
    quiet(site, serving=2, mining=0)
    site.cluster.deploy("web", 3)
    quiet(site, serving=3, mining=0)


def test_a_budget_that_says_no_keeps_its_pod_and_the_flip_is_undone(pod_site: MakeSite) -> None:
    """Cap: the eviction is asked for until its deadline, then the pod is left where it is and serves on."""
    site = serving_site(pod_site, 2, min_available=2)
    site.market.inference = 0.0
    asked = 0
    for _ in range(90):
        site.step()
        asked = sum(call.startswith("evict") for call in site.cluster.log)
    assert 2 <= asked <= 20
    assert not site.cluster.evicted
    assert site.run(60, site.is_quiet), site.explain()
    assert site.cluster.ready_count("web") == 2
    assert site.flips(Phase.ROLLED_BACK)
    assert not site.flips(Phase.FAILED)
    site.assert_right()


@pytest.mark.parametrize("on_blocked", [OnBlocked.WAIT, OnBlocked.DELETE])
def test_a_budget_that_says_no_is_waited_for_or_overruled_as_the_pool_says(
    pod_site: MakeSite, on_blocked: OnBlocked
) -> None:
    """Wait: nothing leaves while the budget says no. Delete: after the deadline the pod is deleted all the same."""
    site = serving_site(pod_site, 1, min_available=1)
    pod = site.cluster.pods_of("web")[0]
    site.cluster.state.see_pool(replace(POOL, on_blocked=on_blocked))
    site.market.inference = 0.0
    site.run(15)
    assert site.cluster.state.pod(pod.ref) is not None
    site.run(40)
    is_there = site.cluster.state.pod(pod.ref) is not None
    assert is_there == (on_blocked is OnBlocked.WAIT)
    assert not site.cluster.evicted
    site.assert_right()


def test_a_pod_that_may_not_be_deleted_stays_and_is_asked_for_again(pod_site: MakeSite) -> None:
    """Delete without the right: the refusal is kept beside the budget's no, and is told for as long as it lasts; with the right it goes."""
    site = serving_site(pod_site, 1, min_available=1)
    (pod,) = site.cluster.pods_of("web")
    site.cluster.may_delete_customers = False
    site.cluster.state.see_pool(replace(POOL, on_blocked=OnBlocked.DELETE))
    site.market.inference = 0.0
    site.run(40)
    kept = site.engine.desk.blockings.blocked[pod.ref]
    assert kept.budget == "web" and "cannot delete resource" in kept.why_not_deleted
    assert kept.last_s > kept.since_s + POOL.evict_deadline_s
    site.cluster.may_delete_customers = True
    assert site.run(60, lambda: site.cluster.state.pod(pod.ref) is None), site.explain()
    site.assert_right()


def points(site: PodSite) -> list[str]:
    """Return the operating point of each GPU unit, as recorded."""
    held = [site.state.holdings[bank] for bank in ("gpu1/gpus", "gpu2/gpus")]
    return [place.point for holdings in held for place in holdings.placements for _ in place.units]


def test_a_limit_that_falls_lowers_caps_first_and_evicts_nobody(pod_site: MakeSite) -> None:
    """A curtailment that resting ASICs and caps can meet costs no pod; afterwards the caps are gone."""
    site = serving_site(pod_site, 8)
    site.curtail(site.true_w()["grid"] - 25_000.0, notice_s=60.0, duration_s=120.0)
    seen = set()
    for _ in range(170):
        site.step()
        seen |= set(points(site))
        assert site.tenants()["llm"] == 8
    assert seen == {"serve", "serve-capped"}
    assert site.run(200, lambda: set(points(site)) == {"serve"} and site.is_quiet()), site.explain()
    assert not site.cluster.evicted
    site.assert_right()


def test_a_deep_curtailment_caps_then_evicts_and_afterwards_all_are_back(pod_site: MakeSite) -> None:
    """Less than all caps need: some pods are evicted and wait, the limit holds; then each is served again, none of them twice."""
    site = serving_site(pod_site, 8)
    site.curtail(site.true_w()["grid"] - 27_000.0, notice_s=60.0, duration_s=120.0)
    site.run(100)
    gone = len(site.cluster.evicted)
    assert 0 < gone < 8
    assert site.tenants()["llm"] == 8 - gone
    assert "serve-capped" in points(site)
    assert site.run(600, lambda: site.cluster.ready_count("web") == 8 and site.is_quiet()), site.explain()
    assert len(site.cluster.evicted) == gone
    lifted = [call for call in site.cluster.log if call.startswith("lift")]
    assert len(lifted) == len(set(lifted)) == 8 + gone
    site.assert_right()


def test_a_curtailment_of_a_workload_that_waits_holds_without_evicting_it(pod_site: MakeSite) -> None:
    """A sibling is gated, so nobody of the workload is evicted: its GPUs are held at less, and the limit holds."""
    site = serving_site(pod_site, 8)
    site.cluster.deploy("web", 9)
    site.curtail(site.true_w()["grid"] - 27_000.0, notice_s=60.0, duration_s=120.0)
    for _ in range(200):
        site.step()
        assert site.tenants()["llm"] == 8
    assert not site.cluster.evicted
    site.assert_right()


def test_a_workload_that_waits_for_more_pods_is_not_made_smaller(pod_site: MakeSite) -> None:
    """One of its replicas is gated: for money none of the others is evicted."""
    site = serving_site(pod_site, 8)
    site.cluster.deploy("web", 9)
    site.market.inference = 0.0
    site.run(120)
    assert not site.cluster.evicted
    assert site.tenants()["llm"] == 8
    site.assert_right()


def test_a_pod_that_leaves_while_its_flip_is_undone_leaves_an_empty_place(pod_site: MakeSite) -> None:
    """The budget said no, the flip goes back, and then its owner takes the pod away: nobody is waited for, and the next one may come."""
    site = serving_site(pod_site, 2, min_available=2)
    agents = [agent for agent in site.agents.values() if isinstance(agent, PodAgent)]
    for agent in agents:
        agent.shows_servers_late = True
    site.cluster.state.see_pool(replace(POOL, mode=PoolMode.DRAIN))

    def is_going_back() -> bool:
        open_flips = [flip for flip in site.state.open_flips() if flip.pod is not None]
        return bool(open_flips) and all(flip.direction is Direction.UNDO for flip in open_flips)

    assert site.run(120, is_going_back), site.explain()
    site.cluster.deploy("web", 0, min_available=2)
    site.cluster.state.see_pool(POOL)
    assert site.run(30, lambda: not site.cluster.pods_of("web")), site.explain()
    for agent in agents:
        agent.shows_servers_late = False
    site.cluster.deploy("next", 2)
    quiet(site, serving=2, mining=6, seconds=90)
    assert site.cluster.ready_count("next") == 2
    assert not site.flips(Phase.FAILED)
