"""What a site tells its cluster while pods come, wait, are kept and leave: the real engine, mover and reporter in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from swingbus.faults import OverBudget, Unreachable
from swingbus_controller.app.pool_reporter import WORDS_EVERY_S
from swingbus_controller.app.pool_seeing import PoolMemory, see_pools
from swingbus_controller.domain.cluster.facts import OnBlocked, PodRef, PoolMode
from swingbus_controller.domain.cluster.pool_facts import Bar
from swingbus_controller.domain.cluster.pool_words import GpuCounts, PoolWords, Story, Truth
from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.flips.no_more import PlanReasons
from swingbus_controller.domain.planning.plan import Authority, Shortfall
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome
from tests.fakes.pod_site import POOL
from tests.fakes.reported_site import ReportedSite

Settled = Callable[..., ReportedSite]


def told(site: ReportedSite, kind: str) -> tuple[str, str]:
    """Return a condition's truth and reason."""
    condition = site.condition(kind)
    return condition.truth.value, condition.reason


def test_resting_site_tells_its_counts_and_writes_nothing_more(settled: Settled) -> None:
    """Every GPU counts once; while nothing changes, the same words are offered again once a minute, for others may write too."""
    site = settled()
    assert site.words.gpus == GpuCounts(total=8, mining=8)
    assert {each.type for each in site.words.conditions if each.truth is Truth.TRUE} == {
        "Ready",
        "WithinLimit",
        "DemandServed",
        "AgentsReporting",
        "GateEnforced",
    }
    assert site.words.limit_w == 130_000
    before, words = site.writes_count(), site.words
    site.run(300)
    assert site.writes_count() - before == 5
    assert site.words == words


def test_pods_that_come_are_told_from_the_gate_to_the_end_of_their_flips(settled: Settled) -> None:
    """Waiting, flipping, serving; each event once, with its flip."""
    site = settled()
    site.cluster.stories.clear()
    site.cluster.deploy("chat", 3)
    site.run(2)
    assert (site.words.waiting_pods, site.words.waiting_gpus) == (3, 3)
    assert site.words.oldest_unix_s == min(pod.made_unix_s for pod in site.cluster.pods_of("chat"))
    assert told(site, "DemandServed") == ("True", "Arriving")
    assert site.words.gpus.flipping == 3
    assert site.words.reserved_w > 0
    granted_w = site.words.granted_w
    assert site.run(120, lambda: site.cluster.ready_count("chat") == 3 and site.is_quiet()), site.explain()
    site.run(2)
    assert site.words.gpus == GpuCounts(total=8, inference=3, mining=5)
    assert (site.words.waiting_pods, site.words.reserved_w) == (0, 0)
    oldest_unix_s: float | None = site.words.oldest_unix_s
    assert oldest_unix_s is None
    assert site.words.granted_w >= granted_w
    pods = {pod.ref: pod for pod in site.cluster.pods_of("chat")}
    lifted = site.stories("GateLifted")
    assert {(story.about, story.flip) for story in lifted} == {(ref, pod.flip) for ref, pod in pods.items()}
    assert all("node gpu1" in story.text for story in lifted)
    stopped, done = site.stories("MinerStopped"), site.stories("FlipDone")
    flips = {pod.flip for pod in pods.values()}
    assert {story.flip for story in stopped} == {story.flip for story in done} == flips
    assert {(story.kind, story.about) for story in stopped} == {("Node", "gpu1")}
    assert {(story.kind, story.about, story.uid) for story in done} == {("CapacityPool", "pool", "pool-1")}
    assert len(site.cluster.stories) == 9
    assert site.gauges.flips[-3:] == [("pool", "mining to inference", "active")] * 3


