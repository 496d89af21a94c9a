"""History that is really gone: etcd is compacted, and the list-watch on a real API server must find out what it missed.

The API server (1.37) answers watches and pages of most kinds from a cache in its memory, so compaction alone is hidden from them as long
as it lives. Two ways make it real: a kind that it never caches (events), and a restart, after which it knows nothing older than itself.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from swingbus.clock import SystemClock
from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection, ConnectionSettings
from swingbus_controller.adapters.kubernetes.listwatch import ListWatch
from swingbus_controller.adapters.kubernetes.objects import KubeObject
from swingbus_controller.adapters.kubernetes.resources import EVENTS, PODS, Resource
from swingbus_sim.cluster.up import Cluster
from tests.cluster.etcd import Etcd
from tests.cluster.test_listwatch_faults import NO_FAULT, SETTINGS
from tests.contract.test_kubernetes_api import on_cluster
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.faults import Meanwhile
from tests.fakes.api_server.proxy import FaultProxy
from tests.fakes.kube_rig import GATE, Follower, event_body, pod_body

pytestmark = pytest.mark.cluster
_READY_TIMEOUT_S = 60.0


class Site(Follower[KubeObject]):
    """A list-watch of one kind through a proxy, its consumer, and what to do to the server meanwhile (it waits for each)."""

    def __init__(
        self, cluster: Cluster, proxy: FaultProxy, namespace: str, api: ApiConnection, resource: Resource
    ) -> None:
        self.cluster, self.proxy, self.namespace, self.resource = cluster, proxy, namespace, resource
        super().__init__(
            ListWatch(
                api,
                resource,
                KubeObject,
                clock=SystemClock(),
                chance=random.Random(1),
                namespace=namespace,
                settings=SETTINGS,
            )
        )

    def make(self, *names: str) -> None:
        for name in names:
            body = event_body(self.namespace, name) if self.resource is EVENTS else pod_body(name, gates=(GATE,))
            self.cluster.api.create(self.resource.path(self.namespace), body)

    def drop(self, *names: str) -> None:
        for name in names:
            self.cluster.api.delete(self.resource.path(self.namespace, name), grace_s=0)

    def there(self) -> dict[str, str]:
        """Return uids by name as the server says when asked directly."""
        items = self.cluster.api.get(self.resource.path(self.namespace))["items"]
        return {item["metadata"]["name"]: item["metadata"]["uid"] for item in items}

    def restart_api_server(self) -> None:
        processes = self.cluster.processes
        processes.end("kube-apiserver")
        processes.restart("kube-apiserver")
        processes.wait_ready("kube-apiserver", self.cluster.api.is_ready, timeout_s=_READY_TIMEOUT_S)

    async def until_equal(self) -> None:
        there = self.there()
        await self.until(lambda: {obj.metadata.name: obj.uid for obj in self.watch.snapshot().values()} == there)
        await self.until(lambda: {obj.metadata.name: obj.uid for obj in self.known.values()} == there)


@pytest.fixture
async def place(cluster_to_break: Cluster, tmp_path: Path) -> AsyncIterator[Callable[[Resource], Site]]:
    """Return what makes a site of a kind, with five objects on the real server and a list-watch that has not begun to run."""
    async with (
        on_cluster(cluster_to_break.kubeconfig) as rig,
        FaultProxy(tmp_path, write_certificates(tmp_path), cluster_to_break.kubeconfig) as proxy,
    ):
        (tmp_path / "token").write_text("none is asked for")
        host, _, port = proxy.url.removeprefix("https://").partition(":")
        access = load_in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}, tmp_path)
        # Long enough for what happens while a request waits: a restart of the API server.
        async with ApiConnection(access, ConnectionSettings(call_timeout_s=_READY_TIMEOUT_S)) as api:

            def of(resource: Resource) -> Site:
                site = Site(cluster_to_break, proxy, rig.namespace, api, resource)
                site.make("a", "b", "c", "d", "e")
                return site

            yield of


@pytest.mark.parametrize(
    ("resource", "is_restarted"), [(EVENTS, False), (PODS, True)], ids=["never_cached", "cached_and_restarted"]
)
async def test_after_a_compaction_every_end_is_told(
    place: Callable[[Resource], Site], resource: Resource, *, is_restarted: bool
) -> None:
    """The watch goes on from a revision that is gone: 410, a new list replaces the copy, and who vanished unseen is told as gone."""
    site = place(resource)

    def meanwhile() -> None:
        site.drop("a", "b")
        site.make("f")
        site.drop("f")  # its whole life was between the two watches: nobody needs to know
        site.make("a", "g")  # another life under an old name
        Etcd(site.cluster).compact()
        if is_restarted:
            site.restart_api_server()
        site.make("h")

    async with site.running():
        await site.watch.wait_synced()
        before = site.there()
        await site.until_equal()
        site.proxy.faults.next("watch", Meanwhile(meanwhile))
        site.proxy.end_watches()
        await site.until(lambda: site.watch.counts.lists_by_reason["expired"] > 0)
        await site.until_equal()
        await site.until(lambda: len(site.gone) >= 2)
    assert sorted(site.gone) == sorted([before["a"], before["b"]])
    assert set(site.there()) == {"a", "c", "d", "e", "g", "h"}
    assert (site.watch.counts.watch_ends["expired"], site.watch.counts.lists_by_reason["expired"]) == (1, 1)


async def test_a_list_whose_pages_are_compacted_away_begins_anew(place: Callable[[Resource], Site]) -> None:
    """The second page of a revision that is gone: what was read of the first is forgotten, and nothing of it is told."""
    site = place(EVENTS)

    def meanwhile() -> None:
        site.drop("a")
        Etcd(site.cluster).compact()

    before = site.there()
    site.proxy.faults.next("list", NO_FAULT, Meanwhile(meanwhile))
    async with site.running():
        await site.watch.wait_synced()
        await site.until_equal()
    assert before["a"] not in {obj.uid for obj in site.known.values()}
    assert site.watch.counts.list_failures == {"expired": 1}
    assert site.gone == []


async def test_a_compaction_alone_is_hidden_by_the_servers_cache(place: Callable[[Resource], Site]) -> None:
    """Of pods the API server tells what happened from its memory: the watch goes on, there is no new list, every end is told."""
    site = place(PODS)

    def meanwhile() -> None:
        site.drop("a")
        site.make("g")
        Etcd(site.cluster).compact()

    async with site.running():
        await site.watch.wait_synced()
        before = site.there()
        site.proxy.faults.next("watch", Meanwhile(meanwhile))
        site.proxy.end_watches()
        await site.until(lambda: site.gone == [before["a"]])
        await site.until_equal()
    assert site.watch.counts.lists_by_reason == {"start": 1}
