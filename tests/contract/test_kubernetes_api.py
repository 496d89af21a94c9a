"""What the API server does with our calls: one suite for the fake and for a real control plane.

Here it runs on the fake; `tests/cluster/test_api_contract.py` runs all of it on a real API server. So nothing in here may lean on the fake:
objects are made, bound and made ready through the API itself.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from swingbus.clock import SystemClock
from swingbus.faults import Forbidden, HistoryCompacted, InvalidInput, NotFound, StaleRevision, WrongState
from swingbus_controller.adapters.kubernetes.answers import decode, fault_of
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.adapters.kubernetes.kubeconfig import load_kubeconfig
from swingbus_controller.adapters.kubernetes.listwatch import Page
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.own_objects import CapacityPool, PoolGpus, PoolStatus, WatchLine
from swingbus_controller.adapters.kubernetes.pod_writes import (
    Accepted,
    Adopted,
    BudgetBlocked,
    Created,
    Lifted,
    LiftRefused,
    NameTaken,
    OtherPod,
    PodGone,
    PodLife,
    SeveralBudgets,
    StaleView,
    create_pod,
    delete_pod,
    evict_pod,
    lift_gate,
)
from swingbus_controller.adapters.kubernetes.resources import (
    CAPACITY_POOLS,
    DISRUPTION_BUDGETS,
    EVENTS,
    MERGE_PATCH,
    PODS,
    ApiCall,
    Resource,
)
from swingbus_controller.adapters.kubernetes.telling import Note, PoolGone, StalePool, Written, tell, write_pool_status
from swingbus_controller.adapters.kubernetes.writing import Writer
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.server import TOKEN, FakeApiServer
from tests.fakes.kube_rig import GATE, connected, event_body, pod_body

POD = msgspec.json.Decoder(Pod)
POOL = msgspec.json.Decoder(CapacityPool)
WAIT_S = 20.0


class Open:
    """A permit that never ends."""

    def left_s(self) -> float:
        return 3600.0


class Shut:
    """No permit."""

    def left_s(self) -> float:
        return 0.0


def _cannot_compact() -> None:
    raise NotImplementedError("whoever makes a rig says how")


@dataclass
class Rig:
    """An API server and a namespace of one's own; `fake` is the double behind it, None for a real one.

    `compact` makes it forget all history before now.
    """

    api: ApiConnection
    namespace: str
    fake: FakeApiServer | None = None
    compact: Callable[[], object] = _cannot_compact

    @property
    def writer(self) -> Writer:
        return Writer(self.api, Open(), SystemClock())

    async def make(self, resource: Resource, body: dict[str, Any], *, is_namespaced: bool = True) -> bytes:
        """Create an object."""
        call = ApiCall(verb="create", resource=resource, namespace=self.namespace if is_namespaced else "", body=body)
        answer = await self.api.call(call)
        assert answer.code == 201, answer.body
        return answer.body

    async def make_pod(self, name: str, **about: Any) -> Pod:
        """Create a pod; `about` as in `pod_body`."""
        return POD.decode(await self.make(PODS, pod_body(name, **about)))

    async def pod(self, name: str) -> Pod | None:
        """Return a pod as it is."""
        return await self.writer.read(PODS, POD, namespace=self.namespace, name=name)

    async def run_pod(self, name: str, **about: Any) -> Pod:
        """Create a pod, bind it to a node that no kubelet serves, and say that it is ready."""
        await self.make_pod(name, schedulerName="nobody", **about)  # or the real scheduler would be faster
        target = {"apiVersion": "v1", "kind": "Node", "name": "no-such-node"}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        bind = ApiCall(
            verb="create", resource=PODS, namespace=self.namespace, name=name, subresource="binding", body=body
        )
        assert (await self.api.call(bind)).is_ok
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        ready = ApiCall(
            verb="patch",
            resource=PODS,
            namespace=self.namespace,
            name=name,
            subresource="status",
            content_type=MERGE_PATCH,
            body={"status": status},
        )
        return decode(await self.api.call(ready), POD, ready)

    async def make_budget(self, name: str, labels: dict[str, str], **spec: Any) -> None:
        """Create a PodDisruptionBudget and wait until it was counted."""
        meta = {"name": name, "namespace": self.namespace}
        body = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta,
            "spec": {"selector": {"matchLabels": labels}, **spec},
        }
        await self.make(DISRUPTION_BUDGETS, body)
        read = ApiCall(verb="get", resource=DISRUPTION_BUDGETS, namespace=self.namespace, name=name)
        async with asyncio.timeout(WAIT_S):
            while not json.loads((await self.api.call(read)).body).get("status", {}).get("observedGeneration"):
                await asyncio.sleep(0.05)

    async def make_event(self, name: str) -> bytes:
        """Create an event about a pod that nobody knows."""
        return await self.make(EVENTS, event_body(self.namespace, name))

    def life(self, pod: Pod) -> PodLife:
        return PodLife(namespace=pod.metadata.namespace, name=pod.metadata.name, uid=pod.uid)

    def wrong_life(self, name: str) -> PodLife:
        return PodLife(namespace=self.namespace, name=name, uid="00000000-0000-4000-8000-000000000000")

    async def make_pool(self) -> CapacityPool:
        """Create a pool of one's own."""
        name = f"pool-{secrets.token_hex(4)}"
        spec = {
            "site": "tx1",
            "container": "c07",
            "nodeSelector": {"swingbus.io/container": name},
            "caps": {"mining": 450, "inference": 700},
        }
        body = {"apiVersion": "swingbus.io/v1alpha1", "kind": "CapacityPool", "metadata": {"name": name}, "spec": spec}
        return POOL.decode(await self.make(CAPACITY_POOLS, body, is_namespaced=False))


