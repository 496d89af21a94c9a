"""What a cluster promises, the other half: miners are made, pools and events written, and nothing is sent by whoever may not write.

It runs where `test_cluster.py` does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, OverBudget, WrongState
from swingbus_controller.domain.cluster.facts import ClusterPod, Pool
from swingbus_controller.domain.cluster.pool_words import GpuCounts, PoolCondition, PoolWords, Story, Truth
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome
from tests.contract.cluster_views import (
    HERE,
    assert_indexed,
    cluster_here,
    miners,
    node_of,
    pool_of,
)
from tests.fakes.cluster_rigs import (
    HOLLOW,
    NO_CLASS,
    ClusterRig,
    until,
    until_told,
)

Call = Callable[[], Awaitable[CallOutcome]]


@pytest.fixture(params=HERE)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ClusterRig]:
    async with cluster_here(request.param, tmp_path) as made:
        yield made


def words(rig: ClusterRig, *, waiting: int = 0) -> PoolWords:
    condition = PoolCondition(type="Ready", truth=Truth.TRUE, reason="Ready", message="all is well")
    generation = pool_of(rig).generation
    return PoolWords(
        generation=generation, epoch=3, gpus=GpuCounts(total=16), waiting_pods=waiting, conditions=(condition,)
    )


def story(rig: ClusterRig, pod: ClusterPod, reason: str = "GateLifted") -> Story:
    return Story(
        kind="Pod", about=pod.ref, uid="", flip="f-1", reason=reason, action="Lift", text="700 W", at_unix_s=1.8e9
    )


async def calls_of(rig: ClusterRig) -> dict[str, Call]:
    """Return every call, each about something that is there; sent, each would be taken."""
    gated, gone, moved = [await rig.make_pod(name) for name in ("gated", "gone", "moved")]
    calls, node, pool = rig.cluster.calls, node_of(rig), pool_of(rig)
    return {
        "delete": lambda: calls.delete_pod(gone.ref, grace_s=1),
        "evict": lambda: calls.evict_pod(moved.ref),
        "lift": lambda: calls.lift_gate(gated, node, pool, flip="f-1"),
        "make": lambda: calls.make_miner(pool, node, slot=0, gpu_count=1, flip="f-2"),
        "write": lambda: calls.write_pool(pool, words(rig)),
        "tell": lambda: calls.tell(story(rig, gated)),
    }


# Miners.


async def test_miner_made_twice_is_one_pod_in_its_slot(rig: ClusterRig) -> None:
    """The second one is the first; it is ours by pool, slot and mark, goes to its node only and pushes nobody out."""
    calls, node, pool = rig.cluster.calls, node_of(rig, 1), pool_of(rig)
    for flip in ("f-1", "f-2"):
        made = await calls.make_miner(pool, node, slot=3, gpu_count=2, flip=flip)
        assert made.answer is CallAnswer.TAKEN
    await until(rig, lambda: any(p.is_ready for p in miners(rig)))
    (miner,) = miners(rig)
    assert (miner.name, miner.miner_pool, miner.slot) == (f"miner-{node.name}-3", pool.name, 3)
    assert (miner.node, miner.aimed_at, miner.gpu_count, miner.flip) == (node.name, node.name, 2, "f-1")
    assert (miner.owner_kind, miner.owner_uid, miner.is_gated) == ("CapacityPool", pool.uid, False)
    assert_indexed(rig)


async def test_name_that_a_foreign_pod_has_is_refused(rig: ClusterRig) -> None:
    """It is named, so that somebody can take it away; it is left alone."""
    name = f"miner-{rig.nodes[0]}-0"
    await rig.make_foreign(name)
    outcome = await rig.cluster.calls.make_miner(pool_of(rig), node_of(rig), slot=0, gpu_count=1, flip="f-1")
    assert outcome.answer is CallAnswer.REFUSED
    assert f"{rig.miner_namespace}/{name}" in outcome.detail


async def test_template_that_is_missing_or_empty_is_named(rig: ClusterRig) -> None:
    """REFUSED with its name; of one without containers a fault with its name, unless the cluster takes none such."""
    calls, node = rig.cluster.calls, node_of(rig)
    outcome = await calls.make_miner(pool_of(rig, "none"), node, slot=0, gpu_count=1, flip="f-1")
    assert outcome.answer is CallAnswer.REFUSED
    assert "PodTemplate none" in outcome.detail and rig.miner_namespace in outcome.detail
    if await rig.make_hollow_template():
        with pytest.raises(InvalidInput, match=f"{rig.miner_namespace}/{HOLLOW} has no container"):
            await calls.make_miner(pool_of(rig, HOLLOW), node, slot=0, gpu_count=1, flip="f-1")
    assert not miners(rig)


async def test_miner_that_admission_refuses_is_refused_in_its_words(rig: ClusterRig) -> None:
    """Here a priority class that nobody made; a quota, a policy or a bad template come the same way: an operator has to read it."""
    pool = replace(pool_of(rig), miner_priority_class=NO_CLASS)
    rig.lack_class()
    outcome = await rig.cluster.calls.make_miner(pool, node_of(rig), slot=0, gpu_count=1, flip="f-1")
    assert outcome.answer is CallAnswer.REFUSED
    assert f"no PriorityClass with name {NO_CLASS} was found" in outcome.detail
    assert not miners(rig)


# Telling.


async def test_pool_is_written_on_change_only(rig: ClusterRig) -> None:
    """The same words are taken and nothing is sent; other ones replace them; a pool that is gone, or another, is GONE."""
    calls = rig.cluster.calls
    before = rig.writes_count()
    assert (await calls.write_pool(pool_of(rig), words(rig))).answer is CallAnswer.TAKEN
    assert await rig.told() == words(rig)
    assert rig.writes_count() == before + 1

    async def is_quiet() -> bool:
        """Its own write has to be seen first."""
        count = rig.writes_count()
        await calls.write_pool(pool_of(rig), words(rig))
        return rig.writes_count() == count

    await until_told(rig, is_quiet)
    before = rig.writes_count()
    assert (await calls.write_pool(pool_of(rig), words(rig))).answer is CallAnswer.TAKEN
    assert rig.writes_count() == before
    assert (await calls.write_pool(pool_of(rig), words(rig, waiting=2))).answer is CallAnswer.TAKEN
    assert await rig.told() == words(rig, waiting=2)
    other = replace(pool_of(rig), uid="00000000-0000-4000-8000-000000000000")
    assert (await calls.write_pool(other, words(rig))).answer is CallAnswer.GONE
    last = pool_of(rig)
    await rig.drop_pool()
    await until(rig, lambda: rig.pool_name not in rig.cluster.state.pools)
    assert (await calls.write_pool(last, replace(words_of(last), waiting_pods=5))).answer is CallAnswer.GONE


async def test_pool_is_written_though_its_watch_is_silent(rig: ClusterRig) -> None:
    """Our own write made our copy old, and nobody tells: the next one is made on what is really there."""
    calls = rig.cluster.calls
    rig.hear(False)
    assert (await calls.write_pool(pool_of(rig), words(rig))).answer is CallAnswer.TAKEN
    assert (await calls.write_pool(pool_of(rig), words(rig, waiting=2))).answer is CallAnswer.TAKEN
    assert await rig.told() == words(rig, waiting=2)
    rig.hear(True)


def words_of(pool: Pool) -> PoolWords:
    return PoolWords(generation=pool.generation, epoch=3, gpus=GpuCounts())


async def test_event_stands_once_however_often_it_is_sent(rig: ClusterRig) -> None:
    """The same flip, reason and life are the same event; another reason or another life is another."""
    pod = await rig.make_pod("p")
    for _ in range(3):
        assert (await rig.cluster.calls.tell(story(rig, pod))).answer is CallAnswer.TAKEN
    assert await rig.events_count(rig.namespace) == 1
    await rig.cluster.calls.tell(story(rig, pod, "FlipDone"))
    assert await rig.events_count(rig.namespace) == 2
    await rig.drop(pod)
    await rig.cluster.calls.tell(story(rig, await rig.make_pod("p")))
    assert await rig.events_count(rig.namespace) == 3


# Who may write.


async def test_without_a_permit_nothing_is_sent(rig: ClusterRig) -> None:
    """Every call says so, and the copy goes on."""
    calls = await calls_of(rig)
    assert rig.cluster.may_write_s() > 0 and rig.cluster.state.permit_left_s() > 0
    before = rig.writes_count()
    rig.forbid_writes()
    assert rig.cluster.may_write_s() <= 0 and rig.cluster.state.permit_left_s() <= 0
    for call in calls.values():
        with pytest.raises(WrongState) as seen:
            await call()
        assert seen.value.reason == "NO_WRITE_PERMIT"
    assert rig.writes_count() == before
    assert await rig.told() is None
    pods = [p for p in rig.cluster.state.pods.values() if p.namespace == rig.namespace]
    assert len(pods) == 3 and all(p.is_waiting for p in pods)
    assert (await rig.make_pod("later")).is_waiting


@pytest.mark.parametrize("which", ["delete", "evict", "lift", "make", "write", "tell"])
async def test_busy_server_is_left_alone(rig: ClusterRig, which: str) -> None:
    """It asks to wait: until then each call says so and nothing is sent; afterwards it is done as if nothing had been."""
    call = (await calls_of(rig))[which]
    rig.make_busy()
    with pytest.raises(OverBudget) as seen:
        await call()
    assert 0 < float(seen.value.metadata["retry_after_s"]) <= 1.0
    before = rig.writes_count()
    with pytest.raises(OverBudget):
        await call()
    assert rig.writes_count() == before
    await rig.calm()
    assert (await call()).answer is CallAnswer.TAKEN


async def test_change_wakes_whoever_waits(rig: ClusterRig) -> None:
    """And each change is counted."""
    before = rig.cluster.state.revision_count
    await rig.make_pod("p")
    await rig.cluster.wait_changed()
    assert rig.cluster.state.revision_count > before
    assert rig.cluster.state.is_synced
