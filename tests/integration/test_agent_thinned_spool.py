"""A spool that was thinned while the link was cut, over the wire to the real controller: nothing lost, nothing twice, nothing claimed."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

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
from swingbus_agent.codec import ProtoRoundCodec, round_to_proto
from swingbus_agent.domain.fields import HOST_FIELDS
from swingbus_agent.domain.orders import AgentReport
from swingbus_agent.domain.readings import Inventory, Round
from swingbus_agent.domain.spool_policy import Acknowledged, Bounds
from swingbus_agent.ports.link import Acknowledgement, ControlSession, TelemetryHello, TelemetrySession, Welcome
from swingbus_controller.domain.fleet.sequences import MAX_RANGES
from swingbus_controller.main import Controller
from tests.fakes.controllers import SITE, TestSite

AGENT = "sites/north/agents/edge-1"
SPACING_S = 5.0  # two rounds in each mean of 10 s: every mean leaves one hole
MANY_COUNT = 2 * MAX_RANGES + 2500  # so many rounds that their means leave more holes than the controller keeps ranges
QUICK_SITE = SITE.replace("credit = 16", "credit = 256").replace("commit_interval_s = 0.05", "commit_interval_s = 0.01")
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

    def __init__(self, folder: Path, site: TestSite, round_count: int, *, max_age_s: float = 1e6) -> None:
        bundle = site.authority.issue("edge-1", Role.AGENT, now=datetime.now(UTC))
        path = install_bundle(replace(bundle, endpoint=f"127.0.0.1:{site.port}"), folder / "bundle")
        self.link = WatchedLink(
            GrpcLink(agent="edge-1", instance_uid="run-1", channels=BundleChannels(path, agent="edge-1"), timeout_s=5.0)
        )
        self._folder = folder
        self._codec = ProtoRoundCodec()
        self._begun_unix_s = SystemClock().now().timestamp() - SPACING_S * (round_count + 100)
        size_bytes = len(self._codec.encode_round(self._round(round_count), round_count, round_count - 1))
        # Thinning to means of 10 s has to merge nearly all that it may to get below this.
        self._bounds = Bounds(max_bytes=int(size_bytes * round_count * 0.62), max_age_s=max_age_s)

    async def open(self) -> None:
        """Take the file as it lies there, as a new run of the agent does."""
        self.spool = SqliteSpool(self._folder, codec=self._codec, bounds=self._bounds)
        assert await self.spool.open() == ""
        await self.spool.announce(INVENTORY)
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

    async def fill(self, count: int) -> None:
        """Lay rounds into an empty spool in one transaction: an fsync for each of thousands would take minutes."""
        await self.spool.aclose()
        with closing(sqlite3.connect(self._folder / "spool.sqlite3")) as database, database:
            layout = database.execute("SELECT inventory_id FROM inventories").fetchone()[0]
            payloads = [(n, self._codec.encode_round(self._round(n), n, n)) for n in range(1, count + 1)]
            rows = [(n, layout, 0, self._round(n).sample_unix_s, len(payload), payload) for n, payload in payloads]
            database.executemany("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", rows)
        await self.open()

    async def forget_merging(self) -> None:
        """Leave the file as an agent from before `first_sequence` did."""
        await self.spool.aclose()
        with closing(sqlite3.connect(self._folder / "spool.sqlite3")) as database, database:
            database.execute("DROP TABLE means")
            for sequence, payload in database.execute(
                "SELECT sequence, payload FROM batches WHERE level > 0"
            ).fetchall():
                old = round_to_proto(self._codec.decode_round(payload), sequence, sequence).SerializeToString()
                database.execute("UPDATE batches SET payload = ? WHERE sequence = ?", (old, sequence))
        await self.open()

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
            backfill_per_s=100_000.0, backoff_max_s=1.0,
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            running = group.create_task(reporter.run())
            try:
                yield
            finally:
                running.cancel()

    async def drained(self, down_to: int = 0) -> None:
        """Wait until no more than so many batches are unacknowledged."""
        async with asyncio.timeout(60):
            while (await self.spool.state()).batch_count > down_to:
                await asyncio.sleep(0.02)

    async def aclose(self) -> None:
        """Leave."""
        await self.link.aclose()
        await self.spool.aclose()


def made_site(folder: Path, text: str = SITE) -> TestSite:
    """Return a site in a folder of its own."""
    (folder / "site").mkdir()
    return TestSite(folder / "site", text)


async def verified(site: TestSite, backlog: Backlog, first: int, last: int) -> fleet_rpc.VerifySequencesResponse:
    """Ask the controller's database for numbers of the backlog's spool."""
    spool_uid = (await backlog.spool.state()).spool_uid
    async with site.channel("vera", Role.VIEWER) as channel:
        request = fleet_rpc.VerifySequencesRequest(name=AGENT, spool_uid=spool_uid, ranges=[first, last])
        return await fleet_service_pb2_grpc.FleetServiceStub(channel).VerifySequences(request, timeout=10)


def told_lost(controller: Controller) -> list[int]:
    """Return the counts of the `batches_lost` events on the record."""
    return [int(e.entry.facts["lost_count"]) for e in controller.journal.read() if e.entry.kind == "batches_lost"]


async def test_thinned_backlog_is_stored_with_every_number_it_stands_for(tmp_path: Path) -> None:
    """All that is left arrives once, its means close the numbers merged into them, and the audit tells which those are."""
    site = made_site(tmp_path)
    async with site.serve() as controller:
        backlog = Backlog(tmp_path / "agent", site, 640)
        await backlog.open()
        before = await backlog.append(20)
        async with backlog.connected():
            await backlog.drained()
        assert sorted(backlog.link.sent[-1]) == before

        cut = await backlog.append(640)
        thinned_count = await backlog.thin()
        held = await backlog.held()
        assert len(cut) - len(held) == thinned_count > 250
        async with backlog.connected():
            await backlog.drained()
            live = await backlog.append(3)
            await backlog.drained()
        assert sorted(backlog.link.sent[-1]) == held + live

        last = await backlog.append(1)
        async with backlog.connected():
            await backlog.drained()
        assert backlog.link.sent[-1] == last
        assert backlog.link.welcomes[-1] == Acknowledged(up_to=live[-1])

        state = await backlog.spool.state()
        assert (state.batch_count, state.rejected_count, state.dropped_count) == (0, 0, 0)
        found = await verified(site, backlog, 1, last[0])
        assert found.stored_count == len(before) + len(held) + len(live) + len(last)
        assert (found.merged_count, list(found.missing)) == (thinned_count, [])
        assert told_lost(controller) == []
        await backlog.aclose()


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool with far more holes than the controller keeps ranges, as an agent that died right after thinning left it."""
    folder = tmp_path_factory.mktemp("crashed")

    async def thin() -> None:
        site = made_site(folder)
        site.port = 1  # nobody connects
        backlog = Backlog(folder / "agent", site, MANY_COUNT)
        await backlog.open()
        await backlog.fill(MANY_COUNT)
        await backlog.thin()
        held = await backlog.held()
        assert sum(later - earlier > 1 for earlier, later in itertools.pairwise(held)) > MAX_RANGES
        (folder / "spool").mkdir()
        for path in (folder / "agent").glob("spool.sqlite3*"):  # before it is closed: with what lies in its log only
            shutil.copy(path, folder / "spool")
        await backlog.aclose()

    asyncio.run(thin())
    return folder / "spool"


