"""A cluster that is followed through bad days: rights taken away, a token that is no good, a server that is not there.

One suite for the API server's double and for a real one; here it runs on the double, `tests/cluster/test_following_contract.py` runs all of
it on a real API server, as a service account behind a proxy. Naps between tries are a twentieth of what they are: three seconds here are a
minute.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from swingbus.clock import SystemClock
from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.cluster import ClusterNames, KubernetesCluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.server import TOKEN, FakeApiServer
from tests.fakes.cluster_api_rig import Permit
from tests.fakes.kube_rig import in_cluster_files

KINDS = ("pods", "nodes", "capacitypools", "namespaces")
A_MINUTE_S = 3.0
DEADLINE_S = 20.0


class QuickClock(SystemClock):
    """A clock whose naps are a twentieth."""

    async def sleep(self, span_s: float) -> None:
        await asyncio.sleep(max(0.0, span_s / 20.0))


@dataclass
class FollowRig:
    """A cluster with a pod, a node, a pool and an enrolled namespace, and one who follows it.

    Args:
        forbid, allow: take a kind from our role, give it back.
        spoil_token, renew_token: what the token's file holds.
        go_away, come_back: the server; going away ends connections.
        end_watches: in order, as a server does now and then.
        make_pod, drop_pod: past our connection.
    """

    access: tuple[dict[str, str], Path]
    namespace: str
    forbid: Callable[[str], Awaitable[None]]
    allow: Callable[[str], Awaitable[None]]
    go_away: Callable[[], Awaitable[None]]
    come_back: Callable[[], Awaitable[None]]
    end_watches: Callable[[], None]
    make_pod: Callable[[str], Awaitable[None]]
    drop_pod: Callable[[str], Awaitable[None]]

    def __post_init__(self) -> None:
        self._token = (self.access[1] / "token").read_text()

    @property
    def cluster(self) -> KubernetesCluster:
        return self._cluster

    def spoil_token(self) -> None:
        (self.access[1] / "token").write_text("expired\n")

    def renew_token(self) -> None:
        (self.access[1] / "token").write_text(self._token)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[KubernetesCluster]:
        """Follow the cluster."""
        async with ApiConnection(load_in_cluster(*self.access)) as api:
            self._cluster = KubernetesCluster(
                api, Permit(), QuickClock(), names=ClusterNames(), chance=random.Random(1)
            )
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self._cluster.run())
                try:
                    yield self._cluster
                finally:
                    running.cancel()

    def pods(self) -> set[str]:
        """Return the names of our namespace's pods in the copy."""
        return {name for namespace, name in self._cluster.state.pods if namespace == self.namespace}

    async def until(self, holds: Callable[[], bool], *, ending_watches: bool = False) -> None:
        """Wait until something holds.

        Args:
            holds: what.
            ending_watches: end them again and again, since a copy is whole by its lists, before its last watch stands.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not holds():
                    if ending_watches:
                        self.end_watches()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"troubles: {self._cluster.troubles()}, pods {self.pods()}") from None

    async def until_synced(self) -> None:
        await self.until(lambda: self._cluster.state.is_synced)
        assert self._cluster.troubles() == {}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[FollowRig]:
    """Return the double."""
    async with FakeApiServer(tmp_path, write_certificates(tmp_path)) as server:
        ports: list[int] = []
        verbs = ("list", "watch")

        async def forbid(kind: str) -> None:
            server.tokens[TOKEN] |= {(verb, kind) for verb in verbs}

        async def allow(kind: str) -> None:
            server.tokens[TOKEN] -= {(verb, kind) for verb in verbs}

        async def go_away() -> None:
            ports.append(await server.stop())

        async def come_back() -> None:
            await server.start(ports.pop())

        async def make_pod(name: str) -> None:
            resources = {"limits": {"nvidia.com/gpu": "1"}}
            server.make("pods", "ns", name, spec={"containers": [{"name": "main", "resources": resources}]})

        async def drop_pod(name: str) -> None:
            server.store.remove(("pods", "ns", name))

        environ = in_cluster_files(tmp_path / "account", server)
        server.make("nodes", "", "n1", status={"allocatable": {"nvidia.com/gpu": "8"}})
        server.make("namespaces", "", "ns", metadata={"labels": {"swingbus.io/power-gate": "enabled"}})
        spec = {"site": "tx1", "container": "c07", "nodeSelector": {"a": "b"}}
        server.make("capacitypools", "", "pool", spec=spec)
        await make_pod("there")
        yield FollowRig(
            (environ, tmp_path / "account"),
            "ns",
            forbid,
            allow,
            go_away,
            come_back,
            server.watches.end_all,
            make_pod,
            drop_pod,
        )


@pytest.mark.parametrize("kind", KINDS)
async def test_copy_is_whole_only_when_every_kind_was_listed(rig: FollowRig, kind: str) -> None:
    """One kind that may not be listed keeps all of it from counting; which and what to grant is said; granted, it counts."""
    await rig.forbid(kind)
    async with rig.following() as cluster:
        await rig.until(lambda: bool(cluster.troubles()))
        others: dict[str, Callable[[], bool]] = {
            "pods": lambda: "there" in rig.pods(),
            "nodes": lambda: bool(cluster.state.nodes),
            "capacitypools": lambda: bool(cluster.state.pools),
            "namespaces": lambda: rig.namespace in cluster.state.namespaces,
        }
        await rig.until(lambda: all(is_seen() for name, is_seen in others.items() if name != kind))
        await asyncio.sleep(0.5)
        assert set(cluster.troubles()) == {kind}
        assert f"grant the verb 'list' on '{kind}'" in cluster.troubles()[kind]
        assert not cluster.state.is_synced and not others[kind]()
        await rig.allow(kind)
        await rig.until_synced()
        assert all(is_seen() for is_seen in others.values())


async def test_lost_right_is_named_and_the_copy_stays(rig: FollowRig) -> None:
    """What comes meanwhile is not seen, what goes neither; others go on; given back, all of it is told."""
    async with rig.following() as cluster:
        await rig.until_synced()
        await rig.forbid("pods")
        await rig.until(lambda: "pods" in cluster.troubles(), ending_watches=True)
        await rig.make_pod("new")
        await rig.drop_pod("there")
        await asyncio.sleep(0.5)
        assert set(cluster.troubles()) == {"pods"}
        assert "on 'pods' to our role" in cluster.troubles()["pods"]
        assert rig.pods() == {"there"} and cluster.state.is_synced
        await rig.allow("pods")
        await rig.until(lambda: rig.pods() == {"new"})
        assert cluster.troubles() == {}


async def test_token_that_is_no_good_is_told_of_every_kind(rig: FollowRig) -> None:
    """The copy stays as it was; a good token in the file is enough, nobody has to start anything again."""
    async with rig.following() as cluster:
        await rig.until_synced()
        rig.spoil_token()
        await rig.until(lambda: set(cluster.troubles()) == set(KINDS), ending_watches=True)
        assert all("token or certificate was refused" in said for said in cluster.troubles().values())
        await rig.make_pod("new")
        await asyncio.sleep(0.5)
        assert rig.pods() == {"there"} and cluster.state.is_synced
        rig.renew_token()
        await rig.until(lambda: rig.pods() == {"there", "new"} and cluster.troubles() == {})


async def test_server_that_is_away_for_a_minute_changes_nothing(rig: FollowRig) -> None:
    """Absence of news is no news: nobody is woken, nothing is forgotten; it is back, and what happened is told within its pauses."""
    async with rig.following() as cluster:
        await rig.until_synced()
        await rig.go_away()
        await rig.until(lambda: set(cluster.troubles()) == set(KINDS))
        before = (
            cluster.state.revision_count
        )  # not sooner: a real cluster's other objects change while it is still there
        await asyncio.sleep(A_MINUTE_S)
        assert set(cluster.troubles()) == set(KINDS)
        assert rig.pods() == {"there"} and cluster.state.is_synced
        assert cluster.state.nodes and cluster.state.pools and rig.namespace in cluster.state.namespaces
        assert cluster.state.revision_count == before
        await rig.make_pod("new")
        await rig.drop_pod("there")
        await rig.come_back()
        await rig.until(lambda: rig.pods() == {"new"} and cluster.troubles() == {})
