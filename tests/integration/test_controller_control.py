"""The control stream with a control plane behind it: fence first, newest order only, one writer, markers that never run back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from swingbus.capacity.v1alpha import capacity_service_pb2, capacity_service_pb2_grpc
from swingbus.clock import SystemClock
from swingbus.fleet.v1alpha import fleet_pb2, fleet_service_pb2, fleet_service_pb2_grpc
from swingbus.link.v1alpha import agent_link_service_pb2 as pb2
from swingbus.link.v1alpha import agent_link_service_pb2_grpc, link_pb2
from swingbus.rpc.interceptors import DoorInterceptor
from swingbus.rpc.roles import Role
from swingbus.rpc.server import bind_port, build_server, server_credentials
from swingbus.rpc.status import fault_from_rpc_error
from swingbus_controller.adapters.metrics import ControllerMetrics
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.adapters.storage.telemetry import SqliteTelemetry
from swingbus_controller.api.codec import desired_hash
from swingbus_controller.api.link_service import AgentLinkService
from swingbus_controller.app.ingest import Ingest, IngestSettings
from swingbus_controller.app.recorder import Recorder
from swingbus_controller.domain.fleet.fleet import Fleet
from swingbus_controller.domain.fleet.orders import (
    AdoptOrder,
    AgentOrder,
    AgentReport,
    BankCounting,
    BankOrder,
    Mode,
    PointOrder,
    RenewalReply,
    SafeShareStep,
    Urgency,
)
from swingbus_controller.settings import load_configuration
from tests.fakes.controllers import SITE, TestSite


def order(generation: int, grant_w: float = 9000.0) -> AgentOrder:
    """Return an order for one bank."""
    return AgentOrder(
        epoch=7,
        controller_instance="c-1",
        generation=generation,
        ttl_s=20.0,
        banks=(
            BankOrder(
                bank="s19j",
                generation=generation,
                grant_w=grant_w,
                device_budget_w=grant_w,
                points=(PointOrder(point="normal", mode=Mode.MINING, power_w=3068.0, count=3),),
                urgency=Urgency.EMERGENCY,
                safe_shares=(SafeShareStep(start_unix_s=None, power_w=100.0),),
                locked_out=False,
            ),
        ),
    )


class ScriptedPlane:
    """A control plane that says what a test puts in, and keeps what it was told."""

    def __init__(self) -> None:
        self.orders: list[AgentOrder] = []
        self.reports: list[tuple[AgentReport, bool]] = []
        self.markers: list[int] = []
        self.gone: list[str] = []
        self.left = asyncio.Event()
        self.may_write = True
        self._changed = asyncio.Event()

    def issue(self, *orders: AgentOrder) -> None:
        """Journal orders."""
        self.orders += orders
        self._changed.set()

    def take_report(self, report: AgentReport, *, is_hello: bool, now_s: float) -> None:
        self.reports.append((report, is_hello))

    def note_marker(self, agent: str, marker: int, now_s: float) -> None:
        self.markers.append(marker)

    def agent_gone(self, agent: str, now_s: float) -> None:
        self.gone.append(agent)
        self.left.set()

    def adopt_order(self, agent: str) -> AdoptOrder | None:
        if not self.may_write:
            return None
        counting = BankCounting(
            bank="s19j",
            gpu_limit_ratio=1.07,
            asic_target_ratio=1.1,
            asic_boot_w=3400.0,
            rest_w=15.0,
            device_ceiling_w=3575.0,
            cooling_ratio=0.05,
            losses_ratio=0.01,
            fixed_w=500.0,
        )
        return AdoptOrder(epoch=7, controller_instance="c-1", counting=(counting,))

    def renew(self, agent: str, sent_boottime_ns: int, now_s: float) -> RenewalReply | None:
        return RenewalReply(sent_boottime_ns=sent_boottime_ns, epoch=7, ttl_s=20.0) if self.may_write else None

    def order_for(self, agent: str) -> AgentOrder | None:
        return self.orders[-1] if self.orders and self.may_write else None

    async def wait_order(self, agent: str, after_generation: int) -> AgentOrder:
        while not self.orders or self.orders[-1].generation <= after_generation:
            self._changed.clear()
            await self._changed.wait()
        return self.orders[-1]


@asynccontextmanager
async def serve(site: TestSite, plane: ScriptedPlane) -> AsyncIterator[None]:
    """Serve the link alone, with a control plane."""
    clock = SystemClock()
    declared = load_configuration(site.config, environment={}).site
    fleet, metrics = Fleet(declared, period_s=1.0), ControllerMetrics("north")
    journal, telemetry = SqliteJournal(site.folder / "j"), SqliteTelemetry(site.folder / "t")
    journal.claim_epoch("c-1", 0)
    with ThreadPoolExecutor(max_workers=1) as writer:
        ingest = Ingest(
            fleet=fleet,
            store=telemetry,
            recorder=Recorder(journal, clock, metrics),
            clock=clock,
            settings=IngestSettings(credit=8, commit_interval_s=0.05, keep_s=1e9, keep_bytes=10**12, max_agents=9),
            metrics=metrics,
            writer=writer,
        )
        link = AgentLinkService(ingest=ingest, fleet=fleet, clock=clock, period_s=1.0, control=plane)
        server = build_server(DoorInterceptor(clock))
        link.add_to_server(server)
        site.port = bind_port(server, "127.0.0.1:0", server_credentials(site.authority.serving.identity))
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)
    journal.close()
    telemetry.close()


async def connect(
    channel: grpc.aio.Channel, ticket: str = "t-1"
) -> grpc.aio.StreamStreamCall[pb2.StreamControlRequest, pb2.StreamControlResponse]:
    """Open a control stream and say hello."""
    call = agent_link_service_pb2_grpc.AgentLinkServiceStub(channel).StreamControl()
    effective = link_pb2.EffectiveState(boot_id="b", boottime_ns=1, banks=[link_pb2.BankEffective(bank="s19j")])
    hello = pb2.ControlHello(agent="edge-1", instance_uid="i", effective=effective, ticket=ticket)
    await call.write(pb2.StreamControlRequest(hello=hello))
    return call


async def read(
    call: grpc.aio.StreamStreamCall[pb2.StreamControlRequest, pb2.StreamControlResponse],
) -> pb2.StreamControlResponse:
    """Read one message."""
    async with asyncio.timeout(10):
        message = await call.read()
    assert isinstance(message, pb2.StreamControlResponse)
    return message


@pytest.fixture
def site(tmp_path: Path) -> TestSite:
    """A site file with its certificates."""
    return TestSite(tmp_path)


async def test_fence_comes_before_the_order(site: TestSite) -> None:
    """Adopt first, with how the site counts; then the newest order with its hash; both echo the newest ticket."""
    plane = ScriptedPlane()
    plane.issue(order(1), order(2))
    async with serve(site, plane), site.channel("edge-1", Role.AGENT) as channel:
        call = await connect(channel)
        adopt = (await read(call)).adopt
        assert (adopt.epoch, adopt.controller_instance, adopt.marker, adopt.ticket) == (7, "c-1", 1, "t-1")
        assert adopt.counting[0].asic_boot_w == 3400.0
        desired = (await read(call)).desired
        assert (desired.generation, desired.marker, desired.ticket, desired.ttl.seconds) == (2, 2, "t-1", 20)
        assert desired.hash == desired_hash(desired.banks)
        assert desired.banks[0].urgency == link_pb2.URGENCY_EMERGENCY
        assert not desired.banks[0].safe_shares[0].HasField("start_time")
        assert plane.reports[0][1] is True
        call.cancel()
        async with asyncio.timeout(5):
            await plane.left.wait()
    assert plane.gone == ["edge-1"]


async def test_orders_and_renewals_at_once_all_arrive(site: TestSite) -> None:
    """Fifty orders and fifty renewals race: the last of each arrives, markers only grow and were noted before they were sent."""
    plane = ScriptedPlane()
    async with serve(site, plane), site.channel("edge-1", Role.AGENT) as channel:
        call = await connect(channel)
        assert (await read(call)).HasField("adopt")

        async def renew() -> None:
            for n in range(1, 51):
                renewal = pb2.Renewal(sent_boottime_ns=n, ticket=f"r-{n}")
                await call.write(pb2.StreamControlRequest(renewal=renewal))

        async def give_orders() -> None:
            for n in range(1, 51):
                plane.issue(order(n))
                await asyncio.sleep(0)

        seen: list[pb2.StreamControlResponse] = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(renew())
            tasks.create_task(give_orders())
            while not (
                any(m.renewed.sent_boottime_ns == 50 for m in seen) and any(m.desired.generation == 50 for m in seen)
            ):
                seen.append(await read(call))
        markers = [m.desired.marker or m.renewed.marker for m in seen]
        assert markers == sorted(set(markers))
        assert plane.markers == [1, *markers]
        assert all(m.renewed.ticket == f"r-{m.renewed.sent_boottime_ns}" for m in seen if m.HasField("renewed"))
        generations = [m.desired.generation for m in seen if m.HasField("desired")]
        assert generations == sorted(generations)


async def test_of_reports_that_pile_up_the_newest_is_taken(site: TestSite) -> None:
    """Two hundred at once: the last is taken and most of the others never; no later one is followed by an earlier one."""
    plane = ScriptedPlane()
    async with serve(site, plane), site.channel("edge-1", Role.AGENT) as channel:
        call = await connect(channel)
        await read(call)
        for n in range(1, 201):
            await call.write(pb2.StreamControlRequest(effective=link_pb2.EffectiveState(boot_id="b", boottime_ns=n)))
        async with asyncio.timeout(10):
            while plane.reports[-1][0].boottime_s != 200 / 1e9:
                await asyncio.sleep(0.02)
        taken = [report.boottime_s for report, is_hello in plane.reports if not is_hello]
        assert taken == sorted(taken) and len(taken) < 100
        call.cancel()


async def test_renewal_is_heard_between_the_reports_before_and_after_it(site: TestSite) -> None:
    """Whoever decides on a report that came before a new ticket has decided before the ticket is known."""
    plane = ScriptedPlane()
    async with serve(site, plane), site.channel("edge-1", Role.AGENT) as channel:
        call = await connect(channel)
        await read(call)
        for n in (2, 3):
            await call.write(pb2.StreamControlRequest(effective=link_pb2.EffectiveState(boot_id="b", boottime_ns=n)))
        await call.write(pb2.StreamControlRequest(renewal=pb2.Renewal(sent_boottime_ns=4, ticket="r-4")))
        await call.write(pb2.StreamControlRequest(effective=link_pb2.EffectiveState(boot_id="b", boottime_ns=5)))
        assert (await read(call)).renewed.ticket == "r-4"
        before = [report.boottime_s * 1e9 for report, _ in plane.reports]
        assert 3 in map(round, before), "what was read before the renewal was taken in before it"
        async with asyncio.timeout(5):
            while round(plane.reports[-1][0].boottime_s * 1e9) != 5:
                await asyncio.sleep(0.01)
        call.cancel()


async def test_stream_falls_silent_when_nothing_may_be_written_any_more(site: TestSite) -> None:
    """Fenced and ordered, then the authority falls: reports are still taken, no renewal is answered, no order is sent."""
    plane = ScriptedPlane()
    plane.issue(order(1))
    async with serve(site, plane), site.channel("edge-1", Role.AGENT) as channel:
        call = await connect(channel)
        assert [(await read(call)).WhichOneof("message") for _ in range(2)] == ["adopt", "desired"]
        plane.may_write = False
        plane.issue(order(2))
        await call.write(pb2.StreamControlRequest(renewal=pb2.Renewal(sent_boottime_ns=5, ticket="r")))
        await call.write(pb2.StreamControlRequest(effective=link_pb2.EffectiveState(boot_id="b", boottime_ns=2)))
        await is_silent(call)
        assert len(plane.reports) == 2 and plane.markers == [1, 2]


async def is_silent(call: grpc.aio.StreamStreamCall[pb2.StreamControlRequest, pb2.StreamControlResponse]) -> None:
    """Check that nothing comes for a while; the call is cancelled by that."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.7):
            pytest.fail(f"below CONTROL came {await call.read()}")


