"""FleetService, MarketService and the refusals of OBSERVE over real gRPC, fed by an agent on the wire."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from swingbus.bundle import format_bundle, write_private
from swingbus.capacity.v1alpha import capacity_service_pb2 as capacity_rpc
from swingbus.capacity.v1alpha import capacity_service_pb2_grpc
from swingbus.clock import SystemClock
from swingbus.faults import AlreadyExists, Forbidden, InvalidInput, NotFound, SwingbusError
from swingbus.fleet.v1alpha import fleet_pb2, fleet_service_pb2_grpc
from swingbus.fleet.v1alpha import fleet_service_pb2 as rpc
from swingbus.link.v1alpha import link_pb2
from swingbus.market.v1alpha import market_service_pb2 as market_rpc
from swingbus.market.v1alpha import market_service_pb2_grpc
from swingbus.rpc.roles import Role
from swingbus.rpc.status import fault_from_rpc_error
from swingctl.main import run
from tests.fakes.controllers import TestSite
from tests.fakes.link_agent import LinkAgent, make_batch
from tests.fakes.terminal import FakeTerminal

SITE = "sites/north"
BANK = "sites/north/agents/edge-1/banks/s19j"


@pytest.fixture
def site(tmp_path: Path) -> TestSite:
    """A site file with its certificates."""
    return TestSite(tmp_path)


async def fault_of(call: Awaitable[object]) -> SwingbusError:
    """Return the fault that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return fault_from_rpc_error(refused.value)


async def test_site_is_shown_as_it_is_heard(site: TestSite) -> None:
    """Feeders, agent, bank and devices carry what came in; what is not known is absent with a status, never 0."""
    lost = [link_pb2.DEVICE_CONDITION_OK, link_pb2.DEVICE_CONDITION_OK, link_pb2.DEVICE_CONDITION_HUNG]
    async with (
        site.serve(),
        site.channel("edge-1", Role.AGENT) as link,
        site.channel("vera", Role.VIEWER) as channel,
    ):
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        before = (await stub.ListAgents(rpc.ListAgentsRequest(parent=SITE), timeout=5)).agents
        assert [(a.name, a.state, a.HasField("last_seen_time")) for a in before] == [
            ("sites/north/agents/edge-1", "never_seen", False)
        ]
        agent = LinkAgent(link, "edge-1")
        await agent.connect()
        await agent.send(make_batch(1), make_batch(2), make_batch(3, conditions=lost))
        await agent.wait_told(1, 2, 3)

        shown = (await stub.GetSite(rpc.GetSiteRequest(name=SITE), timeout=5)).site
        assert shown.authority == fleet_pb2.AUTHORITY_OBSERVE
        assert (shown.limit_w, shown.epoch, shown.live_agent_count, shown.agent_count) == (400_000.0, 1, 1, 1)
        assert shown.metered_power_w == 10_000.0
        assert shown.attributed_power_w == pytest.approx(9_000.0)
        assert shown.unattributed_ratio == pytest.approx(0.1)
        assert not shown.within_authority and shown.claimed_power_w == 0.0  # no ledger under OBSERVE

        feeders = (await stub.ListFeeders(rpc.ListFeedersRequest(parent=SITE), timeout=5)).feeders
        assert [(f.name, f.parent, f.meter_state) for f in feeders] == [
            ("sites/north/feeders/grid", "", "live"),
            ("sites/north/feeders/c1", "sites/north/feeders/grid", "none"),
        ]
        assert not feeders[1].HasField("metered_power_w")

        view = (await stub.GetAgent(rpc.GetAgentRequest(name="sites/north/agents/edge-1"), timeout=5)).agent
        assert (view.state, view.version, view.acked_sequence, view.sample_count) == ("live", "1.2.3", 3, 9)
        assert dict(view.host_values) == {"cpu_ratio": 0.25}  # load_1m had no reading
        assert list(view.unsupported) == ["nvml: no library"]
        assert view.certificate_expire_time.seconds > view.last_seen_time.seconds

        bank = (await stub.GetBank(rpc.GetBankRequest(name=BANK), timeout=5)).bank
        assert (bank.state, bank.device_count, dict(bank.mode_counts)) == ("UNMANAGED", 3, {"MINING": 3})
        assert (bank.power_w, bank.hashrate_ths) == (9_000.0, 300.0)
        assert bank.ceiling_w == pytest.approx(3 * 3250 * 1.1) and not bank.HasField("grant_w")

        listed = (await stub.ListDevices(rpc.ListDevicesRequest(parent=BANK), timeout=5)).devices
        assert [d.name.rpartition("/")[2] for d in listed] == ["asic-000", "asic-001", "asic-002"]
        assert [f.field for f in listed[1].fields] == ["power_w", "hashrate_ths", "board_temperature_c"]
        first = (await stub.GetDevice(rpc.GetDeviceRequest(name=listed[0].name), timeout=5)).device
        assert {f.field: (f.HasField("value") and f.value, f.status) for f in first.fields} == {
            "power_w": (3000.0, ""),
            "hashrate_ths": (100.0, ""),
            "board_temperature_c": (False, "unsupported"),
            "uptime_s": (1000.0, ""),
        }
        hung = (await stub.GetDevice(rpc.GetDeviceRequest(name=listed[2].name), timeout=5)).device
        assert hung.condition == link_pb2.DEVICE_CONDITION_HUNG
        assert [(f.HasField("value"), f.status) for f in hung.fields] == [(False, "hung")] * 4