async def test_more_means_than_ranges_survive_a_crash_of_the_agent_and_a_restart_of_the_controller(
    tmp_path: Path, crashed: Path
) -> None:
    """Thousands of means; the agent dies between thinning and sending, the controller restarts in the middle: all is there."""
    site = made_site(tmp_path, QUICK_SITE)
    async with site.serve():
        backlog = Backlog(tmp_path / "agent", site, MANY_COUNT)
        shutil.copytree(crashed, tmp_path / "agent", dirs_exist_ok=True)
        await backlog.open()
        held = await backlog.held()
        async with backlog.connected():
            await backlog.drained(len(held) // 2)
    site.config.write_text(QUICK_SITE.replace('listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{site.port}"', 1))
    async with site.serve() as controller:
        async with backlog.connected():
            live = await backlog.append(2)
            await backlog.drained()
        state = await backlog.spool.state()
        assert (state.rejected_count, state.dropped_count) == (0, 0)
        found = await verified(site, backlog, 1, live[-1])
        assert (found.stored_count, found.merged_count) == (len(held) + len(live), MANY_COUNT - len(held))
        assert list(found.missing) == []
        assert told_lost(controller) == []
        assert len(backlog.link.sent) == 2  # neither session was ended for its gaps
        await backlog.aclose()


async def test_spool_thinned_by_an_older_agent_is_stored_to_its_last_batch(tmp_path: Path, crashed: Path) -> None:
    """More holes than ranges and no word of what they are: the session ends rather than refusing, and the next one goes on."""
    site = made_site(tmp_path, QUICK_SITE)
    async with site.serve() as controller:
        backlog = Backlog(tmp_path / "agent", site, MANY_COUNT)
        shutil.copytree(crashed, tmp_path / "agent", dirs_exist_ok=True)
        await backlog.open()
        await backlog.forget_merging()
        held = await backlog.held()
        async with backlog.connected():
            await backlog.drained()
        assert len(backlog.link.sent) > 1  # the controller ended the first
        async with backlog.connected():  # what is left of the holes is closed by a hello
            live = await backlog.append(1)
            await backlog.drained()
        assert (await backlog.spool.state()).rejected_count == 0
        found = await verified(site, backlog, 1, live[-1])
        assert (found.stored_count, found.merged_count) == (len(held) + len(live), 0)
        assert sum(told_lost(controller)) == MANY_COUNT - len(held)  # each once
        await backlog.aclose()


async def test_rounds_that_were_dropped_are_told_lost_once_and_never_as_merged(tmp_path: Path) -> None:
    """Means dropped for age: the agent counts the rounds in them, the controller closes their numbers and says how many."""
    site = made_site(tmp_path)
    async with site.serve() as controller:
        backlog = Backlog(tmp_path / "agent", site, 200, max_age_s=SPACING_S * 301)
        await backlog.open()
        await backlog.append(200)
        assert await backlog.thin() > 80
        later_unix_s = SystemClock().now().timestamp() + SPACING_S * 150
        merged, dropped_count = await backlog.spool.relieve(later_unix_s, ())
        state = await backlog.spool.state()
        assert merged == 0 and dropped_count == state.dropped_count == state.oldest_sequence - 1 > 100
        for _ in range(2):
            async with backlog.connected():
                await backlog.append(1)
                await backlog.drained()
        assert backlog.link.welcomes[-1].up_to == 201
        assert told_lost(controller) == [dropped_count]
        found = await verified(site, backlog, 1, 202)
        assert list(found.missing) == list(range(1, dropped_count + 1))
        assert found.stored_count + found.merged_count == 202 - dropped_count
        await backlog.aclose()