async def set_authority(site: TestSite, authority: fleet_pb2.Authority) -> None:
    """Order an authority as an admin."""
    request = capacity_service_pb2.SetAuthorityRequest(
        name="sites/north",
        authority=authority,
        options=capacity_service_pb2.WriteOptions(request_id=f"a-{authority}", reason="test"),
    )
    async with site.channel("ada", Role.ADMIN) as channel:
        await capacity_service_pb2_grpc.CapacityServiceStub(channel).SetAuthority(request, timeout=10)


async def test_lockout_that_an_agent_holds_reaches_the_plane(site: TestSite) -> None:
    """A report says what the agent's last order locked: the bank, or devices by name."""
    plane = ScriptedPlane()
    bank = link_pb2.BankEffective(bank="s19j", locked_out=True, locked_devices=["asic-001"])
    async with serve(site, plane), site.channel("edge-1", Role.AGENT) as channel:
        call = await connect(channel)
        await read(call)
        await call.write(pb2.StreamControlRequest(effective=link_pb2.EffectiveState(boot_id="b", banks=[bank])))
        await call.write(pb2.StreamControlRequest(renewal=pb2.Renewal(sent_boottime_ns=5)))
        await read(call)
        told = [(b.locked_out, b.locked_devices) for report, _ in plane.reports for b in report.banks]
        assert told == [(False, ()), (True, ("asic-001",))]


