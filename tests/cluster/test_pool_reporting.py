"""What the controller tells in a real cluster: a status taken strictly and written on change only; events that appear once.

The engine and its site run in virtual time; the pool, its status and the events are the real API server's.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from swingbus.clock import SystemClock
from swingbus_controller.adapters.kubernetes.answers import Answer, ByteStream
from swingbus_controller.adapters.kubernetes.cluster import ClusterNames, KubernetesCluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.adapters.kubernetes.kubeconfig import load_kubeconfig
from swingbus_controller.adapters.kubernetes.pod_calls import KubernetesCalls
from swingbus_controller.adapters.kubernetes.resources import ApiCall
from swingbus_controller.app.pool_reporter import PoolReporter
from swingbus_controller.domain.cluster.facts import Pool
from swingbus_controller.domain.cluster.pool_words import GpuCounts, PoolWords
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.ports.cluster import CallAnswer
from swingbus_sim.cluster.up import Cluster
from tests.cluster.pods import make_namespace
from tests.fakes.pod_site import POOL
from tests.fakes.reported_site import ReportedSite, tell_waiting

pytestmark = pytest.mark.cluster
_WAIT_S = 20.0
_POOLS = "/apis/swingbus.io/v1alpha1/capacitypools"


class Open:
    """A permit that never ends."""

    def left_s(self) -> float:
        return 3600.0


@dataclass
class CountingApi:
    """The API server, and every write that was sent to it."""

    api: ApiConnection
    writes: list[ApiCall] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    async def call(self, call: ApiCall, *, timeout_s: float | None = None) -> Answer:
        answer = await self.api.call(call, timeout_s=timeout_s)
        if call.verb not in ("get", "list", "watch"):
            self.writes.append(call)
            if not answer.is_ok:
                self.refused.append(answer.code)
        return answer

    @asynccontextmanager
    async def stream(self, call: ApiCall) -> AsyncIterator[ByteStream]:
        async with self.api.stream(call) as lines:
            yield lines

    def statuses_count(self) -> int:
        """Return how often a pool's status was written."""
        return sum(call.subresource == "status" for call in self.writes)


@dataclass
class Joined:
    """What the site shows of its pods, and calls that go to the real API server."""

    state: ClusterState
    calls: KubernetesCalls

    def may_write_s(self) -> float:
        return 60.0

    async def wait_changed(self) -> None:
        raise NotImplementedError("nobody waits here")


class ToldSite(ReportedSite):
    """A site whose mover is heard by a reporter that only the test lets report."""

    def step(self) -> None:
        reporter, self.reporter = self.reporter, None
        super().step()
        self.reporter = reporter


@dataclass
class Rig:
    """A pool on a real API server whose GPUs, pods and controller are in virtual time."""

    cluster: Cluster
    api: CountingApi
    real: KubernetesCluster
    instance: str
    site: ToldSite
    reporter: PoolReporter

    @property
    def pool(self) -> Pool:
        return self.real.state.pools[POOL.name]

    async def run(self, seconds: float) -> None:
        """Let the site's time pass; its own loop must not run inside ours."""
        await asyncio.to_thread(self.site.run, seconds)

    async def report(self) -> None:
        """Report once, after the copy has caught up with what was written."""
        async with asyncio.timeout(_WAIT_S):
            while self.pool.revision != self.read()["metadata"]["resourceVersion"]:
                await asyncio.sleep(0.02)
        await self.reporter.report()
        await tell_waiting(self.reporter)

    def read(self) -> dict[str, Any]:
        """Return the pool as the API server has it."""
        found: dict[str, Any] = self.cluster.api.get(f"{_POOLS}/{POOL.name}")
        return found

    def conditions(self) -> dict[str, dict[str, Any]]:
        """Return the pool's conditions by type."""
        return {each["type"]: each for each in self.read()["status"]["conditions"]}

    def events(self) -> list[dict[str, Any]]:
        """Return our events."""
        found: list[dict[str, Any]] = []
        for namespace in ("default", "customers"):
            items = self.cluster.api.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
            found += [each for each in items if each.get("reportingInstance") == self.instance]
        return found