async def test_silent_agent_goes_dark_and_its_values_stale(site: TestSite) -> None:
    """Three missed periods: dark on the record, values shown as stale, meter dead after its own limit."""
    async with (
        site.serve(),
        site.channel("edge-1", Role.AGENT) as link,
        site.channel("vera", Role.VIEWER) as channel,
    ):
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        agent = LinkAgent(link, "edge-1")
        await agent.connect()
        await agent.send(make_batch(1))
        await agent.wait_told(1)
        await agent.close()
        kinds: list[str] = []
        async with asyncio.timeout(10):
            while "agent_went_dark" not in kinds:
                await asyncio.sleep(0.1)
                events = await stub.ListEvents(rpc.ListEventsRequest(parent=SITE), timeout=5)
                kinds = [event.kind for event in events.events]
        view = (await stub.GetAgent(rpc.GetAgentRequest(name="sites/north/agents/edge-1"), timeout=5)).agent
        assert view.state == "dark"
        device = (await stub.GetDevice(rpc.GetDeviceRequest(name=f"{BANK}/devices/asic-001"), timeout=5)).device
        assert {f.status for f in device.fields} == {"stale"}
        bank = (await stub.GetBank(rpc.GetBankRequest(name=BANK), timeout=5)).bank
        assert not bank.HasField("power_w")


async def test_pages_are_stable_and_complete(site: TestSite) -> None:
    """Pages of one give every device once, in order; a foreign token and a negative size are refused."""
    async with (
        site.serve(),
        site.channel("edge-1", Role.AGENT) as link,
        site.channel("vera", Role.VIEWER) as channel,
    ):
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        agent = LinkAgent(link, "edge-1")
        await agent.connect()
        names: list[str] = []
        token = ""
        while True:
            page = await stub.ListDevices(rpc.ListDevicesRequest(parent=SITE, page_size=1, page_token=token), timeout=5)
            names += [device.name.rpartition("/")[2] for device in page.devices]
            token = page.next_page_token
            if not token:
                break
        assert names == ["asic-000", "asic-001", "asic-002"]
        first = await stub.ListDevices(rpc.ListDevicesRequest(parent=SITE, page_size=1), timeout=5)
        foreign = stub.ListBanks(rpc.ListBanksRequest(parent=SITE, page_token=first.next_page_token), timeout=5)
        assert (await fault_of(foreign)).reason == "BAD_PAGE_TOKEN"
        nonsense = stub.ListBanks(rpc.ListBanksRequest(parent=SITE, page_token="%%%"), timeout=5)
        assert (await fault_of(nonsense)).reason == "BAD_PAGE_TOKEN"
        negative = stub.ListSites(rpc.ListSitesRequest(page_size=-1), timeout=5)
        assert isinstance(await fault_of(negative), InvalidInput)