def test_miners_that_come_back_are_told_on_their_node(settled: Settled) -> None:
    """Each with the flip that made it."""
    site = settled()
    made = site.stories("MinerStarted")
    assert {(story.about, story.flip) for story in made} == {
        (pod.node, pod.flip) for node in ("gpu1", "gpu2") for pod in site.cluster.miners_on(node)
    }


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (replace(POOL, dwell_mining_s=600.0), "Dwell"),
        (replace(POOL, mode=PoolMode.DRAIN), "PoolNotReady"),
        (replace(POOL, mode=PoolMode.ADVISORY), "PoolNotReady"),
    ],
    ids=["dwell", "drain", "advisory"],
)
def test_pool_s_own_settings_are_why_a_pod_waits(settled: Settled, pool: Any, reason: str) -> None:
    """And the words name the pod."""
    site = settled(pool=pool)
    site.cluster.deploy("chat", 1)
    site.run(15)
    assert told(site, "DemandServed") == ("False", reason)
    assert "customers/chat" in site.condition("DemandServed").message


def test_caps_below_every_operating_point_are_told_as_what_they_are(settled: Settled) -> None:
    """Not as a price: who waits can never come before somebody raises the cap, and the words say which field that is."""
    site = settled(pool=replace(POOL, inference_cap_w=100.0))
    site.cluster.deploy("chat", 1)
    site.run(15)
    assert told(site, "DemandServed") == ("False", "NoFit")
    assert "spec.caps.inference (100 W)" in site.condition("DemandServed").message


def test_advisory_pool_is_not_ready_and_says_how_to_let_it(settled: Settled) -> None:
    """The reason is the check's own."""
    site = settled(pool=replace(POOL, mode=PoolMode.ADVISORY))
    assert told(site, "Ready") == ("False", "Advisory")
    assert "set spec.mode to Auto" in site.condition("Ready").message


def test_pinned_banks_are_why_a_pod_waits(settled: Settled) -> None:
    """With who pinned them."""
    site = settled()
    for bank in ("gpu1/gpus", "gpu2/gpus"):
        site.commands.set_pin(site.order(f"pin-{bank}"), bank=bank, pinned=True, duration_s=None)
    site.cluster.deploy("chat", 1)
    site.run(15)
    assert told(site, "DemandServed") == ("False", "Pinned")
    assert "pinned by ada" in site.condition("DemandServed").message


def test_full_feeder_is_why_pods_wait_and_is_named(settled: Settled) -> None:
    """Watts that a curtailment takes; it is told too, with how far it is."""
    site = settled()
    site.curtail(9_500.0, notice_s=5, duration_s=4_000)
    site.run(3)
    assert told(site, "Curtailed") == ("False", "Announced")
    site.run(100)
    assert told(site, "Curtailed")[0] == "True"
    assert site.words.limit_w == 9_500
    site.cluster.deploy("chat", 2)
    site.run(40)
    assert told(site, "DemandServed") == ("False", "NoWatts")
    assert "feeder grid is full" in site.condition("DemandServed").message


def test_more_pods_than_gpus_are_told_as_full(settled: Settled) -> None:
    """Nothing can be done but to add nodes."""
    site = settled()
    site.cluster.deploy("chat", 12)
    assert site.run(300, lambda: site.words.gpus.inference == 8), site.explain()
    site.run(70)
    assert told(site, "DemandServed") == ("False", "Full")
    assert site.words.waiting_pods == 4


def test_budget_that_keeps_pods_in_a_shed_is_told_once_per_pod_and_as_a_condition(settled: Settled) -> None:
    """However often the mover asks."""
    site = settled()
    site.cluster.deploy("chat", 3, min_available=3)
    assert site.run(120, lambda: site.cluster.ready_count("chat") == 3 and site.is_quiet()), site.explain()
    assert told(site, "DrainBlocked") == ("False", "NothingBlocked")
    site.curtail(12_000.0, notice_s=5, duration_s=600)
    site.run(30)
    assert told(site, "DrainBlocked") == ("True", "BudgetKeepsPods")
    assert "needs 3 healthy pods and has 3" in site.condition("DrainBlocked").message
    blocked = [story for story in site.cluster.stories if story.reason == "EvictionBlocked"]
    assert {story.about for story in blocked} == {pod.ref for pod in site.cluster.pods_of("chat")}
    assert len(blocked) == 3
    assert all(story.is_warning and "customers/chat" in story.text for story in blocked)
    assert site.gauges.evictions.count("blocked") > 3
    # Who stays is told for as long as nobody asks again, then no more.
    site.cluster.deploy("chat", 0)
    site.run(10)
    assert told(site, "DrainBlocked") == ("False", "NothingBlocked")