@asynccontextmanager
async def on_cluster(kubeconfig: Path) -> AsyncIterator[Rig]:
    """A namespace on a real control plane with our definition, as its administrator; taken away at the end."""
    namespaces = Resource(api_version="v1", kind="Namespace", plural="namespaces", is_namespaced=False)
    accounts = Resource(api_version="v1", kind="ServiceAccount", plural="serviceaccounts")
    async with ApiConnection(await load_kubeconfig(kubeconfig)) as api:
        rig = Rig(api, f"contract-{secrets.token_hex(4)}")
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": rig.namespace}}
        await rig.make(namespaces, body, is_namespaced=False)
        account = ApiCall(verb="get", resource=accounts, namespace=rig.namespace, name="default")
        async with asyncio.timeout(WAIT_S):
            while not (await api.call(account)).is_ok:  # pods need it; it comes a moment later
                await asyncio.sleep(0.05)
        yield rig
        await api.call(ApiCall(verb="delete", resource=namespaces, name=rig.namespace))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with FakeApiServer(tmp_path, write_certificates(tmp_path)) as server, connected(server) as api:
        yield Rig(api, "contract", server, server.store.compact)


async def test_a_list_comes_in_pages_of_one_revision(rig: Rig) -> None:
    """What is made between two pages is in none of them."""
    for name in "abc":
        await rig.make_pod(name, gates=(GATE,))
    pages: list[Page[Pod]] = []
    token, decoder = "", msgspec.json.Decoder(Page[Pod])
    while token or not pages:
        query = {"limit": "2", **({"continue": token} if token else {})}
        call = ApiCall(verb="list", resource=PODS, namespace=rig.namespace, query=query)
        pages.append(decode(await rig.api.call(call), decoder, call))
        token = pages[-1].metadata.continue_
        if len(pages) == 1:
            await rig.make_pod("z", gates=(GATE,))
    assert [pod.metadata.name for page in pages for pod in page.items] == ["a", "b", "c"]
    assert len({page.metadata.resource_version for page in pages}) == 1