async def test_program_writes_nothing_below_control_and_fences_all_once_it_rises(tmp_path: Path) -> None:
    """Under ADVISE no agent hears a word; an admin raises the authority: each stream ends, and the next one begins with the fence."""
    site = TestSite(tmp_path, SITE.replace('name = "north"', 'name = "north"\nauthority = "control"'))
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        await set_authority(site, fleet_pb2.AUTHORITY_ADVISE)
        silent = await connect(channel)
        await silent.write(pb2.StreamControlRequest(renewal=pb2.Renewal(sent_boottime_ns=5, ticket="r")))
        await is_silent(silent)
        waiting = await connect(channel, "t-2")
        await set_authority(site, fleet_pb2.AUTHORITY_CONTROL)
        report = link_pb2.EffectiveState(boot_id="b", boottime_ns=2, banks=[link_pb2.BankEffective(bank="s19j")])
        await waiting.write(pb2.StreamControlRequest(effective=report))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await waiting.read()
        assert fault_from_rpc_error(ended.value).reason == "NEW_EPOCH"
        fenced = await connect(channel, "t-3")
        assert (await read(fenced)).adopt.epoch == controller.journal.epoch == 2
        fenced.cancel()


async def test_newer_control_stream_ends_the_older(site: TestSite) -> None:
    """The older stream ends with a reason; the plane is not told that the agent is gone."""
    plane = ScriptedPlane()
    async with serve(site, plane), site.channel("edge-1", Role.AGENT) as channel:
        first = await connect(channel)
        await read(first)
        second = await connect(channel)
        await read(second)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await first.read()
        assert fault_from_rpc_error(ended.value).reason == "SESSION_REPLACED"
        assert plane.gone == []