@pytest.fixture(scope="module")
def named_cluster(cluster_with_pools: Cluster) -> Iterator[Cluster]:
    """Return the cluster with the namespace in which the site's pods would be."""
    make_namespace(cluster_with_pools.api, "customers")
    yield cluster_with_pools
    cluster_with_pools.api.delete("/api/v1/namespaces/customers")


@pytest.fixture
async def rig(named_cluster: Cluster) -> AsyncIterator[Rig]:
    """Return a settled site with its pool in the cluster; nothing is told yet."""
    spec = {
        "site": POOL.site,
        "container": POOL.container,
        "nodeSelector": dict(POOL.node_selector),
        "caps": {"mining": 500, "inference": 700},
        "mining": {"enabled": True, "namespace": "miners", "podTemplate": "miner"},
        "timing": {"dwellMining": "10s", "dwellInference": "10s"},
        "mode": "Auto",
    }
    meta = {"name": POOL.name}
    # Flips and lives have the same names in every run of the site: what an earlier test told is told already.
    for namespace in ("default", "customers"):
        named_cluster.kubectl("delete", "events.events.k8s.io", "--all", "-n", namespace)
    named_cluster.api.create(
        _POOLS, {"apiVersion": "swingbus.io/v1alpha1", "kind": "CapacityPool", "metadata": meta, "spec": spec}
    )
    async with ApiConnection(await load_kubeconfig(named_cluster.kubeconfig)) as connection:
        api = CountingApi(connection)
        names = ClusterNames(instance=f"test-{secrets.token_hex(4)}")
        real = KubernetesCluster(api, Open(), SystemClock(), names=names, chance=random.Random(1))
        following = asyncio.create_task(real.run())
        async with asyncio.timeout(_WAIT_S):
            while not real.state.is_synced:
                await asyncio.sleep(0.02)
        site = ToldSite(pool=real.state.pools[POOL.name])
        site.start_controller()
        await asyncio.to_thread(site.run, 100)
        assert site.is_quiet(), site.explain()
        joined = Joined(site.cluster.state, real.calls)
        reporter = PoolReporter(engine=site.engine, cluster=joined, clock=site.clock)
        assert site.mover is not None
        site.mover._told = reporter.take_move
        yield Rig(named_cluster, api, real, names.instance, site, reporter)
        site.close()
        following.cancel()
        await asyncio.wait([following])
    named_cluster.api.delete(f"{_POOLS}/{POOL.name}")


async def test_status_is_whole_strictly_valid_and_written_on_change_only(rig: Rig) -> None:
    """Every look offers words; the API server hears of them when they are other ones."""
    await rig.report()
    status = rig.read()["status"]
    assert status["gpus"] == {"total": 8, "inference": 0, "mining": 8, "standby": 0, "flipping": 0, "unknown": 0}
    assert status["watts"]["limit"] == 130_000 and status["watts"]["granted"] > 0
    assert status["observedGeneration"] == 1 and status["epoch"] == rig.site.state.ledger.epoch
    assert set(rig.conditions()) == {
        "Ready",
        "WithinLimit",
        "DemandServed",
        "DrainBlocked",
        "AgentsReporting",
        "GateEnforced",
        "Curtailed",
    }
    for _ in range(5):
        await rig.run(30)  # two and a half minutes: also past the minute after which it is offered again
        await rig.report()
    assert rig.api.statuses_count() == 1
    began = {kind: each["lastTransitionTime"] for kind, each in rig.conditions().items()}
    await asyncio.sleep(1.1)  # the API's times are whole seconds
    rig.site.cluster.deploy("chat", 9)
    await rig.run(90)
    await rig.report()
    assert rig.api.statuses_count() == 2
    now = rig.conditions()
    assert (now["DemandServed"]["status"], now["DemandServed"]["reason"]) == ("False", "Full")
    changed = {kind for kind, each in now.items() if each["lastTransitionTime"] != began[kind]}
    assert changed == {"DemandServed"}
    assert rig.read()["status"]["waiting"]["pods"] == 1
    assert rig.api.refused == []