async def test_a_watch_tells_changes_after_its_revision_in_order(rig: Rig) -> None:
    """Revisions grow; an end carries the last state and a revision of its own."""
    before = await rig.make_pod("a", gates=(GATE,))
    b = await rig.make_pod("b", gates=(GATE,))
    await delete_pod(rig.writer, rig.life(b), grace_s=0)
    query = {"watch": "true", "resourceVersion": before.revision, "allowWatchBookmarks": "true", "timeoutSeconds": "5"}
    lines: list[WatchLine] = []
    async with asyncio.timeout(WAIT_S):
        async with rig.api.stream(ApiCall(verb="watch", resource=PODS, namespace=rig.namespace, query=query)) as body:
            text = b""
            while not any(line.type == "DELETED" for line in lines):
                text += await body.read_some()
                lines = [msgspec.json.decode(line, type=WatchLine) for line in text.split(b"\n")[:-1]]
    pods = [POD.decode(line.object) for line in lines]
    assert lines[0].type == "ADDED"
    assert {pod.uid for pod in pods} == {b.uid}
    revisions = [int(pod.revision) for pod in pods]
    assert revisions == sorted(set(revisions))
    assert pods[-1].spec.node_name == ""


async def test_a_revision_that_is_long_gone_is_410(rig: Rig) -> None:
    """As an answer or as an event: both servers may do either. Of events, since those alone the real one never keeps in a cache."""
    first = json.loads(await rig.make_event("a"))["metadata"]["resourceVersion"]
    await rig.make_event("b")
    listing = ApiCall(verb="list", resource=EVENTS, namespace=rig.namespace, query={"limit": "1"})
    token = json.loads((await rig.api.call(listing)).body)["metadata"]["continue"]
    await rig.make_event("c")
    rig.compact()
    query = {"watch": "true", "resourceVersion": first}
    async with rig.api.stream(ApiCall(verb="watch", resource=EVENTS, namespace=rig.namespace, query=query)) as body:
        line = msgspec.json.decode(await body.read_some(), type=WatchLine)
    assert line.type == "ERROR"
    assert json.loads(bytes(line.object))["code"] == 410
    rest = ApiCall(verb="list", resource=EVENTS, namespace=rig.namespace, query={"limit": "1", "continue": token})
    assert isinstance(fault_of(await rig.api.call(rest), rest), HistoryCompacted)


async def test_an_update_of_an_old_revision_is_a_conflict(rig: Rig) -> None:
    """And generation follows the spec, not the status."""
    pool = await rig.make_pool()
    raw = json.loads((await rig.api.call(ApiCall(verb="get", resource=CAPACITY_POOLS, name=pool.metadata.name))).body)
    raw["spec"]["mode"] = "Auto"
    put = ApiCall(verb="update", resource=CAPACITY_POOLS, name=pool.metadata.name, body=raw)
    changed = decode(await rig.api.call(put), POOL, put)
    assert changed.metadata.generation == pool.metadata.generation + 1
    assert isinstance(fault_of(await rig.api.call(put), put), StaleRevision)
    raw["metadata"]["resourceVersion"] = changed.revision
    raw["metadata"]["uid"] = "00000000-0000-4000-8000-000000000000"
    assert isinstance(fault_of(await rig.api.call(put), put), StaleRevision)


async def test_a_status_is_written_apart_and_strictly(rig: Rig) -> None:
    """Only against the state that was looked at; a field that the schema lacks is refused instead of dropped."""
    pool = await rig.make_pool()
    status = PoolStatus(observed_generation=1, epoch=3, gpus=PoolGpus(total=8, mining=8))
    written = await write_pool_status(rig.writer, pool, status)
    assert isinstance(written, Written)
    assert written.pool.status.gpus.mining == 8
    assert written.pool.metadata.generation == pool.metadata.generation
    again = await write_pool_status(rig.writer, pool, status)
    assert isinstance(again, StalePool)
    assert (await write_pool_status(rig.writer, again.pool, status)) == Written(written.pool), (
        "the same says nothing new"
    )
    odd = ApiCall(
        verb="patch",
        resource=CAPACITY_POOLS,
        name=pool.metadata.name,
        subresource="status",
        query={"fieldValidation": "Strict"},
        content_type=MERGE_PATCH,
        body={"status": {"gpu": {"total": 1}}},
    )
    fault = fault_of(await rig.api.call(odd), odd)
    assert isinstance(fault, InvalidInput)
    assert "gpu" in str(fault)
    gone = ApiCall(verb="delete", resource=CAPACITY_POOLS, name=pool.metadata.name)
    assert (await rig.api.call(gone)).is_ok
    assert isinstance(await write_pool_status(rig.writer, pool, status), PoolGone)