def test_pods_that_are_deleted_over_their_budget_are_told_so(settled: Settled) -> None:
    """Not as evicted: the budget said no. Without the right the pool names the value that gives it."""
    site = settled()
    site.cluster.may_delete_customers = False
    site.cluster.state.see_pool(replace(POOL, on_blocked=OnBlocked.DELETE))
    site.cluster.deploy("chat", 3, min_available=3)
    assert site.run(120, lambda: site.cluster.ready_count("chat") == 3 and site.is_quiet()), site.explain()
    before = {pod.ref for pod in site.cluster.pods_of("chat")}
    site.curtail(12_000.0, notice_s=5, duration_s=600)
    assert site.run(60, lambda: told(site, "DrainBlocked") == ("True", "DeleteForbidden")), site.explain()
    assert "controller.mayDeletePods=true" in site.condition("DrainBlocked").message
    site.cluster.may_delete_customers = True
    assert site.run(90, lambda: not site.cluster.evicted and len(deleted(site)) == 3), site.explain()
    assert {story.about for story in deleted(site)} == before
    assert site.gauges.evictions.count("overruled") == 3 and "taken" not in site.gauges.evictions
    assert all(story.is_warning and "customers/chat kept it" in story.text for story in deleted(site))
    site.run(10)
    assert told(site, "DrainBlocked") == ("False", "NothingBlocked")


def deleted(site: ReportedSite) -> list[Story]:
    """Return what was told of pods that were deleted over their budgets."""
    return [story for story in site.cluster.stories if story.reason == "DeletedOverBudget"]


def test_silent_kubelet_makes_gpus_unknown_and_silent_agent_too(settled: Settled) -> None:
    """Nobody is counted at work whom nobody sees."""
    site = settled()
    site.agents["gpu1"].is_kubelet_silent = True  # type: ignore[attr-defined]
    site.run(3)
    assert told(site, "AgentsReporting") == ("False", "KubeletSilent")
    assert site.words.gpus == GpuCounts(total=8, mining=4, unknown=4)
    site.agents["gpu2"].is_linked = False
    site.run(30)
    assert told(site, "AgentsReporting") == ("False", "AgentSilent")
    assert site.words.gpus == GpuCounts(total=8, unknown=8)


def test_kind_that_is_not_followed_for_long_is_told_until_it_is(settled: Settled) -> None:
    """A role was narrowed: the condition says which kind is old and what to grant; a watch that begins again at once is no news."""
    site = settled()
    site.cluster.state.troubles = lambda: {"nodes": "FORBIDDEN: grant the verb 'list' on 'nodes' to our role"}
    site.run(10)
    assert told(site, "Ready") == ("True", "Ready")
    site.run(25)
    assert told(site, "Ready") == ("False", "ClusterUnseen")
    assert "nodes is old: FORBIDDEN: grant the verb 'list'" in site.condition("Ready").message
    site.cluster.state.troubles = dict
    site.run(20)
    assert told(site, "Ready") == ("True", "Ready")


def test_pods_that_nobody_let_go_break_the_gate_until_they_are_gone(settled: Settled) -> None:
    """A namespace that is not enrolled; their GPUs count as what they are."""
    site = settled()
    site.cluster.deploy("wild", 1, is_gated=False)
    site.run(15)
    assert told(site, "GateEnforced") == ("False", "UngatedPods")
    assert "customers/wild" in site.condition("GateEnforced").message
    site.cluster.deploy("wild", 0)
    assert site.run(60, lambda: told(site, "GateEnforced") == ("True", "AllLetGo"))


