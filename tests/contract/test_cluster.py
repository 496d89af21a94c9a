"""What a cluster promises to the part that decides: one suite for the fake in virtual time and for the adapter over an API server.

Here it runs on the fake and on the adapter over the API server's double; `tests/cluster/test_cluster_contract.py` runs all of it on the
adapter over a real API server whose nodes are KWOK's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, OverBudget, WrongState
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.domain.cluster.facts import HOSTNAME_LABEL, ClusterNode, ClusterPod, PodRef, Pool
from swingbus_controller.domain.cluster.pool_words import GpuCounts, PoolCondition, PoolWords, Story, Truth
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.nodes import Nodes
from tests.fakes.api_server.server import FakeApiServer
from tests.fakes.cluster_api_rig import ApiRig, CountingApi
from tests.fakes.cluster_rigs import (
    ENROLLED,
    HOLLOW,
    NO_CLASS,
    OURS,
    POOL_LABELS,
    TEMPLATE,
    THEIRS,
    ClusterRig,
    VirtualRig,
    until,
    until_told,
)
from tests.fakes.kube_rig import connected

WEB = {"app": "web"}
Call = Callable[[], Awaitable[CallOutcome]]


@pytest.fixture(params=["virtual", "double"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ClusterRig]:
    """Return the fake; the adapter over the double."""
    if request.param == "virtual":
        yield VirtualRig()
        return
    async with (
        FakeApiServer(tmp_path, write_certificates(tmp_path)) as server,
        connected(server) as admin,
        connected(server) as ours,
    ):
        made = on_double(server, admin, ours)
        async with made.running():
            yield made


def on_double(server: FakeApiServer, admin: ApiConnection, ours: ApiConnection) -> ApiRig:
    """Return two nodes and two namespaces on the double."""
    nodes = Nodes(server.store, ("n1", "n2"))
    for name in nodes.names:
        status = {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        server.make("nodes", "", name, metadata={"labels": {HOSTNAME_LABEL: name, **POOL_LABELS}}, status=status)
    for name in ("customers", "miners"):
        server.make("namespaces", "", name, metadata={"labels": ENROLLED})

    async def moment() -> None:
        nodes.tick()
        await asyncio.sleep(0.05)

    return ApiRig(
        admin,
        CountingApi(ours),
        server.faults,
        "customers",
        "miners",
        ("n1", "n2"),
        moment,
        lambda name, fields: server.make("podtemplates", "miners", name, **fields),
    )


def node_of(rig: ClusterRig, number: int = 0) -> ClusterNode:
    return rig.cluster.state.nodes[rig.nodes[number]]


def pool_of(rig: ClusterRig, template: str = TEMPLATE) -> Pool:
    return replace(rig.cluster.state.pools[rig.pool_name], miner_template=template)


def assert_indexed(rig: ClusterRig) -> None:
    """Every index says the same as the collection of pods."""
    state = rig.cluster.state
    pods = list(state.pods.values())
    assert {p.ref for p in state.unbound()} == {p.ref for p in pods if not p.node}
    for node in {*rig.nodes, *(p.node or p.aimed_at for p in pods)} - {""}:
        assert {p.ref for p in state.pods_on(node)} == {p.ref for p in pods if (p.node or p.aimed_at) == node}


def now(rig: ClusterRig, pod: ClusterPod) -> ClusterPod:
    """Return a life as it is now."""
    found = rig.cluster.state.pod(pod.ref)
    assert found is not None, f"{pod.ref} is gone"
    return found


def miners(rig: ClusterRig) -> list[ClusterPod]:
    return [pod for pod in rig.cluster.state.pods.values() if pod.namespace == rig.miner_namespace]


def is_gone(rig: ClusterRig, pod: ClusterPod) -> Callable[[], bool]:
    return lambda: rig.cluster.state.pod(pod.ref) is None


async def run_pod(
    rig: ClusterRig, name: str, *, labels: dict[str, str] | None = None, node: int = 0, is_ready: bool = True
) -> ClusterPod:
    """Return a pod that works on a node."""
    pod = await rig.make_pod(name, gates=(), labels=labels, node=rig.nodes[node])
    await until(rig, lambda: now(rig, pod).is_ready if is_ready else bool(now(rig, pod).node))
    return now(rig, pod)


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


# What is seen.


async def test_pods_lives_show_one_after_the_other(rig: ClusterRig) -> None:
    """It waits, is let go, is bound, becomes ready, leaves, is gone; at each step every index says so, and versions grow."""
    state, (here, _) = rig.cluster.state, rig.nodes
    pod = await rig.make_pod("p")
    assert (pod.is_waiting, pod.is_under_way, pod.node, pod.gpu_count) == (True, False, "", 1)
    assert_indexed(rig)
    before = state.version_of(here)
    assert (await rig.cluster.calls.lift_gate(pod, node_of(rig), pool_of(rig), flip="f-1")).answer is CallAnswer.TAKEN
    await until(rig, lambda: not now(rig, pod).is_waiting)
    assert now(rig, pod).ref in {p.ref for p in state.pods_on(here)}, "let go to it, so it is counted there"
    assert state.version_of(here) != before
    assert_indexed(rig)
    await until(rig, lambda: now(rig, pod).is_ready)
    assert now(rig, pod).node == here
    assert pod.ref not in {p.ref for p in state.unbound()}
    assert_indexed(rig)
    before = state.version_of(here)
    assert (await rig.cluster.calls.delete_pod(pod.ref, grace_s=5)).answer is CallAnswer.TAKEN
    await until(rig, lambda: now(rig, pod).is_leaving)
    assert pod.ref in {p.ref for p in state.pods_on(here)}, "it holds its GPU until it is gone"
    assert state.version_of(here) != before
    await until(rig, is_gone(rig, pod))
    assert_indexed(rig)


async def test_pod_that_ended_is_over_and_says_why(rig: ClusterRig) -> None:
    """It is still there, on its node, and holds nothing."""
    pod = await run_pod(rig, "p")
    await rig.end(pod)
    await until(rig, lambda: now(rig, pod).is_over)
    seen = now(rig, pod)
    assert (seen.node, seen.is_ready, seen.is_leaving) == (rig.nodes[0], False, False)
    assert "Failed" in seen.failure
    assert_indexed(rig)


async def test_successor_under_the_same_name_is_another_pod(rig: ClusterRig) -> None:
    """The old life is gone, the new one waits; nothing of the old one's place is left."""
    old = await run_pod(rig, "p")
    await rig.drop(old)
    new = await rig.make_pod("p")
    assert new.uid != old.uid
    assert rig.cluster.state.pod(old.ref) is None
    assert now(rig, new).is_waiting
    assert (old.namespace, old.name) not in {p.key for p in rig.cluster.state.pods_on(rig.nodes[0])}
    assert_indexed(rig)