async def test_a_lift_is_one_step_and_only_on_what_was_looked_at(rig: Rig) -> None:
    """Gate gone, selector narrowed, mark set; a second try sees what the first did."""
    pod = await rig.make_pod("p", gates=("example.com/other", GATE))
    lifted = await lift_gate(
        rig.writer,
        pod,
        gate=GATE,
        node_selector={"swingbus.io/container": "c07"},
        annotations={"swingbus.io/flip": "f1"},
    )
    assert isinstance(lifted, Lifted)
    assert lifted.pod.gates == ("example.com/other",)
    assert lifted.pod.spec.node_selector == {"swingbus.io/container": "c07"}
    assert lifted.pod.metadata.annotations["swingbus.io/flip"] == "f1"
    again = await lift_gate(
        rig.writer, pod, gate=GATE, node_selector={"x": "y"}, annotations={"swingbus.io/flip": "f2"}
    )
    assert isinstance(again, StaleView)
    assert again.pod.metadata.annotations["swingbus.io/flip"] == "f1"
    assert again.pod.spec.node_selector == {"swingbus.io/container": "c07"}


async def test_a_lift_keeps_what_others_have_set(rig: Rig) -> None:
    """Selector keys and annotations that are there stay."""
    pod = await rig.make_pod("p", gates=(GATE,), nodeSelector={"disk": "ssd"})
    lifted = await lift_gate(rig.writer, pod, gate=GATE, node_selector={"b/c": "1"}, annotations={})
    assert isinstance(lifted, Lifted)
    assert lifted.pod.spec.node_selector == {"disk": "ssd", "b/c": "1"}
    assert lifted.pod.gates == ()


async def test_a_lift_never_takes_away_what_came_in_between(rig: Rig) -> None:
    """Somebody else notes something on the pod after we looked: the whole lift is off, and theirs stands."""
    pod = await rig.make_pod("p", gates=(GATE,))
    theirs = ApiCall(
        verb="patch",
        resource=PODS,
        namespace=rig.namespace,
        name="p",
        content_type=MERGE_PATCH,
        body={"metadata": {"annotations": {"example.com/theirs": "1"}}},
    )
    assert (await rig.api.call(theirs)).is_ok
    stale = await lift_gate(rig.writer, pod, gate=GATE, node_selector={"b": "1"}, annotations={"a/b": "2"})
    assert isinstance(stale, StaleView)
    assert stale.pod.gates == (GATE,)
    assert stale.pod.metadata.annotations == {"example.com/theirs": "1"}
    lifted = await lift_gate(rig.writer, stale.pod, gate=GATE, node_selector={"b": "1"}, annotations={"a/b": "2"})
    assert isinstance(lifted, Lifted)
    assert lifted.pod.metadata.annotations == {"example.com/theirs": "1", "a/b": "2"}


async def test_a_lift_that_the_server_forbids_is_told_apart_from_a_stale_one(rig: Rig) -> None:
    """Both are 422: a selector key may be added but not changed."""
    pod = await rig.make_pod("p", gates=(GATE,), nodeSelector={"disk": "ssd"})
    refused = await lift_gate(rig.writer, pod, gate=GATE, node_selector={"disk": "hdd"}, annotations={})
    assert isinstance(refused, LiftRefused)
    assert "nodeSelector" in refused.message
    now = await rig.pod("p")
    assert now is not None
    assert now.gates == (GATE,), "all or nothing"