def test_process_that_outlives_its_pod_is_told_when_it_stays(settled: Settled) -> None:
    """A moment is no news: every pod's processes end a little after it."""
    site = settled()
    site.cluster.deploy("chat", 1)
    assert site.run(120, lambda: site.cluster.ready_count("chat") == 1 and site.is_quiet()), site.explain()
    site.cluster.force_delete(site.cluster.pods_of("chat")[0].ref, lingers_s=60.0)
    site.run(5)
    assert site.words.gpus.unknown == 1
    assert told(site, "GateEnforced") == ("True", "AllLetGo")
    site.run(20)
    assert told(site, "GateEnforced") == ("False", "UnnamedProcess")
    site.run(60)
    assert told(site, "GateEnforced") == ("True", "AllLetGo")
    assert site.words.gpus.unknown == 0


def test_node_that_rejects_pods_is_told_after_the_third(settled: Settled) -> None:
    """With the kubelet's reason."""
    site = settled()
    site.cluster.failing.update({"gpu1", "gpu2"})
    site.cluster.deploy("chat", 2)
    assert site.run(200, lambda: told(site, "Ready") == ("False", "NodeRejectsPods")), site.explain()
    assert "UnexpectedAdmissionError" in site.condition("Ready").message


def test_missing_template_is_told_while_miners_are_refused_and_not_longer(settled: Settled) -> None:
    """The mover asks again within half a minute; once one was made it is over."""
    site = settled()
    make_miner, is_missing = site.cluster.make_miner, True

    async def refuse(*args: Any, **options: Any) -> CallOutcome:
        if is_missing:
            return CallOutcome(answer=CallAnswer.REFUSED, detail="there is no PodTemplate miner: create it")
        return await make_miner(*args, **options)

    site.cluster.make_miner = refuse  # type: ignore[method-assign]
    site.cluster.force_delete(site.cluster.miners_on("gpu1")[0].ref, lingers_s=0.0)
    site.run(60)
    assert told(site, "Ready") == ("False", "MinersNotMade")
    assert "create it" in site.condition("Ready").message
    is_missing = False
    assert site.run(60, lambda: told(site, "Ready") == ("True", "Ready"))


def test_locked_out_bank_and_lowered_authority_are_told(settled: Settled) -> None:
    """Both are an operator's own doing, and the words say how to undo it."""
    site = settled()
    site.commands.set_lockout(site.order("lock"), bank="gpu1/gpus", locked_out=True, cleared_by="")
    site.run(5)
    assert told(site, "Ready") == ("False", "LockedOut")
    site.commands.set_authority(site.order("lower"), authority=Authority.ADVISE)
    site.run(5)
    assert told(site, "Ready") == ("False", "AuthorityTooLow")


def test_flip_that_fails_is_a_warning_on_the_pool_with_its_cause(settled: Settled) -> None:
    """A pod that never becomes ready: its flip is rolled back, and says why."""
    site = settled()
    site.cluster.deploy("chat", 1)
    site.cluster.never_ready.update(f"chat-{number}" for number in range(200))
    assert site.run(300, lambda: bool(site.flips(Phase.ROLLED_BACK))), site.explain()
    site.run(2)
    (flip, *_) = site.flips(Phase.ROLLED_BACK)
    story = next(story for story in site.cluster.stories if story.flip == flip.id and story.reason == "FlipRolledBack")
    assert flip.undo_cause and flip.undo_cause in story.text
    assert story.at_unix_s == flip.axis.unix_s(flip.since_s)


def test_restarted_controller_tells_no_old_flip_again(settled: Settled) -> None:
    """What ended long ago was told by whoever ran before; what ended a moment ago is told again under the same name."""
    site = settled()
    site.run(120)
    site.cluster.stories.clear()
    site.restart_controller()
    site.run(60)
    assert [story.reason for story in site.cluster.stories] == []
    site.cluster.deploy("chat", 1)
    assert site.run(120, lambda: bool(site.stories("FlipDone"))), site.explain()
    site.restart_controller()
    site.run(30)
    assert [story.reason for story in site.cluster.stories].count("FlipDone") == 2
    assert len(site.stories("FlipDone")) == 1


def test_restarted_controller_does_not_tell_that_nobody_reports(settled: Settled) -> None:
    """Agents need a moment to come back; a status that says otherwise would be wrong a second later."""
    site = settled()
    seen: list[tuple[str, str]] = []
    site.restart_controller()
    for _ in range(20):
        site.step()
        seen.append(told(site, "AgentsReporting"))
    assert set(seen) == {("True", "AllReport")}