@pytest.mark.parametrize(
    ("method", "request_message", "kind"),
    [
        ("GetSite", rpc.GetSiteRequest(name="sites/south"), NotFound),
        ("GetSite", rpc.GetSiteRequest(name="north"), InvalidInput),
        ("GetFeeder", rpc.GetFeederRequest(name="sites/north/feeders/none"), NotFound),
        ("GetAgent", rpc.GetAgentRequest(name="sites/north/agents/none"), NotFound),
        ("GetBank", rpc.GetBankRequest(name="sites/north/agents/edge-1/banks/none"), NotFound),
        ("GetDevice", rpc.GetDeviceRequest(name=f"{BANK}/devices/none"), NotFound),
        ("ListDevices", rpc.ListDevicesRequest(parent="sites/north/feeders/grid"), InvalidInput),
        ("ListEvents", rpc.ListEventsRequest(parent=SITE, after_revision=-1), InvalidInput),
        ("ListMeterIntervals", rpc.ListMeterIntervalsRequest(parent="sites/north/feeders/c1"), NotFound),
        (
            "VerifySequences",
            rpc.VerifySequencesRequest(name="sites/north/agents/edge-1", spool_uid="none", ranges=[1, 2]),
            NotFound,
        ),
        (
            "VerifySequences",
            rpc.VerifySequencesRequest(name="sites/north/agents/edge-1", spool_uid="s", ranges=[5, 2]),
            InvalidInput,
        ),
    ],
)
async def test_bad_request_is_refused_with_its_class(
    site: TestSite, method: str, request_message: object, kind: type[SwingbusError]
) -> None:
    """What is asked for wrongly is InvalidInput, what is not there is NotFound; both say the next step."""
    async with site.serve(), site.channel("vera", Role.VIEWER) as channel:
        call = getattr(fleet_service_pb2_grpc.FleetServiceStub(channel), method)
        assert isinstance(await fault_of(call(request_message, timeout=5)), kind)


