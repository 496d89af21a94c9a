"""The agent link over real gRPC with mutual TLS: storing, acknowledging, refusing, replacing, restarting."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc
import grpc.aio
import pytest

from swingbus.faults import Forbidden, InvalidInput, OverBudget
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_rpc
from swingbus.fleet.v1alpha import fleet_service_pb2_grpc
from swingbus.link.v1alpha import agent_link_service_pb2 as pb2
from swingbus.link.v1alpha import agent_link_service_pb2_grpc, link_pb2
from swingbus.rpc.roles import Role
from swingbus.rpc.status import fault_from_rpc_error
from swingbus_controller.domain.fleet.sequences import MAX_RANGES
from tests.fakes.controllers import SITE, TestSite
from tests.fakes.link_agent import LinkAgent, make_batch, make_inventory

AGENT = "sites/north/agents/edge-1"


@pytest.fixture
def site(tmp_path: Path) -> TestSite:
    """A site file with its certificates."""
    return TestSite(tmp_path)


def fleet_of(channel: grpc.aio.Channel) -> fleet_service_pb2_grpc.FleetServiceAsyncStub:
    """Return FleetService on a channel."""
    return fleet_service_pb2_grpc.FleetServiceStub(channel)


async def verify(site: TestSite, ranges: list[int], spool_uid: str = "spool-1") -> fleet_rpc.VerifySequencesResponse:
    """Ask the controller's database for sequences."""
    async with site.channel("vera", Role.VIEWER) as channel:
        request = fleet_rpc.VerifySequencesRequest(name=AGENT, spool_uid=spool_uid, ranges=ranges)
        return await fleet_of(channel).VerifySequences(request, timeout=10)


async def test_batches_arrive_are_acknowledged_after_storing(site: TestSite) -> None:
    """Every acknowledged number is in the database, with its samples."""
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        assert agent.credit == 16
        await agent.send(*[make_batch(n) for n in range(1, 41)])
        await agent.wait_told(*range(1, 41))
        assert agent.acked == 40 and not agent.rejected
        assert agent.ack_count < 40  # one acknowledgement per commit, not per batch
        found = await verify(site, [1, 50])
        assert (found.stored_count, found.sample_count) == (40, 120)
        assert list(found.missing) == list(range(41, 51))
        assert controller.fleet.agents["edge-1"].acked_sequence == 40
        await agent.close()


async def test_backlog_newest_first_is_acknowledged_as_ranges(site: TestSite) -> None:
    """After an outage the newest batch comes first: it is acknowledged above a gap that later closes."""
    async with site.serve(), site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        await agent.send(make_batch(10, boottime_s=1000.0))
        await agent.wait_told(10)
        assert (agent.acked, agent.ranges) == (0, [10, 10])
        await agent.send(*[make_batch(n, boottime_s=990.0 + n) for n in range(9, 0, -1)])
        await agent.wait_told(*range(1, 10))
        assert (agent.acked, agent.ranges) == (10, [])


async def test_batch_sent_twice_counts_once(site: TestSite) -> None:
    """A repeat is acknowledged again and changes neither samples nor intervals."""
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        batch = make_batch(1)
        await agent.send(batch, batch, batch)
        await agent.wait_told(1)
        await agent.close()
        totals = controller.telemetry.meter_totals("m-grid", 0.0, 10)
        assert sum(total.covered_s for total in totals) == pytest.approx(1.0)
        assert controller.fleet.agents["edge-1"].sample_count == 3


def _hostile_batches() -> dict[str, tuple[link_pb2.TelemetryBatch, str]]:
    """Return batches that can never be stored, with a piece of the reason that is due."""
    short = make_batch(1)
    del short.banks[0].values[-1]
    rows = make_batch(2, devices=4)
    index = make_batch(3)
    index.banks[0].bank_index = 7
    infinite = make_batch(4)
    infinite.banks[0].values[0] = float("inf")
    meter = make_batch(5)
    meter.meters[0].power_w = float("nan")
    backward = make_batch(6)
    backward.meters[0].window_end_boottime_ns = 1
    kind = make_batch(7, events=[link_pb2.AgentEvent(kind="No Word!")])
    huge = make_batch(8)
    huge.host_values.extend([1.0] * 1000)
    untimed = make_batch(9)
    untimed.ClearField("sample_time")
    twice = make_batch(10)
    twice.banks.append(twice.banks[0])
    meter_index = make_batch(11, meter_index=5)
    beyond = make_batch(2**41)
    backward_mean, early_mean = make_batch(12), make_batch(13)
    backward_mean.first_sequence, early_mean.first_sequence = 99, -1
    return {
        "a value short": (short, "8 values, 9 were announced"),
        "rows of another bank": (rows, "were announced (3 devices)"),
        "unknown bank": (index, "bank_index 7"),
        "infinite reading": (infinite, "infinite number"),
        "NaN from a meter": (meter, "leave out what was not read"),
        "window backwards": (backward, "ends before it starts"),
        "event kind": (kind, "no noun_verb word"),
        "host values": (huge, "1002 host_values"),
        "no time": (untimed, "sample_time is missing"),
        "bank twice": (twice, "twice"),
        "unknown meter": (meter_index, "meter_index 5"),
        "number too large": (beyond, "outside 1 to"),
        "mean of later numbers": (backward_mean, "first_sequence 99 is outside 1 to 12"),
        "mean of no numbers": (early_mean, "first_sequence -1 is outside 1 to 13"),
    }