def test_nothing_is_written_without_the_permit(settled: Settled) -> None:
    """Whoever holds it reports; figures for our own metrics go on."""
    site = settled()
    site.cluster.permit_s = 0.0
    site.gauges.pools.clear()
    before = site.writes_count()
    site.cluster.deploy("chat", 1)
    site.run(80)
    assert site.writes_count() == before
    assert site.gauges.pools["pool"].waiting_pods == 1


def test_faults_are_waited_for_longer_each_time_and_the_newest_words_are_written_then(settled: Settled) -> None:
    """An API server that is away is asked once in a while; what changed meanwhile is not lost."""
    site = settled()
    asked: list[float] = []
    write_pool, is_away = site.cluster.write_pool, True

    async def fail(*args: Any) -> CallOutcome:
        asked.append(site.clock.s)
        if is_away:
            raise Unreachable("away")
        return await write_pool(*args)

    site.cluster.write_pool = fail  # type: ignore[method-assign,assignment]
    site.cluster.deploy("odd", 1, selector={"zone": "b"})
    site.run(100)
    gaps = [after - before for before, after in pairwise(asked)]
    assert gaps == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0][: len(gaps)] and len(gaps) >= 5
    is_away = False
    site.run(70)
    assert told(site, "DemandServed") == ("False", "NoFit")


def test_server_that_asks_to_wait_is_waited_for(settled: Settled) -> None:
    """As long as it says."""
    site = settled()
    asked: list[float] = []

    async def busy(*args: Any) -> CallOutcome:
        asked.append(site.clock.s)
        raise OverBudget("busy", metadata={"retry_after_s": "20"})

    site.cluster.write_pool = busy  # type: ignore[method-assign,assignment]
    site.cluster.deploy("odd", 1, selector={"zone": "b"})
    site.run(30)
    assert [after - before for before, after in pairwise(asked)] == [20.0]


def test_stale_pool_comes_round_with_its_newest_copy(settled: Settled) -> None:
    """Somebody else wrote in between: not a fault, and not a success."""
    site = settled()
    answers = [CallAnswer.STALE, CallAnswer.STALE, CallAnswer.TAKEN]
    asked: list[float] = []

    async def stale(*args: Any) -> CallOutcome:
        asked.append(site.clock.s)
        return CallOutcome(answer=answers[min(len(asked), len(answers)) - 1])

    site.cluster.write_pool = stale  # type: ignore[method-assign,assignment]
    site.cluster.deploy("odd", 1, selector={"zone": "b"})
    site.run(10)
    assert len(asked) == 3 and asked[2] - asked[0] == 2.0


def test_words_alone_are_written_seldom(settled: Settled) -> None:
    """A message that changes every second, while nothing else does, is written four times a minute."""
    site = settled()
    desk = site.engine.desk
    desk.look = lambda now_s: None  # type: ignore[method-assign] # or it would see the bank as it is
    before = site.writes_count()
    for second in range(61):
        desk.sights["gpu1/gpus"] = replace(desk.sights["gpu1/gpus"], frozen=f"Test: {second} seconds")
        site.step()
    assert site.writes_count() - before == 1 + 60 / WORDS_EVERY_S


def test_pool_of_another_site_is_left_alone(settled: Settled) -> None:
    """Its own controller writes it; one that a bank of ours names by mistake is told why nothing moves."""
    site = settled()
    site.cluster.state.see_pool(replace(POOL, name="theirs", uid="pool-2", site="south"))
    site.cluster.state.see_pool(replace(POOL, name="idle", uid="pool-3", node_selector={"gpu": "none"}))
    site.run(3)
    words: dict[str, PoolWords] = site.cluster.words
    assert "theirs" not in words
    assert next(each for each in words["idle"].conditions if each.type == "Ready").reason == "NoBank"
    site.cluster.state.see_pool(replace(POOL, site="south"))
    site.run(3)
    assert told(site, "Ready") == ("False", "SiteDiffers")