async def test_other_gates_and_namespaces_are_told(rig: ClusterRig) -> None:
    """Whom somebody else holds too does not wait for us; enrolled namespaces are known."""
    held = await rig.make_pod("held", gates=(THEIRS, OURS))
    assert (held.is_gated, held.has_other_gates, held.is_waiting) == (True, True, False)
    assert {rig.namespace, rig.miner_namespace} <= rig.cluster.state.namespaces.keys()
    assert set(rig.nodes) <= rig.cluster.state.nodes.keys()
    assert all(pool_of(rig).selects(node_of(rig, number)) for number in (0, 1))


# Lifting.


async def test_lift_takes_our_gate_narrows_and_marks(rig: ClusterRig) -> None:
    """One step: whoever sees the gate gone sees the place and the mark; another's gate stays."""
    pod = await rig.make_pod("p", gates=(THEIRS, OURS))
    node, pool = node_of(rig, 1), pool_of(rig)
    assert (await rig.cluster.calls.lift_gate(pod, node, pool, flip="f-7")).answer is CallAnswer.TAKEN
    await until(rig, lambda: not now(rig, pod).is_gated)
    seen = now(rig, pod)
    assert (seen.aimed_at, seen.flip, seen.has_other_gates) == (node.name, "f-7", True)
    assert seen.lifted_unix_s is not None
    assert {**pool.node_selector, "kubernetes.io/hostname": node.name}.items() <= seen.node_selector.items()
    for _ in range(5):
        await rig.pass_time()
    assert now(rig, pod).node == "", "whoever holds the other gate has not let it go"