async def test_hostile_batches_are_refused_with_reasons_and_the_stream_goes_on(site: TestSite) -> None:
    """Each malformed batch is told what is wrong with it; the good one after them is stored."""
    hostile = _hostile_batches()
    async with site.serve(), site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        await agent.send(*[batch for batch, _ in hostile.values()])
        await agent.send(make_batch(99))
        await agent.wait_told(99, *[batch.sequence for batch, _ in hostile.values()])
        for name, (batch, reason) in hostile.items():
            assert reason in agent.rejected[batch.sequence], name
        assert agent.is_stored(99)
        assert (await verify(site, [1, 13])).stored_count == 0


async def test_number_reused_for_another_batch_is_refused(site: TestSite) -> None:
    """A spool that was restored from a copy gives numbers out again: the stored batch stays, the new one is told so."""
    async with site.serve(), site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        await agent.send(make_batch(1, boottime_s=100.0), make_batch(2, boottime_s=101.0))
        await agent.wait_told(1, 2)
        await agent.close()
        again = LinkAgent(channel, "edge-1")
        await again.connect(newest_sequence=0)
        assert again.acked == 2  # the welcome tells what is stored
        await again.send(make_batch(2, boottime_s=555.0))
        while 2 not in again.rejected:
            await again._take_one()
        assert "spool went back" in again.rejected[2]


async def test_spool_with_too_many_gaps_loses_its_session_and_no_batch(tmp_path: Path) -> None:
    """Nothing is refused for ever: what joins a range still comes in, and a hello closes what the agent has no more."""
    text = SITE.replace("credit = 16", "credit = 256").replace("commit_interval_s = 0.05", "commit_interval_s = 0.01")
    site = TestSite(tmp_path, text)
    odd = list(range(1, 2 * MAX_RANGES, 2))
    beyond = odd[-1] + 2
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agent.send(*[make_batch(n, boottime_s=1000.0 + n) for n in odd]))
            tasks.create_task(agent.wait_told(odd[-1]))
        await agent.send(make_batch(2, boottime_s=1002.0))
        await agent.wait_told(2)
        further = make_batch(beyond + 1, boottime_s=1001.0 + beyond)  # the join made room for one
        await agent.send(further)
        await agent.wait_told(further.sequence)
        await agent.send(make_batch(beyond + 9, boottime_s=1009.0 + beyond))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await agent.close()
        fault = fault_from_rpc_error(ended.value)
        assert isinstance(fault, OverBudget) and fault.reason == "TOO_MANY_GAPS"
        assert agent.is_stored(further.sequence) and not agent.rejected
        again = LinkAgent(channel, "edge-1")
        await again.connect(oldest_sequence=beyond, newest_sequence=beyond + 9)
        assert again.acked == beyond - 1
        await again.send(make_batch(beyond + 9, boottime_s=1009.0 + beyond))
        await again.wait_told(beyond + 9)
        assert not again.rejected
        assert (await verify(site, [1, beyond - 1])).stored_count == MAX_RANGES + 1
        await again.close()
        told = [e.entry.facts for e in controller.journal.read() if e.entry.kind == "batches_lost"]
        assert [(f["lost_count"], f["up_to"]) for f in told] == [(str(MAX_RANGES - 1), str(beyond - 1))]


@pytest.mark.parametrize(("oldest", "closed"), [(6, 5), (0, 7), (2**50, 7)], ids=["below", "empty spool", "beyond all"])
async def test_numbers_that_an_agent_has_no_more_are_closed_and_told_once(
    site: TestSite, oldest: int, closed: int
) -> None:
    """Up to the oldest that it has, never above the newest that it gave out; also for the controller's next run."""
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        await agent.send(make_batch(3))
        await agent.wait_told(3)
        await agent.close()
        for _ in range(2):
            again = LinkAgent(channel, "edge-1")
            await again.connect(oldest_sequence=oldest, newest_sequence=7)
            assert (again.acked, again.ranges) == (closed, [])
            await again.close()
        told = [e.entry.facts["lost_count"] for e in controller.journal.read() if e.entry.kind == "batches_lost"]
        assert told == [str(closed - 1)]
    async with site.serve(), site.channel("edge-1", Role.AGENT) as channel:
        last = LinkAgent(channel, "edge-1")
        await last.connect()
        assert last.acked == closed
        await last.close()