def test_budgets_that_keep_pods_elsewhere_or_kept_them_long_ago_are_not_told(settled: Settled) -> None:
    """The condition is of this pool and of now."""
    site = settled()
    site.cluster.deploy("chat", 2)
    assert site.run(120, lambda: site.cluster.ready_count("chat") == 2 and site.is_quiet()), site.explain()
    blockings, now_s = site.engine.desk.blockings, site.clock.s
    one, two = (pod.ref for pod in site.cluster.pods_of("chat"))
    site.cluster.deploy("else", 1, selector={"zone": "b"})
    (elsewhere,) = site.cluster.pods_of("else")
    for ref, at_s in ((one, now_s), (two, now_s - 3600.0), (elsewhere.ref, now_s)):
        blockings.note_blocked(ref, budget="b", detail="", now_s=at_s)
    ((facts, _),) = see_pools(
        site.engine, site.cluster.state, PoolMemory(), now_s=now_s, now_unix_s=site.clock.now().timestamp()
    )
    assert set(facts.blocked) == {one}


def test_agent_that_obeys_another_epoch_is_not_heard(settled: Settled) -> None:
    """What it says of its GPUs was true under somebody else's orders."""
    site = settled()
    report, bank = site.engine._reports["gpu1/gpus"]
    site.engine._reports["gpu1/gpus"] = (report, replace(bank, epoch=bank.epoch - 1))
    ((facts, _),) = see_pools(
        site.engine, site.cluster.state, PoolMemory(), now_s=site.clock.s, now_unix_s=site.clock.now().timestamp()
    )
    assert {each.bank: (each.is_silent, each.gpus.unknown) for each in facts.banks} == {
        "gpu1/gpus": (True, 4),
        "gpu2/gpus": (False, 0),
    }


def test_miners_that_leave_without_a_flip_are_told_each(settled: Settled) -> None:
    """A lockout stops all of them at once: one event per life, not one per node."""
    site = settled()
    miners = {pod.uid for pod in site.cluster.miners_on("gpu1")}
    site.commands.set_lockout(site.order("lock"), bank="gpu1/gpus", locked_out=True, cleared_by="")
    site.run(10)
    stopped = site.stories("MinerStopped")
    assert {story.once_for for story in stopped} == miners and len(miners) == 4
    assert {story.flip for story in stopped} == {""}


@pytest.mark.parametrize("price", [0.0001, None], ids=["too low", "unknown"])
def test_price_that_does_not_pay_is_why_nobody_more_comes(settled: Settled, price: float | None) -> None:
    """Unless a feeder is full too: then watts are what lacks."""
    site = settled()
    site.market.inference = price
    site.cluster.deploy("chat", 1)
    site.run(15)
    plan, admission = site.engine.plan, site.engine.admission
    told_now = PlanReasons(plan, admission).of("gpu1/gpus", POOL)
    assert told_now.bar is Bar.NOT_WORTH and "swingctl plan why-not gpu1/gpus inference" in told_now.words
    assert plan is not None
    full = Shortfall(inference_class="h100", reservation=None, device_count=1.0, reason="feeder grid is full")
    assert PlanReasons(replace(plan, shortfalls=(full,)), admission).of("gpu1/gpus", POOL).bar is Bar.NO_WATTS


def test_bank_that_was_not_taken_over_takes_nobody(settled: Settled) -> None:
    """No plan yet, or one without this bank."""
    site = settled()
    for plan, bank in ((None, "gpu1/gpus"), (site.engine.plan, "gpu9/gpus")):
        assert PlanReasons(plan, None).of(bank, POOL).bar is Bar.UNAVAILABLE


def test_pod_s_ref_is_what_its_story_is_about(settled: Settled) -> None:
    """A pod that comes again under the same name is another life."""
    site = settled()
    site.cluster.deploy("chat", 1)
    assert site.run(60, lambda: bool(site.stories("GateLifted"))), site.explain()
    (story,) = site.stories("GateLifted")
    assert isinstance(story.about, PodRef) and story.uid == story.about.uid