@pytest.mark.parametrize(
    "effective",
    [
        link_pb2.EffectiveState(banks=[link_pb2.BankEffective(bank="s19j", grant_w=float("nan"))]),
        link_pb2.EffectiveState(banks=[link_pb2.BankEffective(bank="s19j")] * 2),
        link_pb2.EffectiveState(banks=[link_pb2.BankEffective(bank="s19j", ready_workloads=["llm"])]),
        link_pb2.EffectiveState(epoch=-1),
        link_pb2.EffectiveState(banks=[link_pb2.BankEffective(bank="S19J")]),
        link_pb2.EffectiveState(banks=[link_pb2.BankEffective(bank="s19j", locked_devices=["d"] * 20_001)]),
    ],
    ids=[
        "NaN grant",
        "bank twice",
        "workload without unit",
        "negative epoch",
        "bad id",
        "endless list of locked devices",
    ],
)
async def test_hostile_report_ends_the_stream_and_reaches_nobody(
    site: TestSite, effective: link_pb2.EffectiveState
) -> None:
    """A report that makes no sense is refused before the control plane sees it."""
    plane = ScriptedPlane()
    async with serve(site, plane), site.channel("edge-1", Role.AGENT) as channel:
        call = await connect(channel)
        await read(call)
        await call.write(pb2.StreamControlRequest(effective=effective))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(plane.reports) == 1  # the hello's


async def test_controller_under_control_fences_its_agents(tmp_path: Path) -> None:
    """The whole program with authority control loads the engine and adopts an agent under its epoch."""
    site = TestSite(tmp_path, SITE.replace('name = "north"', 'name = "north"\nauthority = "control"'))
    async with site.serve() as controller, site.channel("edge-1", Role.AGENT) as channel:
        call = await connect(channel)
        adopt = (await read(call)).adopt
        assert adopt.epoch == controller.journal.epoch == 1
        assert [counting.bank for counting in adopt.counting] == ["s19j"]
        call.cancel()


async def test_limit_that_is_changed_in_the_file_counts_while_it_runs(tmp_path: Path) -> None:
    """The real file, read again by the real program: the newer limit is what operators are shown, and its author is on the record."""
    text = SITE.replace('name = "north"', 'name = "north"\nauthority = "control"', 1)
    site = TestSite(tmp_path, text)
    async with site.serve() as controller, site.channel("vera", Role.VIEWER) as channel:
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        request = fleet_service_pb2.GetFeederRequest(name="sites/north/feeders/grid")

        async def limits() -> list[float]:
            return [each.limit_w for each in (await stub.GetFeeder(request, timeout=5)).feeder.limits]

        assert await limits() == [400_000.0]
        written = site.config.with_suffix(".new")
        written.write_text(text.replace("limit_w = 400000", "limit_w = 350000"), encoding="utf-8")
        written.replace(site.config)
        async with asyncio.timeout(20):
            while await limits() != [350_000.0]:
                await asyncio.sleep(0.2)
        events = [each.entry for each in controller.journal.read() if each.entry.kind == "limit_set"]
        assert [(each.author, each.subject) for each in events] == [("site file", "sites/north/feeders/grid")]