async def test_agent_that_claims_another_name_is_forbidden(site: TestSite) -> None:
    """Hello must carry the certificate's name, on both streams."""
    async with site.serve(), site.channel("edge-2", Role.AGENT) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await LinkAgent(channel, "edge-1").connect()
        fault = fault_from_rpc_error(refused.value)
        assert isinstance(fault, Forbidden) and fault.reason == "NAME_MISMATCH"
        stub = agent_link_service_pb2_grpc.AgentLinkServiceStub(channel)
        call = stub.StreamControl()
        await call.write(pb2.StreamControlRequest(hello=pb2.ControlHello(agent="edge-1", instance_uid="x")))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert fault_from_rpc_error(refused.value).reason == "NAME_MISMATCH"


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"", b"\x0a\x02\x0a\x50"])
async def test_garbage_bytes_end_the_stream_with_a_reason(site: TestSite, payload: bytes) -> None:
    """Bytes that are no message cannot be refused by number: the stream ends, the controller lives."""
    async with site.serve(), site.channel("edge-1", Role.AGENT) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(
            "/swingbus.link.v1alpha.AgentLinkService/StreamTelemetry"
        )()
        await call.write(payload)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert isinstance(fault_from_rpc_error(refused.value), InvalidInput)
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        await agent.send(make_batch(1))
        await agent.wait_told(1)


async def test_operator_may_not_use_the_agent_link(site: TestSite) -> None:
    """An operator's certificate, even an admin's, reaches no stream."""
    async with site.serve(), site.channel("ada", Role.ADMIN) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await LinkAgent(channel, "ada").connect()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_second_stream_of_an_agent_ends_the_first(site: TestSite) -> None:
    """Two streams of one certificate: the newer one holds."""
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        first, second = LinkAgent(channel, "edge-1"), LinkAgent(channel, "edge-1")
        await first.connect(instance="run-1")
        await second.connect(instance="run-2")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await first._take_one()
        assert fault_from_rpc_error(ended.value).reason == "SESSION_REPLACED"
        await second.send(make_batch(1))
        await second.wait_told(1)
        assert controller.fleet.agents["edge-1"].instance_uid == "run-2"


async def test_inventory_change_in_the_stream_changes_what_batches_must_look_like(site: TestSite) -> None:
    """A device more: batches of the old shape are refused, of the new one stored."""
    async with site.serve(), site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        await agent.call.write(pb2.StreamTelemetryRequest(inventory=make_inventory(devices=4)))
        await agent.send(make_batch(1), make_batch(2, devices=4))
        await agent.wait_told(1, 2)
        assert "12 were announced" in agent.rejected[1]
        assert agent.is_stored(2)


async def test_credit_holds_a_flood_back(site: TestSite) -> None:
    """An agent that ignores its credit is slowed by flow control; nothing is lost and memory stays within credit."""
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agent.send(*[make_batch(n) for n in range(1, 301)]))
            tasks.create_task(agent.wait_told(*range(1, 301)))
        assert agent.acked == 300
        assert (
            controller.metrics.registry.get_sample_value("swingbus_controller_batches_total", {"site": "north"})
            == 300.0
        )


async def test_observe_hears_reports_and_never_speaks(site: TestSite) -> None:
    """Under OBSERVE the control stream carries reports up and nothing down, renewals included."""
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        call = agent_link_service_pb2_grpc.AgentLinkServiceStub(channel).StreamControl()
        effective = link_pb2.EffectiveState(
            epoch=3, boot_id="boot-1", boottime_ns=5, banks=[link_pb2.BankEffective(bank="s19j", grant_w=9000.0)]
        )
        await call.write(
            pb2.StreamControlRequest(hello=pb2.ControlHello(agent="edge-1", instance_uid="x", effective=effective))
        )
        await call.write(pb2.StreamControlRequest(renewal=pb2.Renewal(sent_boottime_ns=7)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await call.read()
        report = controller.fleet.agents["edge-1"].report
        assert report is not None and report.banks[0].grant_w == 9000.0


async def test_controller_killed_after_acknowledging_has_lost_nothing(site: TestSite) -> None:
    """SIGKILL right after an acknowledgement: the restarted controller has every acknowledged number and goes on from there."""
    process = await site.spawn()
    async with site.channel("edge-1", Role.AGENT) as channel:
        agent = LinkAgent(channel, "edge-1")
        await agent.connect()
        await agent.send(*[make_batch(n) for n in range(1, 31)])
        await agent.wait_told(*range(1, 26))
        process.send_signal(signal.SIGKILL)
        await process.wait()
    acked = agent.acked
    assert acked >= 25
    process = await site.spawn()
    try:
        assert (await verify(site, [1, acked])).stored_count == acked
        async with site.channel("edge-1", Role.AGENT) as channel:
            again = LinkAgent(channel, "edge-1")
            await again.connect()
            assert again.acked >= acked
            await again.send(make_batch(31))
            await again.wait_told(31)
        async with site.channel("vera", Role.VIEWER) as channel:
            agents = await fleet_of(channel).ListAgents(fleet_rpc.ListAgentsRequest(parent="sites/north"), timeout=10)
            assert agents.agents[0].sample_count >= 3 * (acked + 1)
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
