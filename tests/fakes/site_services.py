"""Small servicers with state for tests of clients: one site `north`, remembered writes, failures on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from swingbus.capacity.v1alpha import capacity_pb2 as capacity
from swingbus.capacity.v1alpha import capacity_service_pb2 as capacity_pb
from swingbus.capacity.v1alpha import capacity_service_pb2_grpc as capacity_grpc
from swingbus.faults import HistoryCompacted, NotFound, SwingbusError
from swingbus.fleet.v1alpha import fleet_pb2 as fleet
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_pb
from swingbus.fleet.v1alpha import fleet_service_pb2_grpc as fleet_grpc
from swingbus.link.v1alpha import link_pb2 as link
from swingbus.market.v1alpha import market_service_pb2 as market_pb
from swingbus.market.v1alpha import market_service_pb2_grpc as market_grpc
from swingbus.rpc.caller import current_caller

NOON = 1_795_435_200  # 2026-11-23 12:00:00 UTC


def at(offset_s: float = 0.0) -> Timestamp:
    """Return noon of the tests' day, shifted."""
    stamp = Timestamp()
    stamp.FromNanoseconds(NOON * 10**9 + round(offset_s * 1e9))
    return stamp


@dataclass
class FakeSite:
    """What the servicers tell, and what they were told. Writes are remembered with their author, also those only checked."""

    sites: list[fleet.Site] = field(default_factory=list)
    feeders: list[fleet.Feeder] = field(default_factory=list)
    agents: list[fleet.Agent] = field(default_factory=list)
    banks: list[fleet.Bank] = field(default_factory=list)
    devices: list[fleet.Device] = field(default_factory=list)
    events: list[fleet.Event] = field(default_factory=list)
    intervals: list[fleet_pb.MeterInterval] = field(default_factory=list)
    flips: list[capacity.Flip] = field(default_factory=list)
    curtailments: list[capacity.Curtailment] = field(default_factory=list)
    pins: list[capacity.Pin] = field(default_factory=list)
    lockouts: list[capacity.Lockout] = field(default_factory=list)
    reservations: list[capacity.Reservation] = field(default_factory=list)
    signals: list[market_pb.Signal] = field(default_factory=list)
    plan: capacity.Plan = field(default_factory=capacity.Plan)
    writes: list[tuple[str, Message]] = field(default_factory=list)
    fail_with: list[SwingbusError] = field(default_factory=list)  # the next calls raise these, one each
    delay_s: float = 0.0
    oldest_kept_revision: int = 0  # everything up to here is compacted away

    async def enter(self, request: Message, *, is_write: bool = False) -> None:
        """Count, wait and fail as told."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.fail_with:
            raise self.fail_with.pop(0)
        if is_write:
            self.writes.append((current_caller().name, request))

    def register(self, server: grpc.aio.Server) -> None:
        """Add the three services to a server."""
        fleet_grpc.add_FleetServiceServicer_to_server(FakeFleet(self), server)
        capacity_grpc.add_CapacityServiceServicer_to_server(FakeCapacity(self), server)
        market_grpc.add_MarketServiceServicer_to_server(FakeMarket(self), server)


def page(items: list[Any], request: Any) -> tuple[list[Any], str]:
    """Return one page and the token of the next."""
    start = int(request.page_token or 0)
    size = request.page_size or 100
    rest = len(items) > start + size
    return items[start : start + size], str(start + size) if rest else ""


def find(items: list[Any], name: str) -> Any:
    """Return the item of a name or raise NotFound."""
    for item in items:
        if item.name == name:
            return item
    raise NotFound(f"there is no {name}", metadata={"name": name})


class FakeFleet(fleet_grpc.FleetServiceServicer):
    def __init__(self, site: FakeSite) -> None:
        self._site = site

    async def ListSites(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        items, token = page(self._site.sites, request)
        return fleet_pb.ListSitesResponse(sites=items, next_page_token=token, revision=7)

    async def GetSite(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return fleet_pb.GetSiteResponse(site=find(self._site.sites, request.name), revision=7)

    async def ListFeeders(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        items, token = page(self._site.feeders, request)
        return fleet_pb.ListFeedersResponse(feeders=items, next_page_token=token, revision=7)

    async def GetFeeder(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return fleet_pb.GetFeederResponse(feeder=find(self._site.feeders, request.name), revision=7)

    async def ListAgents(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        items, token = page(self._site.agents, request)
        return fleet_pb.ListAgentsResponse(agents=items, next_page_token=token, revision=7)

    async def GetAgent(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return fleet_pb.GetAgentResponse(agent=find(self._site.agents, request.name), revision=7)

    async def ListBanks(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        items, token = page([b for b in self._site.banks if b.name.startswith(request.parent + "/")], request)
        return fleet_pb.ListBanksResponse(banks=items, next_page_token=token, revision=7)

    async def GetBank(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return fleet_pb.GetBankResponse(bank=find(self._site.banks, request.name), revision=7)

    async def ListDevices(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        items, token = page([d for d in self._site.devices if d.name.startswith(request.parent + "/")], request)
        return fleet_pb.ListDevicesResponse(devices=items, next_page_token=token, revision=7)

    async def GetDevice(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return fleet_pb.GetDeviceResponse(device=find(self._site.devices, request.name), revision=7)

    async def ListEvents(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        after = max(request.after_revision, self._site.oldest_kept_revision)
        chosen = [e for e in self._site.events if e.revision > after]
        chosen = [e for e in chosen if not request.kinds or e.kind in request.kinds]
        items, token = page(chosen[::-1] if request.newest_first else chosen, request)
        newest = max((e.revision for e in self._site.events), default=0)
        return fleet_pb.ListEventsResponse(events=items, next_page_token=token, revision=newest)

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._site.enter(request)
        after = request.after_revision
        if after < self._site.oldest_kept_revision:
            raise HistoryCompacted(f"revision {after} is no longer kept")
        while True:
            for event in [e for e in self._site.events if e.revision > after]:
                after = event.revision
                yield fleet_pb.WatchEventsResponse(events=[event], revision=after)
            await asyncio.sleep(0.01)
            if self._site.fail_with:
                raise self._site.fail_with.pop(0)

    async def VerifySequences(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return fleet_pb.VerifySequencesResponse(stored_count=1)

    async def ListMeterIntervals(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        items, token = page(self._site.intervals, request)
        return fleet_pb.ListMeterIntervalsResponse(intervals=items, next_page_token=token)


class FakeCapacity(capacity_grpc.CapacityServiceServicer):
    def __init__(self, site: FakeSite) -> None:
        self._site = site

    async def GetPlan(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return capacity_pb.GetPlanResponse(plan=self._site.plan)

    async def ExplainBank(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        bank = find(self._site.banks, request.name)
        mode = link.Mode.Name(request.why_not)
        return capacity_pb.ExplainBankResponse(explanation=bank.explanation, facts={"asked_mode": mode})

    async def ListFlips(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        chosen = [f for f in self._site.flips if not request.open_only or f.phase < capacity.FLIP_PHASE_ACTIVE]
        items, token = page(chosen, request)
        return capacity_pb.ListFlipsResponse(flips=items, next_page_token=token)

    async def GetFlip(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return capacity_pb.GetFlipResponse(flip=find(self._site.flips, request.name))

    async def RequestFlip(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        flip = capacity.Flip(
            name="sites/north/flips/fl-9",
            bank=request.bank,
            device_count=request.device_count,
            from_mode=request.from_mode,
            to_mode=request.to_mode,
            phase=capacity.FLIP_PHASE_PLANNED,
            author=current_caller().name,
            reason=request.options.reason,
        )
        if not request.options.validate_only:
            self._site.flips.insert(0, flip)
        return capacity_pb.RequestFlipResponse(flip=flip)

    async def CancelFlip(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        return capacity_pb.CancelFlipResponse(flip=find(self._site.flips, request.name))

    async def ListCurtailments(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        items, token = page(self._site.curtailments, request)
        return capacity_pb.ListCurtailmentsResponse(curtailments=items, next_page_token=token)

    async def GetCurtailment(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return capacity_pb.GetCurtailmentResponse(curtailment=find(self._site.curtailments, request.name))

    async def StartCurtailment(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        order = capacity.Curtailment(
            name="sites/north/curtailments/ct-7",
            feeder=f"sites/north/feeders/{request.feeder or 'grid'}",
            limit_w=request.limit_w,
            create_time=at(),
            start_time=at(request.notice.seconds),
            end_time=at(request.notice.seconds + request.ramp.seconds + request.duration.seconds),
            state="SCHEDULED",
            author=current_caller().name,
            reason=request.options.reason,
        )
        if not request.options.validate_only:
            self._site.curtailments.insert(0, order)
        return capacity_pb.StartCurtailmentResponse(
            curtailment=order, preview=["edge-1/s19j: 40 mining to standby, 112 kW"]
        )

    async def EndCurtailment(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        order = find(self._site.curtailments, request.name)
        if not request.options.validate_only:
            order.state = "ENDED"
        return capacity_pb.EndCurtailmentResponse(curtailment=order)

    async def SetFeederLimit(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        feeder = find(self._site.feeders, request.name)
        return capacity_pb.SetFeederLimitResponse(
            feeder=fleet.Feeder(
                name=feeder.name, limit_w=request.limit_w if request.HasField("limit_w") else feeder.limit_w
            )
        )

    async def ListPins(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return capacity_pb.ListPinsResponse(pins=self._site.pins)

    async def SetPin(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        pin = capacity.Pin(
            bank=request.bank, author=current_caller().name, reason=request.options.reason, create_time=at()
        )
        return capacity_pb.SetPinResponse(pin=pin if request.pinned else None)

    async def ListLockouts(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return capacity_pb.ListLockoutsResponse(lockouts=self._site.lockouts)

    async def SetLockout(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        return capacity_pb.SetLockoutResponse()

    async def SetAuthority(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        site = find(self._site.sites, request.name)
        if not request.options.validate_only:
            site.authority = request.authority
        return capacity_pb.SetAuthorityResponse(site=fleet.Site(name=site.name, authority=request.authority))

    async def ListReservations(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return capacity_pb.ListReservationsResponse(reservations=self._site.reservations)

    async def CreateReservation(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        sold = capacity.Reservation()
        sold.CopyFrom(request.reservation)
        sold.name = f"{request.parent}/reservations/{request.reservation_id}"
        return capacity_pb.CreateReservationResponse(reservation=sold)

    async def EndReservation(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        return capacity_pb.EndReservationResponse(reservation=find(self._site.reservations, request.name))


class FakeMarket(market_grpc.MarketServiceServicer):
    def __init__(self, site: FakeSite) -> None:
        self._site = site

    async def ListSignals(self, request: Any, context: Any) -> Any:
        await self._site.enter(request)
        return market_pb.ListSignalsResponse(signals=self._site.signals)

    async def PushSignals(self, request: Any, context: Any) -> Any:
        await self._site.enter(request, is_write=True)
        return market_pb.PushSignalsResponse(accepted_count=len(request.values), repeated_count=0)


def north() -> FakeSite:
    """Return a site with one of everything that a table can show."""
    evidence = capacity.Evidence(
        group="c1",
        settled=True,
        settle_time=at(-60),
        windows=[
            capacity.EvidenceWindow(
                meter="c1-meter",
                start_boottime_s=5000.0 + 2 * n,
                end_boottime_s=5002.0 + 2 * n,
                power_w=148_200.0 - n,
                upper_power_w=149_500.0,
                granted_power_w=150_000.0,
            )
            for n in range(3)
        ],
    )
    behind = capacity.Evidence(group="c2", settled=False, reason="AboveGrant", stragglers=["edge-2/m30s/m11: ignored"])
    bank_explanation = (
        "standby since 11:52, mining earns 62 USD/MWh at the strike, power costs 71; one more kW here is worth 0 because the grid "
        "feeder is full until 15:00"
    )
    return FakeSite(
        sites=[
            fleet.Site(
                name="sites/north",
                authority=fleet.AUTHORITY_CONTROL,
                price_zone="ercot-north",
                epoch=3,
                limit_w=600_000.0,
                metered_power_w=571_340.0,
                attributed_power_w=560_000.0,
                unattributed_ratio=0.01985,
                claimed_power_w=588_000.0,
                uncontrolled_power_w=8_000.0,
                margin_power_w=4_000.0,
                within_authority=True,
                live_agent_count=9,
                agent_count=10,
                changed_settings=["ttl_s=20 (default 120): demo"],
            )
        ],
        feeders=[
            fleet.Feeder(
                name="sites/north/feeders/grid",
                kind="grid",
                limits=[
                    fleet.Limit(limit_w=600_000.0, source="contract"),
                    fleet.Limit(limit_w=400_000.0, source="curtailments/ct-6", start_time=at(-60), end_time=at(3600)),
                ],
                limit_w=400_000.0,
                metered_power_w=571_340.0,
                claimed_power_w=588_000.0,
                headroom_w=0.0,
                meter="grid-meter",
                meter_state="live",
            ),
            fleet.Feeder(
                name="sites/north/feeders/c1",
                parent="sites/north/feeders/grid",
                kind="container",
                limit_w=200_000.0,
                claimed_power_w=150_000.0,
                headroom_w=50_000.0,
                meter_state="dead",
            ),
        ],
        agents=[
            fleet.Agent(
                name="sites/north/agents/edge-1",
                state="live",
                version="0.1.0",
                hostname="edge-1.north",
                last_seen_time=at(-2),
                acked_sequence=8812,
                sample_count=528_720,
                certificate_expire_time=at(10 * 86_400),
                unsupported=["gpu: no driver on this host"],
                host_values={"host_cpu_ratio": 0.031},
                writes_enabled=True,
            )
        ],
        banks=[
            fleet.Bank(
                name="sites/north/agents/edge-1/banks/s19j",
                feeder="sites/north/feeders/c1",
                kind=link.DEVICE_KIND_ASIC,
                device_class="s19j-pro-luxos",
                state="HELD",
                device_count=60,
                unit_size=1,
                mode_counts={"MODE_MINING": 40, "MODE_STANDBY": 20},
                grant_w=150_000.0,
                claim_w=150_000.0,
                power_w=148_200.0,
                ceiling_w=190_000.0,
                safe_share_w=30_000.0,
                explanation=bank_explanation,
                pin="dana: firmware trial",
                meter="c1-meter",
                hashrate_ths=4_880.0,
            )
        ],
        devices=[
            fleet.Device(
                name="sites/north/agents/edge-1/banks/s19j/devices/m07",
                spec=link.DeviceSpec(
                    device="m07", model="Antminer S19j Pro", firmware="LuxOS 2026.10", address="127.1.0.7"
                ),
                condition=link.DEVICE_CONDITION_OK,
                mode=link.MODE_MINING,
                fields=[
                    fleet.FieldReading(field="power_w", value=2794.0),
                    fleet.FieldReading(field="hashrate_ths", value=121.6),
                    fleet.FieldReading(field="chip_temperature_c", value=68.0),
                    fleet.FieldReading(field="voltage_v", status="unsupported"),
                ],
                read_time=at(-3),
                accusations=["self_woke"],
            )
        ],
        events=[
            fleet.Event(
                revision=n,
                event_time=at(-60 + n),
                kind="flip_active" if n % 2 else "curtailment_shedding",
                subject=f"sites/north/flips/fl-{n}",
                author="planner" if n % 2 else "dana",
                reason="strike" if n % 2 else "grid call",
                message=f"event number {n}",
            )
            for n in range(1, 6)
        ],
        intervals=[
            fleet_pb.MeterInterval(
                start_time=at(-900), energy_j=5.4e8, mean_power_w=600_000.0, max_power_w=601_000.0, covered_s=900.0
            )
        ],
        flips=[
            capacity.Flip(
                name="sites/north/flips/fl-5",
                bank="sites/north/agents/gpu-3/banks/h100",
                device_count=8,
                units=[0],
                from_mode=link.MODE_MINING,
                to_mode=link.MODE_INFERENCE,
                from_point="mine-250",
                to_point="serve-700",
                phase=capacity.FLIP_PHASE_VERIFYING,
                create_time=at(-40),
                phase_time=at(-5),
                deadline_time=at(25),
                author="planner",
                reason="demand",
                history=["11:59:20 PLANNED", "11:59:21 DRAINING"],
            )
        ],
        curtailments=[
            capacity.Curtailment(
                name="sites/north/curtailments/ct-6",
                feeder="sites/north/feeders/grid",
                limit_w=400_000.0,
                create_time=at(-90),
                start_time=at(-60),
                end_time=at(3600),
                state="CURTAILED",
                author="dana",
                reason="grid operator call 17",
                met_time=at(-48),
                baseline_power_w=571_000.0,
                metered_power_w=391_500.0,
                evidence=[evidence, behind],
                payment_usd_per_mwh="180",
            )
        ],
        pins=[
            capacity.Pin(
                bank="sites/north/agents/edge-1/banks/s19j",
                author="dana",
                reason="firmware trial",
                create_time=at(-600),
            )
        ],
        lockouts=[
            capacity.Lockout(
                bank="sites/north/agents/edge-2/banks/m30s",
                author="lee",
                reason="fan replacement",
                create_time=at(-600),
            )
        ],
        reservations=[
            capacity.Reservation(
                name="sites/north/reservations/acme-1",
                device_class="h100",
                gpu_count=16,
                start_time=at(-86_400),
                end_time=at(29 * 86_400),
                price_usd_per_gpu_h="2.10",
                uptime_ratio=0.999,
                author="dana",
                served_gpu_count=16,
            )
        ],
        signals=[
            market_pb.Signal(
                signal="power_price_usd_per_mwh",
                value="71.5",
                valid_time=at(-300),
                receive_time=at(-290),
                source="push:desk",
                staleness_limit_s=900.0,
            )
        ],
        plan=capacity.Plan(
            name="sites/north/plans/7",
            basis_revision=7,
            create_time=at(-4),
            banks=[
                capacity.PlannedBank(
                    bank="sites/north/agents/edge-1/banks/s19j",
                    points=[
                        capacity.PlannedPoint(
                            point="full",
                            mode=link.MODE_MINING,
                            counted_power_w=3_000.0,
                            count=40,
                            value_usd_per_mwh=62.0,
                        ),
                        capacity.PlannedPoint(point="sleep", mode=link.MODE_STANDBY, counted_power_w=20.0, count=20),
                    ],
                    explanation=bank_explanation,
                    reason="strike",
                )
            ],
            marginal_value_usd_per_kw_h={"sites/north/feeders/grid": 0.0},
            refusals=["gpu-3/h100: dwell until 12:03"],
            signals=["power_price_usd_per_mwh=71.5 USD/MWh (push:desk, 290 s)"],
        ),
    )
