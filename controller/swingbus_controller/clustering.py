"""Builds the part that moves pods. `main` imports this module only where banks run pods and the site is under CONTROL.

Decides the order of start and stop: the lease is let go last, when no write is on its way. Refuses to know pods.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

from swingbus.clock import Clock
from swingbus_controller.adapters.kubernetes.access import load_access
from swingbus_controller.adapters.kubernetes.cluster import ClusterNames, KubernetesCluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.adapters.kubernetes.identity import VolumeIdentity
from swingbus_controller.adapters.kubernetes.leases import LeaseHolding
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.app.pod_mover import PodMover
from swingbus_controller.app.pool_reporter import PoolGauges, PoolReporter
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.settings import ClusterSettings


class Clustered:
    """A connection to one cluster, the lease that lets us write there, and the loops that move its pods."""

    def __init__(
        self,
        *,
        cluster: KubernetesCluster,
        lease: LeaseHolding,
        identity: VolumeIdentity,
        clock: Clock,
        exits: AsyncExitStack,
    ) -> None:
        self._identity = identity
        self._cluster = cluster
        self._lease = lease
        self._clock = clock
        self._exits = exits

    @property
    def state(self) -> ClusterState:
        """Return what is seen of the cluster."""
        return self._cluster.state

    async def run(self, engine: SiteEngine, gauges: PoolGauges | None = None) -> None:
        """Follow the cluster, move its pods as the engine decides and say so there, until cancelled."""
        reporter = PoolReporter(engine=engine, cluster=self._cluster, clock=self._clock, gauges=gauges)
        mover = PodMover(desk=engine.desk, cluster=self._cluster, clock=self._clock, told=reporter.take_move)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._compete())
            tasks.create_task(self._cluster.run())
            tasks.create_task(mover.run(engine.wait_round))
            tasks.create_task(reporter.run())
            tasks.create_task(self._wake(engine))

    async def _compete(self) -> None:
        await self._identity.hold(self._clock)
        await self._lease.run()

    async def _wake(self, engine: SiteEngine) -> None:
        while True:
            await self._cluster.wait_changed()
            engine.poke()

    async def aclose(self) -> None:
        """Let the lease go, so that a successor need not wait for its end, and close the connection."""
        await self._lease.release()
        self._identity.close()
        await self._exits.aclose()


async def connect_cluster(settings: ClusterSettings, *, data_dir: Path, clock: Clock, instance: str) -> Clustered:
    """Read who we are to the API server. Raises NotFound or InvalidInput where that can't be known; the server may still be away."""
    identity = VolumeIdentity(data_dir)
    access = await load_access(settings.kubeconfig, settings.context or None)
    exits = AsyncExitStack()
    api = await exits.enter_async_context(ApiConnection(access))
    lease = LeaseHolding(api, clock, namespace=settings.namespace, name=settings.lease, identity=identity.name)
    cluster = KubernetesCluster(
        api,
        lease,
        clock,
        names=ClusterNames(
            resource=settings.resource,
            gate=settings.gate,
            enrolled_label=settings.enrolled_label,
            enrolled_value=settings.enrolled_value,
            instance=f"swingbus-controller-{instance[:8]}",
        ),
        chance=random.Random(),
    )
    return Clustered(cluster=cluster, lease=lease, identity=identity, clock=clock, exits=exits)