async def test_columns_show_what_an_operator_looks_for(rig: Rig) -> None:
    """As `kubectl get` prints them."""
    await rig.report()
    header, row = rig.cluster.kubectl("get", "capacitypools").strip().splitlines()
    shown = dict(zip(header.split(), row.split(), strict=True))
    assert {key: shown[key] for key in ("GPUS", "INFER", "MINE", "FLIP", "WAIT", "LIMIT", "READY", "REASON")} == {
        "GPUS": "8",
        "INFER": "0",
        "MINE": "8",
        "FLIP": "0",
        "WAIT": "0",
        "LIMIT": "130000",
        "READY": "True",
        "REASON": "Ready",
    }


async def test_who_waits_no_more_and_a_limit_that_is_gone_leave_nothing_behind(rig: Rig) -> None:
    """A status is replaced, not added to: what is not known any more is not shown."""
    words = PoolWords(generation=1, epoch=1, gpus=GpuCounts(), waiting_pods=1, oldest_unix_s=1_800_000_000.0, limit_w=5)
    assert (await rig.real.calls.write_pool(rig.pool, words)).answer is CallAnswer.TAKEN
    assert rig.read()["status"]["waiting"]["oldest"] == "2027-01-15T08:00:00Z"
    async with asyncio.timeout(_WAIT_S):
        while rig.pool.revision != rig.read()["metadata"]["resourceVersion"]:
            await asyncio.sleep(0.02)
    words = replace(words, waiting_pods=0, oldest_unix_s=None, limit_w=None)
    assert (await rig.real.calls.write_pool(rig.pool, words)).answer is CallAnswer.TAKEN
    status = rig.read()["status"]
    assert "oldest" not in status["waiting"] and "limit" not in status["watts"]


async def test_pool_that_somebody_changed_meanwhile_is_written_at_the_next_look(rig: Rig) -> None:
    """The first write is refused for its revision, and nobody's change is lost."""
    await rig.report()
    rig.site.cluster.deploy("odd", 1, selector={"zone": "b"})
    await rig.run(5)
    rig.cluster.api.merge(f"{_POOLS}/{POOL.name}", {"metadata": {"labels": {"seen": "yes"}}})
    async with asyncio.timeout(_WAIT_S):
        while rig.conditions()["DemandServed"]["status"] != "False":
            await rig.run(1)
            await rig.reporter.report()
    assert rig.read()["metadata"]["labels"] == {"seen": "yes"}
    assert set(rig.api.refused) <= {409}


async def test_events_of_flips_appear_once_on_pods_nodes_and_the_pool(rig: Rig) -> None:
    """However often they are sent: a controller that came up again a moment later sends the same ones."""
    await rig.report()
    rig.site.cluster.deploy("chat", 2)
    await rig.run(60)
    assert rig.site.is_quiet() and rig.site.cluster.ready_count("chat") == 2, rig.site.explain()
    await rig.report()
    told = rig.events()
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for each in told:
        by_reason.setdefault(each["reason"], []).append(each)
    flips = {pod.flip for pod in rig.site.cluster.pods_of("chat")}
    for reason, kind in (("GateLifted", "Pod"), ("MinerStopped", "Node"), ("FlipDone", "CapacityPool")):
        mine = [each for each in by_reason[reason] if each["metadata"]["annotations"]["swingbus.io/flip"] in flips]
        assert {each["metadata"]["annotations"]["swingbus.io/flip"] for each in mine} == flips
        assert len(mine) == 2 and {each["regarding"]["kind"] for each in mine} == {kind}
        assert {each["type"] for each in mine} == {"Normal"}
    lifted = by_reason["GateLifted"][0]["regarding"]
    assert (lifted["namespace"], lifted["uid"]) in {("customers", p.uid) for p in rig.site.cluster.pods_of("chat")}
    again = PoolReporter(
        engine=rig.site.engine, cluster=Joined(rig.site.cluster.state, rig.real.calls), clock=rig.site.clock
    )
    sent_count = len(rig.api.writes)
    await again.report()
    await tell_waiting(again)
    assert len(rig.api.writes) >= sent_count + 2, "the flips that ended a moment ago are told again"
    assert {each["metadata"]["name"] for each in rig.events()} == {each["metadata"]["name"] for each in told}
    assert set(rig.api.refused) == {409}