async def test_repeated_lift_moves_nobody(rig: ClusterRig) -> None:
    """As it was looked at before, or as it is now, to another node: it stays where the first one sent it."""
    pod = await rig.make_pod("p", gates=(THEIRS, OURS))
    calls, pool = rig.cluster.calls, pool_of(rig)
    assert (await calls.lift_gate(pod, node_of(rig, 0), pool, flip="f-1")).answer is CallAnswer.TAKEN
    again = await calls.lift_gate(pod, node_of(rig, 1), pool, flip="f-2")
    assert again.answer in (CallAnswer.STALE, CallAnswer.GONE)
    await until(rig, lambda: not now(rig, pod).is_gated)
    again = await calls.lift_gate(now(rig, pod), node_of(rig, 1), pool, flip="f-2")
    assert again.answer is CallAnswer.STALE
    seen = await rig.touch(now(rig, pod))
    assert (seen.aimed_at, seen.flip) == (rig.nodes[0], "f-1")
    assert seen.node_selector["kubernetes.io/hostname"] == rig.nodes[0]


async def test_lift_of_what_has_changed_or_is_gone_does_nothing(rig: ClusterRig) -> None:
    """Somebody noted something on it; it went; another came under its name."""
    calls, node, pool = rig.cluster.calls, node_of(rig), pool_of(rig)
    pod = await rig.make_pod("p")
    newer = await rig.touch(pod)
    assert (await calls.lift_gate(pod, node, pool, flip="f-1")).answer is CallAnswer.STALE
    assert (await rig.touch(newer)).is_gated
    await rig.drop(newer)
    await until(rig, is_gone(rig, pod))
    assert (await calls.lift_gate(newer, node, pool, flip="f-1")).answer is CallAnswer.GONE
    successor = await rig.make_pod("p")
    assert (await calls.lift_gate(newer, node, pool, flip="f-1")).answer is CallAnswer.GONE
    assert (await rig.touch(successor)).is_gated


# Leaving.


async def test_delete_and_evict_mean_one_life(rig: ClusterRig) -> None:
    """A successor under the same name is left alone, whoever is gone is GONE, and asking twice is no harm."""
    calls = rig.cluster.calls
    old = await run_pod(rig, "p")
    for _ in range(2):
        assert (await calls.delete_pod(old.ref, grace_s=5)).answer is CallAnswer.TAKEN
    await until(rig, is_gone(rig, old))
    assert (await calls.delete_pod(old.ref, grace_s=5)).answer is CallAnswer.GONE
    assert (await calls.evict_pod(old.ref)).answer is CallAnswer.GONE
    new = await rig.make_pod("p")
    assert (await calls.delete_pod(old.ref, grace_s=0)).answer is CallAnswer.GONE
    assert (await calls.evict_pod(old.ref)).answer is CallAnswer.GONE
    assert (await rig.touch(new)).is_waiting
    nobody = PodRef(namespace=rig.namespace, name="nobody", uid="00000000-0000-4000-8000-000000000000")
    assert (await calls.delete_pod(nobody, grace_s=0)).answer is CallAnswer.GONE


async def test_gated_pod_goes_at_once(rig: ClusterRig) -> None:
    """No kubelet has to end it."""
    pod = await rig.make_pod("p")
    assert (await rig.cluster.calls.evict_pod(pod.ref)).answer is CallAnswer.TAKEN
    await until(rig, is_gone(rig, pod))
    assert_indexed(rig)