async def test_watch_follows_the_record_from_a_list(site: TestSite) -> None:
    """List, then watch from its revision: every later event comes once, device events with their author."""
    async with (
        site.serve(),
        site.channel("edge-1", Role.AGENT) as link,
        site.channel("vera", Role.VIEWER) as channel,
    ):
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        listed = await stub.ListEvents(rpc.ListEventsRequest(parent=SITE, newest_first=True, page_size=1), timeout=5)
        assert listed.events[0].kind == "controller_came_up"
        watch = stub.WatchEvents(rpc.WatchEventsRequest(parent=SITE, after_revision=listed.revision), timeout=20)
        agent = LinkAgent(link, "edge-1")
        await agent.connect()
        woke = link_pb2.AgentEvent(kind="device_self_woke", bank="s19j", device="asic-002", message="woke by itself")
        await agent.send(make_batch(1, events=[woke]))
        await agent.wait_told(1)
        seen: list[fleet_pb2.Event] = []
        while not any(event.kind == "device_self_woke" for event in seen):
            message = await watch.read()
            assert isinstance(message, rpc.WatchEventsResponse)
            seen += message.events
        watch.cancel()
        assert [event.kind for event in seen] == ["agent_connected", "device_self_woke"]
        assert [event.revision for event in seen] == [listed.revision + 1, listed.revision + 2]
        assert seen[1].author == "edge-1" and seen[1].subject == f"{BANK}/devices/asic-002"
        device = (await stub.GetDevice(rpc.GetDeviceRequest(name=f"{BANK}/devices/asic-002"), timeout=5)).device
        assert list(device.accusations) == ["self_woke"]
        future = stub.WatchEvents(rpc.WatchEventsRequest(parent=SITE, after_revision=999), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await future.read()
        assert fault_from_rpc_error(refused.value).reason == "FUTURE_REVISION"


async def test_restarted_controller_knows_what_it_stored(site: TestSite) -> None:
    """After a stop and a start the fleet, its accusations and its events are there; the agent is dark until it speaks."""
    async with site.serve(), site.channel("edge-1", Role.AGENT) as link:
        agent = LinkAgent(link, "edge-1")
        await agent.connect()
        ignored = link_pb2.AgentEvent(kind="write_ignored", bank="s19j", device="asic-001", message="still hashing")
        await agent.send(make_batch(1), make_batch(2, events=[ignored]))
        await agent.wait_told(1, 2)
    async with site.serve() as controller, site.channel("vera", Role.VIEWER) as channel:
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        view = (await stub.GetAgent(rpc.GetAgentRequest(name="sites/north/agents/edge-1"), timeout=5)).agent
        assert (view.state, view.acked_sequence, view.sample_count, view.hostname) == ("dark", 2, 6, "edge")
        device = (await stub.GetDevice(rpc.GetDeviceRequest(name=f"{BANK}/devices/asic-001"), timeout=5)).device
        assert list(device.accusations) == ["ignored_write"]
        assert controller.journal.epoch == 2


async def test_meter_intervals_add_up(site: TestSite) -> None:
    """Readings of a meter become quarter-hours with mean, maximum, coverage and the devices' share."""
    async with (
        site.serve(),
        site.channel("edge-1", Role.AGENT) as link,
        site.channel("vera", Role.VIEWER) as channel,
    ):
        agent = LinkAgent(link, "edge-1")
        await agent.connect()
        start_s = 50_000.0
        await agent.send(*[make_batch(n, boottime_s=start_s + n, meter_w=10_000.0 + n) for n in range(1, 11)])
        await agent.wait_told(*range(1, 11))
        stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        found = await stub.ListMeterIntervals(
            rpc.ListMeterIntervalsRequest(parent="sites/north/feeders/grid"), timeout=5
        )
        assert sum(interval.covered_s for interval in found.intervals) == pytest.approx(10.0)
        assert max(interval.max_power_w for interval in found.intervals) == pytest.approx(10_010.0)
        assert all(interval.start_time.seconds % 900 == 0 for interval in found.intervals)
        assert not any(interval.HasField("energy_j") for interval in found.intervals)  # neither boundary was seen


async def test_push_is_journaled_and_a_repeat_changes_nothing(site: TestSite) -> None:
    """Signals survive a restart; a repeat is counted as one; the same request answers the same; staleness is shown."""
    now = Timestamp()
    now.GetCurrentTime()
    value = market_rpc.SignalValue(signal="power_price_usd_per_mwh", value="71.25", valid_time=now)
    push = market_rpc.PushSignalsRequest(parent=SITE, values=[value], request_id="r-1", reason="feed")
    async with site.serve(), site.channel("olga", Role.OPERATOR) as channel:
        stub = market_service_pb2_grpc.MarketServiceStub(channel)
        shown = (await stub.ListSignals(market_rpc.ListSignalsRequest(parent=SITE), timeout=5)).signals
        assert [(s.signal, s.value, s.source, s.stale) for s in shown] == [
            ("power_price_usd_per_mwh", "55.5", "fallback", True)
        ]
        dry = market_rpc.PushSignalsRequest(
            parent=SITE, values=[value], request_id="r-0", reason="feed", validate_only=True
        )
        assert (await stub.PushSignals(dry, timeout=5)).accepted_count == 1
        answer = await stub.PushSignals(push, timeout=5)
        assert (answer.accepted_count, answer.repeated_count) == (1, 0)
        assert await stub.PushSignals(push, timeout=5) == answer
        again = market_rpc.PushSignalsRequest(parent=SITE, values=[value], request_id="r-2", reason="feed")
        assert (await stub.PushSignals(again, timeout=5)).repeated_count == 1
        other = market_rpc.PushSignalsRequest(
            parent=SITE,
            values=[market_rpc.SignalValue(signal="power_price_usd_per_mwh", value="1", valid_time=now)],
            request_id="r-1",
            reason="feed",
        )
        assert isinstance(await fault_of(stub.PushSignals(other, timeout=5)), AlreadyExists)
        for bad, words in (("NaN", "decimal"), ("1e5x", "decimal"), ("", "decimal")):
            wrong = market_rpc.PushSignalsRequest(
                parent=SITE,
                values=[market_rpc.SignalValue(signal="power_price_usd_per_mwh", value=bad, valid_time=now)],
                request_id=f"bad-{bad}",
                reason="feed",
            )
            assert words in str(await fault_of(stub.PushSignals(wrong, timeout=5)))
    async with site.serve(), site.channel("olga", Role.OPERATOR) as channel:
        stub = market_service_pb2_grpc.MarketServiceStub(channel)
        shown = (await stub.ListSignals(market_rpc.ListSignalsRequest(parent=SITE), timeout=5)).signals
        assert [(s.value, s.source, s.stale) for s in shown] == [("71.25", "push:olga", False)]
        assert (await stub.PushSignals(push, timeout=5)).accepted_count == 1  # answered as the first time


async def test_observe_refuses_every_write_with_the_next_step(site: TestSite) -> None:
    """Under OBSERVE an admin's write is Forbidden, says how to change that, and a viewer is refused by role before."""
    async with site.serve(), site.channel("ada", Role.ADMIN) as channel, site.channel("vera", Role.VIEWER) as viewer:
        stub = capacity_service_pb2_grpc.CapacityServiceStub(channel)
        for call in (
            stub.StartCurtailment(capacity_rpc.StartCurtailmentRequest(), timeout=5),
            stub.SetAuthority(capacity_rpc.SetAuthorityRequest(), timeout=5),
            stub.GetPlan(capacity_rpc.GetPlanRequest(parent=SITE), timeout=5),
        ):
            fault = await fault_of(call)
            assert isinstance(fault, Forbidden) and fault.reason == "AUTHORITY_OBSERVE"
            assert "Next step" in str(fault)
        call = capacity_service_pb2_grpc.CapacityServiceStub(viewer).StartCurtailment(
            capacity_rpc.StartCurtailmentRequest(), timeout=5
        )
        assert (await fault_of(call)).reason == "ROLE_NOT_ALLOWED"


async def test_check_of_a_site_that_is_only_observed_finds_nothing_wrong(site: TestSite, tmp_path: Path) -> None:
    """The real services answer; that no plan is made is no fault of such a site, and is said."""
    bundle = tmp_path / "vera.bundle.toml"
    async with site.serve(), site.channel("edge-1", Role.AGENT) as link:
        agent = LinkAgent(link, "edge-1")
        await agent.connect()
        await agent.send(make_batch(1))
        await agent.wait_told(1)
        issued = site.authority.issue("vera-check", Role.VIEWER, now=datetime.now(UTC))
        write_private(bundle, format_bundle(replace(issued, endpoint=f"127.0.0.1:{site.port}")))
        terminal = FakeTerminal()
        code = await run(["--bundle", str(bundle), "site", "check"], terminal=terminal, clock=SystemClock())
    text = terminal.stdout.getvalue()
    assert (code, terminal.stderr.getvalue()) == (0, ""), text
    assert text.count(" serving") == 4 and text.count("under authority observe nothing is planned") >= 1


def test_observe_loads_no_write_path(tmp_path: Path) -> None:
    """A whole run under OBSERVE imports neither the engine nor anything else that decides or orders."""
    site = TestSite(tmp_path)
    script = f"""
import asyncio, sys
from pathlib import Path
from swingbus.clock import SystemClock
from swingbus_controller.main import Controller
from swingbus_controller.settings import load_configuration

async def go():
    stop = asyncio.Event()
    controller = Controller(load_configuration(Path({str(site.config)!r}), environment={{}}), clock=SystemClock())
    await controller.run(stop, lambda port: stop.set())

asyncio.run(go())
deciding = ("deciding", "app.engine", "app.commands", "app.flipping", "app.ordering", "app.protecting", "app.planning",
            "api.capacity_service")
print([name for name in deciding if f"swingbus_controller.{{name}}" in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


async def test_reflection_and_health_answer_a_viewer(site: TestSite) -> None:
    """Health says SERVING for every service."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with site.serve(), site.channel("vera", Role.VIEWER) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "swingbus.fleet.v1alpha.FleetService", "swingbus.link.v1alpha.AgentLinkService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
