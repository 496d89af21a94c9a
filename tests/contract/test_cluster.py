"""What a cluster promises to the part that decides: one suite for the fake in virtual time and for the adapter over an API server.

Here it runs on the fake and on the adapter over the API server's double; `tests/cluster/test_cluster_contract.py` runs all of it on the
adapter over a real API server whose nodes are KWOK's. This half is what is seen of pods, and how they are let go and leave;
`test_cluster_calls.py` is the other half.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome
from tests.contract.cluster_views import (
    HERE,
    assert_indexed,
    cluster_here,
    is_gone,
    node_of,
    now,
    pool_of,
    run_pod,
)
from tests.fakes.cluster_rigs import (
    OURS,
    THEIRS,
    ClusterRig,
    until,
    until_told,
)

WEB = {"app": "web"}


@pytest.fixture(params=HERE)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ClusterRig]:
    async with cluster_here(request.param, tmp_path) as made:
        yield made


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
    for grace_s in (None, 5):  # its own, then less
        assert (await calls.delete_pod(old.ref, grace_s=grace_s)).answer is CallAnswer.TAKEN
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