async def test_eviction_holds_for_what_was_looked_at(rig: ClusterRig) -> None:
    """STALE where it has changed since; taken where it has not."""
    calls = rig.cluster.calls
    pod = await run_pod(rig, "p")
    newer = await rig.touch(pod)
    assert newer.revision != pod.revision
    assert (await calls.evict_pod(pod.ref, only_revision=pod.revision)).answer is CallAnswer.STALE
    assert not now(rig, pod).is_leaving

    async def is_taken() -> bool:
        look = now(rig, pod)
        return (await calls.evict_pod(look.ref, only_revision=look.revision)).answer is CallAnswer.TAKEN

    await until_told(rig, is_taken)  # a kubelet may write its status at any time
    await until(rig, is_gone(rig, pod))


async def test_budget_blocks_and_is_named(rig: ClusterRig) -> None:
    """Which budget, how many it wants, how many there are; with one more that is ready it is taken."""
    calls = rig.cluster.calls
    await rig.protect(WEB, "keep-one", min_available=1)
    pod = await run_pod(rig, "p1", labels=WEB)
    answers: list[CallOutcome] = []

    async def is_counted() -> bool:
        answers.append(await calls.evict_pod(pod.ref))
        assert answers[-1].answer is CallAnswer.BLOCKED
        return answers[-1].healthy_count == 1

    await until_told(rig, is_counted)
    last = answers[-1]
    assert (last.budget, last.needed_count, last.healthy_count, last.is_for_ever) == ("keep-one", 1, 1, False)
    assert "keep-one" in last.detail
    assert not now(rig, pod).is_leaving
    await run_pod(rig, "p2", labels=WEB)

    async def is_taken() -> bool:
        return (await calls.evict_pod(pod.ref)).answer is CallAnswer.TAKEN

    await until_told(rig, is_taken)
    await until(rig, is_gone(rig, pod))


async def test_two_budgets_block_for_ever(rig: ClusterRig) -> None:
    """Nobody can be asked: a deletion is another matter."""
    await rig.protect(WEB, "one", "two", min_available=0)
    pod = await run_pod(rig, "p", labels=WEB)
    outcome = await rig.cluster.calls.evict_pod(pod.ref)
    assert (outcome.answer, outcome.is_for_ever, outcome.budget) == (CallAnswer.BLOCKED, True, "")
    assert outcome.detail
    assert (await rig.cluster.calls.delete_pod(pod.ref, grace_s=0)).answer is CallAnswer.TAKEN
    await until(rig, is_gone(rig, pod))


async def test_what_changed_unseen_is_stale(rig: ClusterRig) -> None:
    """The copy is always a little old: what came between it and the call counts, all the same."""
    calls, pool = rig.cluster.calls, pool_of(rig)
    gated, bound = await rig.make_pod("gated"), await run_pod(rig, "bound")
    rig.hear(False)
    for pod in (gated, bound):
        await rig.note(pod)
    assert (await calls.lift_gate(gated, node_of(rig), pool, flip="f-1")).answer is CallAnswer.STALE
    assert (await calls.evict_pod(bound.ref, only_revision=bound.revision)).answer is CallAnswer.STALE
    rig.hear(True)
    assert (await rig.touch(gated)).is_waiting
    assert not (await rig.touch(bound)).is_leaving


async def test_who_was_followed_unseen_is_gone(rig: ClusterRig) -> None:
    """Another has the name now, and the copy does not know yet: no call touches it."""
    calls, pool = rig.cluster.calls, pool_of(rig)
    old = await rig.make_pod("p")
    rig.hear(False)
    await rig.follow_up(old)
    assert (await calls.lift_gate(old, node_of(rig), pool, flip="f-1")).answer is CallAnswer.GONE
    assert (await calls.delete_pod(old.ref, grace_s=0)).answer is CallAnswer.GONE
    assert (await calls.evict_pod(old.ref)).answer is CallAnswer.GONE
    rig.hear(True)
    await until(rig, is_gone(rig, old))
    assert (await rig.touch(rig.cluster.state.pods[old.key])).is_waiting


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
