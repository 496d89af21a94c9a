"""A spool that was thinned while the link was cut, over the wire to the real controller: holes in its numbers, nothing lost or twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from swingbus.bundle import install_bundle
from swingbus.clock import SystemClock, boot_id
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_rpc
from swingbus.fleet.v1alpha import fleet_service_pb2_grpc
from swingbus.link.v1alpha import link_pb2
from swingbus.rpc.roles import Role
from swingbus_agent.adapters.channels import BundleChannels
from swingbus_agent.adapters.grpc_link import GrpcLink
from swingbus_agent.adapters.spool import SqliteSpool
from swingbus_agent.app.reporting import Reporter
from swingbus_agent.app.rounds import Rounds
from swingbus_agent.codec import ProtoRoundCodec
from swingbus_agent.domain.fields import HOST_FIELDS
from swingbus_agent.domain.orders import AgentReport
from swingbus_agent.domain.readings import Inventory, Round
from swingbus_agent.domain.spool_policy import Acknowledged, Bounds
from swingbus_agent.ports.link import Acknowledgement, ControlSession, TelemetryHello, TelemetrySession, Welcome
from swingbus_controller.api.link_service import MAX_ACK_RANGES
from tests.fakes.controllers import TestSite

BEFORE_COUNT, CUT_COUNT = 20, 640
SPACING_S = 5.0  # two rounds in each mean of 10 s: every mean leaves one hole
INVENTORY = Inventory(
    version="1", hostname="h", banks=(), meters=(), host_fields=tuple(field.name for field in HOST_FIELDS),
    unsupported=(), writes_enabled=False,
)  # fmt: skip


class WatchedSession:
    """A session that notes which numbers go out."""

    def __init__(self, session: TelemetrySession, sent: list[int]) -> None:
        self._session = session
        self._sent = sent

    @property
    def welcome(self) -> Welcome:
        return self._session.welcome

    async def send_batch(self, payload: bytes) -> None:
        self._sent.append(link_pb2.TelemetryBatch.FromString(payload).sequence)
        await self._session.send_batch(payload)

    async def send_inventory(self, inventory: Inventory) -> None:
        await self._session.send_inventory(inventory)

    async def receive(self) -> Acknowledgement:
        return await self._session.receive()


class WatchedLink:
    """The real link; what each session sent and how it was welcomed is kept."""

    def __init__(self, link: GrpcLink) -> None:
        self._link = link
        self.sent: list[list[int]] = []
        self.welcomes: list[Acknowledged] = []

    @asynccontextmanager
    async def open_telemetry(self, hello: TelemetryHello) -> AsyncIterator[TelemetrySession]:
        async with self._link.open_telemetry(hello) as session:
            self.sent.append([])
            self.welcomes.append(session.welcome.acknowledged)
            yield WatchedSession(session, self.sent[-1])

    @asynccontextmanager
    async def open_control(self, report: AgentReport, ticket: str) -> AsyncIterator[ControlSession]:
        async with self._link.open_control(report, ticket) as session:
            yield session

    async def aclose(self) -> None:
        await self._link.aclose()


class Backlog:
    """A spool, and a reporter whose link is up only inside `connected`."""

    def __init__(self, folder: Path, site: TestSite) -> None:
        bundle = site.authority.issue("edge-1", Role.AGENT, now=datetime.now(UTC))
        path = install_bundle(replace(bundle, endpoint=f"127.0.0.1:{site.port}"), folder / "bundle")
        self.link = WatchedLink(
            GrpcLink(agent="edge-1", instance_uid="run-1", channels=BundleChannels(path, agent="edge-1"), timeout_s=5.0)
        )
        self._codec = ProtoRoundCodec()
        self._begun_unix_s = SystemClock().now().timestamp() - SPACING_S * (CUT_COUNT + 100)
        size_bytes = len(self._codec.encode_round(self._round(CUT_COUNT), CUT_COUNT))
        # Thinning to means of 10 s has to merge nearly all that it may to get below this.
        bounds = Bounds(max_bytes=int(size_bytes * CUT_COUNT * 0.62), max_age_s=1e6)
        self.spool = SqliteSpool(folder, codec=self._codec, bounds=bounds)
        self.rounds = Rounds(self.spool, clock=SystemClock(), boot_id=boot_id(), inventory=INVENTORY, bank_names=())

    def _round(self, number: int) -> Round:
        return Round(
            sample_unix_s=self._begun_unix_s + number * SPACING_S,
            sample_boottime_ns=int((1000.0 + number * SPACING_S) * 1e9),
            boot_id=boot_id(),
            host_values=tuple(float(number) for _ in HOST_FIELDS),
        )

    async def append(self, count: int) -> list[int]:
        """Store rounds; return their numbers."""
        newest = (await self.spool.state()).newest_sequence
        sequences = [await self.spool.append(self._round(newest + each)) for each in range(1, count + 1)]
        self.rounds.stored.set()
        return sequences

    async def thin(self) -> int:
        """Bring the spool into its bounds; return how many rounds were merged away."""
        count = 0
        while (relieved := await self.spool.relieve(SystemClock().now().timestamp(), ())) != (0, 0):
            count += relieved[0]
            assert relieved[1] == 0, "nothing is dropped here"
        return count

    async def held(self) -> list[int]:
        """Return the numbers that are still on disk."""
        return [batch.sequence for batch in await self.spool.read(0, 1 << 40, 1 << 20)]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Let the reporter have the link, until the block ends."""
        reporter = Reporter(
            self.link, self.spool, self.rounds, clock=SystemClock(), random_=random.Random(1),
            backfill_per_s=10_000.0, backoff_max_s=1.0,
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            running = group.create_task(reporter.run())
            try:
                yield
            finally:
                running.cancel()

    async def drained(self) -> None:
        """Wait until everything is acknowledged."""
        async with asyncio.timeout(20):
            while (await self.spool.state()).batch_count:
                await asyncio.sleep(0.05)


async def test_thinned_backlog_is_acknowledged_around_its_holes(tmp_path: Path) -> None:
    """More holes than one acknowledgement tells: all that is left arrives once, the disk empties, and no later session asks again."""
    (tmp_path / "site").mkdir()
    site = TestSite(tmp_path / "site")
    async with site.serve():
        backlog = Backlog(tmp_path / "agent", site)
        assert await backlog.spool.open() == ""
        await backlog.spool.announce(INVENTORY)
        before = await backlog.append(BEFORE_COUNT)
        async with backlog.connected():
            await backlog.drained()
        assert sorted(backlog.link.sent[-1]) == before

        cut = await backlog.append(CUT_COUNT)
        thinned_count = await backlog.thin()
        held = await backlog.held()
        holes = sorted(set(cut) - set(held))
        assert len(holes) == thinned_count > MAX_ACK_RANGES
        async with backlog.connected():
            await backlog.drained()
            live = await backlog.append(3)
            await backlog.drained()
        assert sorted(backlog.link.sent[-1]) == held + live

        last = await backlog.append(1)
        async with backlog.connected():
            await backlog.drained()
        assert backlog.link.sent[-1] == last
        welcome = backlog.link.welcomes[-1]
        assert welcome.up_to == holes[0] - 1
        assert not any(welcome.covers(sequence) for sequence in holes)
        assert welcome.covers(live[-1]) and welcome.covers(held[-1])

        state = await backlog.spool.state()
        assert (state.batch_count, state.rejected_count, state.dropped_count) == (0, 0, 0)
        async with site.channel("vera", Role.VIEWER) as channel:
            fleet = fleet_service_pb2_grpc.FleetServiceStub(channel)
            request = fleet_rpc.VerifySequencesRequest(
                name="sites/north/agents/edge-1", spool_uid=state.spool_uid, ranges=[1, last[0]]
            )
            found = await fleet.VerifySequences(request, timeout=10)
        assert found.stored_count == len(before) + len(held) + len(live) + len(last)
        assert set(found.missing) <= set(holes)
        await backlog.link.aclose()
        await backlog.spool.aclose()