async def test_a_lift_of_a_pod_that_went_or_was_followed_says_so(rig: Rig) -> None:
    """A gated pod goes at once; the next of its name is another."""
    pod = await rig.make_pod("p", gates=(GATE,))
    assert await delete_pod(rig.writer, rig.life(pod), grace_s=30) == Accepted()
    assert await lift_gate(rig.writer, pod, gate=GATE, node_selector={}, annotations={}) == PodGone()
    next_one = await rig.make_pod("p", gates=(GATE,))
    other = await lift_gate(rig.writer, pod, gate=GATE, node_selector={}, annotations={})
    assert isinstance(other, OtherPod)
    assert other.pod.uid == next_one.uid
    assert other.pod.gates == (GATE,)


async def test_gates_only_go(rig: Rig) -> None:
    """A pod can't be gated again, and a gated pod can't name its node."""
    pod = await rig.make_pod("p", gates=(GATE,))
    await lift_gate(rig.writer, pod, gate=GATE, node_selector={}, annotations={})
    again = ApiCall(
        verb="patch",
        resource=PODS,
        namespace=rig.namespace,
        name="p",
        content_type=MERGE_PATCH,
        body={"spec": {"schedulingGates": [{"name": GATE}]}},
    )
    assert isinstance(fault_of(await rig.api.call(again), again), InvalidInput)
    bound = ApiCall(
        verb="create", resource=PODS, namespace=rig.namespace, body=pod_body("q", gates=(GATE,), nodeName="n1")
    )
    assert isinstance(fault_of(await rig.api.call(bound), bound), InvalidInput)


async def test_a_deletion_means_one_life(rig: Rig) -> None:
    """Another uid is nothing of ours; a pod on a node ends gracefully, and asking twice changes nothing."""
    pod = await rig.run_pod("p")
    assert isinstance(await delete_pod(rig.writer, rig.wrong_life("p"), grace_s=0), OtherPod)
    stale = await delete_pod(rig.writer, rig.life(pod), grace_s=0, revision="1")
    assert isinstance(stale, StaleView)
    for _ in range(2):
        assert await delete_pod(rig.writer, rig.life(pod), grace_s=60) == Accepted()
    now = await rig.pod("p")
    assert now is not None
    assert now.is_deleting
    assert await delete_pod(rig.writer, rig.life(pod), grace_s=0) == Accepted()
    assert await delete_pod(rig.writer, rig.life(pod), grace_s=0) == PodGone()


async def test_an_eviction_honours_a_budget_and_says_which(rig: Rig) -> None:
    """Name and counts are what an operator needs."""
    labels = {"app": "web"}
    first, second = await rig.run_pod("p1", labels=labels), await rig.run_pod("p2", labels=labels)
    await rig.make_budget("keep-one", labels, minAvailable=1)
    async with asyncio.timeout(WAIT_S):
        while not isinstance(await evict_pod(rig.writer, rig.life(first), grace_s=0), Accepted | PodGone):
            await asyncio.sleep(0.2)
    blocked = await evict_pod(rig.writer, rig.life(second))
    async with asyncio.timeout(WAIT_S):
        while isinstance(blocked, BudgetBlocked) and blocked.needed_count is None:  # the last eviction is being counted
            await asyncio.sleep(0.2)
            blocked = await evict_pod(rig.writer, rig.life(second))
    assert isinstance(blocked, BudgetBlocked)
    assert (blocked.budget, blocked.needed_count, blocked.healthy_count) == ("keep-one", 1, 1)


async def test_two_budgets_over_one_pod_block_it_for_ever(rig: Rig) -> None:
    """The server answers 500, which is no fault of the server."""
    labels = {"app": "twice"}
    pod = await rig.run_pod("p", labels=labels)
    await rig.make_budget("one", labels, minAvailable=0)
    await rig.make_budget("two", labels, minAvailable=0)
    assert isinstance(await evict_pod(rig.writer, rig.life(pod)), SeveralBudgets)


async def test_an_eviction_means_one_life(rig: Rig) -> None:
    """And one that is gone is gone."""
    pod = await rig.run_pod("p")
    assert isinstance(await evict_pod(rig.writer, rig.wrong_life("p")), OtherPod)
    assert isinstance(await evict_pod(rig.writer, rig.life(pod), revision="1"), StaleView)
    assert await evict_pod(rig.writer, rig.life(pod), grace_s=0) == Accepted()
    assert await evict_pod(rig.writer, rig.life(pod), grace_s=0) == PodGone()


async def test_an_eviction_of_a_pod_without_a_node_means_what_was_looked_at(rig: Rig) -> None:
    """Of such a pod the real server tries for ten seconds and more before it says so; nobody waits that long."""
    pod = await rig.make_pod("p", gates=(GATE,))
    stale = await evict_pod(rig.writer, rig.life(pod), revision="1")
    assert isinstance(stale, StaleView)
    assert stale.pod.revision == pod.revision
    assert isinstance(await evict_pod(rig.writer, rig.wrong_life("p")), OtherPod)
    assert await rig.pod("p") == pod


async def test_a_second_creation_adopts_the_first(rig: Rig) -> None:
    """The name comes from the flip: taken by our labels it is ours, else it is somebody's."""
    body = pod_body("miner-f1", labels={"swingbus.io/flip": "f1"})
    body["metadata"]["namespace"] = rig.namespace
    first = await create_pod(rig.writer, body)
    assert isinstance(first, Created)
    second = await create_pod(rig.writer, body)
    assert isinstance(second, Adopted)
    assert second.pod.uid == first.pod.uid
    body["metadata"]["labels"] = {"swingbus.io/flip": "f2"}
    assert isinstance(await create_pod(rig.writer, body), NameTaken)


async def test_an_event_of_a_flip_is_told_once(rig: Rig) -> None:
    """Sent again after a crash, it is the same event."""
    pod = await rig.make_pod("p", gates=(GATE,))
    note = Note(
        resource=PODS,
        about=pod,
        flip_id="f1",
        reason="FlipActive",
        action="Lift",
        text="700 W granted\nto p",
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert await tell(rig.writer, note, instance="swingbus-0") is True
    assert await tell(rig.writer, note, instance="swingbus-0") is False
    answer = await rig.api.call(ApiCall(verb="get", resource=EVENTS, namespace=rig.namespace, name=note.name))
    assert json.loads(answer.body)["note"] == "700 W granted to p"


async def test_without_a_permit_nothing_is_sent(rig: Rig) -> None:
    """A controller that lost its lease reads on, and writes nothing."""
    pod = await rig.make_pod("p", gates=(GATE,))
    shut = Writer(rig.api, Shut(), SystemClock())
    with pytest.raises(WrongState, match="does not hold the lease"):
        await lift_gate(shut, pod, gate=GATE, node_selector={}, annotations={})
    with pytest.raises(WrongState):
        await delete_pod(shut, rig.life(pod), grace_s=0)
    now = await shut.read(PODS, POD, namespace=rig.namespace, name="p")
    assert now == pod


async def test_what_is_not_there_or_not_allowed_is_a_fault(rig: Rig) -> None:
    """404 of an object, and of a kind; 403 of a verb."""
    call = ApiCall(verb="get", resource=PODS, namespace=rig.namespace, name="none")
    assert isinstance(fault_of(await rig.api.call(call), call), NotFound)
    kind = Resource(api_version="swingbus.io/v1alpha1", kind="Flip", plural="flips")
    call = ApiCall(verb="list", resource=kind)
    assert isinstance(fault_of(await rig.api.call(call), call), NotFound)
    if rig.fake is not None:
        rig.fake.tokens[TOKEN].add(("create", "pods/eviction"))
        with pytest.raises(Forbidden, match="grant the verb 'create' on 'pods/eviction'"):
            await evict_pod(rig.writer, rig.wrong_life("p"))
