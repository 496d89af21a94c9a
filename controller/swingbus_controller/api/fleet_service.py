"""FleetService: what there is and how it is. Reads only.

Decides which things a request means. Refuses to know: how they are shown (`fleet_views`) and stored. Invariant: every answer is
made from one moment of the event loop and names the revision that it shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import grpc.aio

from swingbus.faults import HistoryCompacted, InvalidInput, NotFound, TimedOut
from swingbus.fleet.v1alpha import fleet_pb2, fleet_service_pb2_grpc
from swingbus.fleet.v1alpha import fleet_service_pb2 as pb2
from swingbus.names import AgentName, BankName, DeviceName, FeederName, SiteName, parse_name
from swingbus_controller.api.codec import timestamp, unix_s
from swingbus_controller.api.fleet_views import FleetViews, event_to_proto
from swingbus_controller.api.paging import check_page_size, cut_page, read_token, write_token
from swingbus_controller.domain.fleet.fleet import AgentView, BankView, Fleet
from swingbus_controller.domain.fleet.intervals import (
    INTERVAL_S,
    BankInterval,
    MeterTotals,
    neighbours,
    register_energy_j,
)
from swingbus_controller.domain.fleet.sequences import parse_ranges
from swingbus_controller.domain.site.sitefile import SiteBank
from swingbus_controller.ports.event_log import EventLog
from swingbus_controller.ports.telemetry_store import TelemetryArchive

SERVICE = "swingbus.fleet.v1alpha.FleetService"
PROGRESS_S = 10.0
WATCH_PAGE = 500
MISSING_LIMIT = 1000
ARCHIVE_TIMEOUT_S = 30.0
MAX_KINDS = 64

P = ParamSpec("P")
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class FleetService(fleet_service_pb2_grpc.FleetServiceServicer):
    """Serves viewers, operators and admins."""

    def __init__(self, *, fleet: Fleet, views: FleetViews, events: EventLog, archive: TelemetryArchive) -> None:
        self._fleet = fleet
        self._site = fleet.site
        self._views = views
        self._events = events
        self._archive = archive

    # Sites and feeders.

    async def ListSites(self, request: pb2.ListSitesRequest, _context: Context) -> pb2.ListSitesResponse:
        """List sites: one controller has one site now."""
        names, token = cut_page(
            [self._site.name], str, scope="sites", page_size=request.page_size, page_token=request.page_token
        )
        sites = [self._views.site(self._events.epoch) for _ in names]
        return pb2.ListSitesResponse(sites=sites, next_page_token=token, revision=self._revision())

    async def GetSite(self, request: pb2.GetSiteRequest, _context: Context) -> pb2.GetSiteResponse:
        """Show one site."""
        self._check_site(SiteName.parse(request.name).site)
        return pb2.GetSiteResponse(site=self._views.site(self._events.epoch), revision=self._revision())

    async def ListFeeders(self, request: pb2.ListFeedersRequest, _context: Context) -> pb2.ListFeedersResponse:
        """List feeders, parents before children."""
        self._check_site(SiteName.parse(request.parent, "parent").site)
        ranked = [(f"{rank:06d}", name) for rank, name in enumerate(self._site.feeders_in_order())]
        page, token = cut_page(
            ranked,
            lambda item: item[0],
            scope=f"{request.parent}/feeders",
            page_size=request.page_size,
            page_token=request.page_token,
        )
        feeders = [self._views.feeder(name) for _, name in page]
        return pb2.ListFeedersResponse(feeders=feeders, next_page_token=token, revision=self._revision())

    async def GetFeeder(self, request: pb2.GetFeederRequest, _context: Context) -> pb2.GetFeederResponse:
        """Show one feeder."""
        return pb2.GetFeederResponse(
            feeder=self._views.feeder(self._feeder(request.name, "name")), revision=self._revision()
        )

    # Agents and banks.

    async def ListAgents(self, request: pb2.ListAgentsRequest, _context: Context) -> pb2.ListAgentsResponse:
        """List agents in name order."""
        self._check_site(SiteName.parse(request.parent, "parent").site)
        page, token = cut_page(
            sorted(self._fleet.agents),
            str,
            scope=f"{request.parent}/agents",
            page_size=request.page_size,
            page_token=request.page_token,
        )
        agents = [self._views.agent(self._fleet.agents[name]) for name in page]
        return pb2.ListAgentsResponse(agents=agents, next_page_token=token, revision=self._revision())

    async def GetAgent(self, request: pb2.GetAgentRequest, _context: Context) -> pb2.GetAgentResponse:
        """Show one agent."""
        view = self._agent(AgentName.parse(request.name))
        return pb2.GetAgentResponse(agent=self._views.agent(view), revision=self._revision())

    async def ListBanks(self, request: pb2.ListBanksRequest, _context: Context) -> pb2.ListBanksResponse:
        """List banks of the site or of one agent, in name order."""
        parent = self._parent(request.parent, SiteName, AgentName)
        only = self._agent(parent).agent if isinstance(parent, AgentName) else None
        page, token = cut_page(
            [key for key in self._bank_keys() if only is None or key[0] == only],
            lambda key: f"{key[0]}/{key[1]}",
            scope=f"{request.parent}/banks",
            page_size=request.page_size,
            page_token=request.page_token,
        )
        banks = [self._bank_message(agent, bank) for agent, bank in page]
        return pb2.ListBanksResponse(banks=banks, next_page_token=token, revision=self._revision())

    async def GetBank(self, request: pb2.GetBankRequest, _context: Context) -> pb2.GetBankResponse:
        """Show one bank."""
        name = BankName.parse(request.name)
        self._bank(name)
        return pb2.GetBankResponse(bank=self._bank_message(name.agent, name.bank), revision=self._revision())

    # Devices.

    async def ListDevices(self, request: pb2.ListDevicesRequest, _context: Context) -> pb2.ListDevicesResponse:
        """List devices of the site, an agent or a bank, in name order."""
        parent = self._parent(request.parent, SiteName, AgentName, BankName)
        views: list[BankView] = []
        if isinstance(parent, BankName):
            views = [view for view in (self._bank(parent),) if view is not None]
        else:
            only = self._agent(parent).agent if isinstance(parent, AgentName) else None
            views = [view for view in self._fleet.banks() if only is None or view.agent == only]
        rows = [
            (str(DeviceName(self._site.name, view.agent, view.inventory.bank, device.device)), view, row)
            for view in views
            for row, device in enumerate(view.inventory.devices)
        ]
        rows.sort(key=lambda item: item[0])
        page, token = cut_page(
            rows,
            lambda item: item[0],
            scope=f"{request.parent}/devices",
            page_size=request.page_size,
            page_token=request.page_token,
        )
        devices = [self._views.device(view, row, is_full=False) for _, view, row in page]
        return pb2.ListDevicesResponse(devices=devices, next_page_token=token, revision=self._revision())

    async def GetDevice(self, request: pb2.GetDeviceRequest, _context: Context) -> pb2.GetDeviceResponse:
        """Show one device with every field."""
        name = DeviceName.parse(request.name)
        view = self._bank(BankName(name.site, name.agent, name.bank))
        devices = view.inventory.devices if view is not None else ()
        row = next((row for row, device in enumerate(devices) if device.device == name.device), None)
        if view is None or row is None:
            raise NotFound(
                f"bank {name.bank!r} of agent {name.agent!r} has no device {name.device!r}; list its devices.",
                reason="NO_SUCH_DEVICE",
                metadata={"name": request.name},
            )
        return pb2.GetDeviceResponse(device=self._views.device(view, row, is_full=True), revision=self._revision())

    # Events.

    async def ListEvents(self, request: pb2.ListEventsRequest, _context: Context) -> pb2.ListEventsResponse:
        """List recorded events, oldest or newest first."""
        self._check_site(SiteName.parse(request.parent, "parent").site)
        self._check_after(request.after_revision)
        if len(request.kinds) > MAX_KINDS:
            raise InvalidInput(f"{len(request.kinds)} kinds, at most {MAX_KINDS}.", reason="TOO_MUCH")
        size = check_page_size(request.page_size)
        scope = f"{request.parent}/events/{request.newest_first}/{request.after_revision}/{','.join(request.kinds)}"
        key = read_token(scope, request.page_token)
        last = _number(key) if key is not None else None
        after = request.after_revision
        before: int | None = None
        if last is not None:
            before, after = (last, after) if request.newest_first else (None, max(after, last))
        found = self._events.find(
            after_revision=after,
            before_revision=before,
            kinds=tuple(request.kinds),
            newest_first=request.newest_first,
            limit=size + 1,
        )
        page = found[:size]
        return pb2.ListEventsResponse(
            events=[event_to_proto(entry) for entry in page],
            next_page_token=write_token(scope, str(page[-1].revision)) if len(found) > size else "",
            revision=self._revision(),
        )

    async def WatchEvents(
        self, request: pb2.WatchEventsRequest, _context: Context
    ) -> AsyncIterator[pb2.WatchEventsResponse]:
        """Follow events; a reader that is slow delays only itself, since each reads the record at its own pace."""
        self._check_site(SiteName.parse(request.parent, "parent").site)
        after = request.after_revision
        if after > self._revision():
            raise InvalidInput(
                f"revision {after} is in the future (newest: {self._revision()}); list again: the journal may be another one.",
                reason="FUTURE_REVISION",
            )
        while True:
            self._check_after(after)
            found = self._events.find(after_revision=after, limit=WATCH_PAGE)
            if found:
                after = found[-1].revision
                yield pb2.WatchEventsResponse(events=[event_to_proto(entry) for entry in found], revision=after)
                continue
            try:
                async with asyncio.timeout(PROGRESS_S):
                    await self._events.wait_newer(after)
            except TimeoutError:
                yield pb2.WatchEventsResponse(revision=after)

    # Audits.

    async def VerifySequences(
        self, request: pb2.VerifySequencesRequest, _context: Context
    ) -> pb2.VerifySequencesResponse:
        """Look an agent's sequences up in the database."""
        agent = self._agent(AgentName.parse(request.name)).agent
        ranges = parse_ranges(request.ranges)
        found = await _in_thread(self._archive.verify, agent, request.spool_uid, ranges, MISSING_LIMIT)
        return pb2.VerifySequencesResponse(
            stored_count=found.stored_count,
            merged_count=found.merged_count,
            sample_count=found.sample_count,
            missing=found.missing,
        )

    async def ListMeterIntervals(
        self, request: pb2.ListMeterIntervalsRequest, _context: Context
    ) -> pb2.ListMeterIntervalsResponse:
        """List the quarter-hours of a feeder's meter, in time order."""
        feeder = self._feeder(request.parent, "parent")
        meter = self._site.feeder_notes[feeder].meter
        if not meter:
            raise NotFound(
                f"feeder {feeder!r} has no meter; the site file declares one as [feeder.meter].",
                reason="NO_METER",
                metadata={"feeder": feeder},
            )
        size = check_page_size(request.page_size)
        scope = f"{request.parent}/intervals"
        token = read_token(scope, request.page_token)
        from_s = unix_s(request.start_time) if request.HasField("start_time") else 0.0
        if token is not None:
            from_s = float(_number(token)) + INTERVAL_S
        # One before and one after the page: the register at the boundaries needs both neighbours.
        totals = await _in_thread(self._archive.meter_totals, meter, from_s - INTERVAL_S, size + 2)
        banks: Sequence[BankInterval] = ()
        if totals:
            banks = await _in_thread(
                self._archive.bank_intervals, totals[0].start_unix_s, totals[-1].start_unix_s + INTERVAL_S
            )
        wanted = [index for index, total in enumerate(totals) if total.start_unix_s >= from_s]
        page = wanted[:size]
        by_start: dict[int, list[BankInterval]] = {}
        for interval in banks:
            by_start.setdefault(interval.start_unix_s, []).append(interval)
        return pb2.ListMeterIntervalsResponse(
            intervals=[
                self._interval(feeder, totals, index, by_start.get(totals[index].start_unix_s, ())) for index in page
            ],
            next_page_token=write_token(scope, str(totals[page[-1]].start_unix_s)) if len(wanted) > size else "",
        )

    def _interval(
        self, feeder: str, totals: Sequence[MeterTotals], index: int, banks: Sequence[BankInterval]
    ) -> pb2.MeterInterval:
        total = totals[index]
        before, after = neighbours(totals, index)
        below = self._site.tree.subtree(feeder)
        attributed_j: float | None = None
        for interval in banks:
            declared = self._site.bank(interval.agent, interval.bank)
            if declared is not None and declared.feeder in below:
                factor = self._site.tree.loss_factor(declared.feeder, feeder)
                attributed_j = (attributed_j or 0.0) + interval.energy_j() * factor
        return pb2.MeterInterval(
            start_time=timestamp(float(total.start_unix_s)),
            energy_j=register_energy_j(before, total, after),
            mean_power_w=total.mean_power_w(),
            max_power_w=total.max_power_w,
            covered_s=total.covered_seconds(),
            attributed_energy_j=attributed_j,
        )

    # Names.

    def _revision(self) -> int:
        return self._events.newest_revision()

    def _check_site(self, site: str) -> None:
        if site != self._site.name:
            raise NotFound(
                f"this controller has no site {site!r}; it serves sites/{self._site.name}.",
                reason="NO_SUCH_SITE",
                metadata={"site": site},
            )

    def _check_after(self, after_revision: int) -> None:
        if after_revision < 0:
            raise InvalidInput("after_revision is 0 or more.", reason="BAD_REVISION")
        compacted = self._events.compacted_revision()
        if 0 < after_revision < compacted:
            raise HistoryCompacted(
                f"events after revision {after_revision} are not all kept; list from 0, then watch from the list's revision.",
                metadata={"compacted_revision": str(compacted)},
            )

    def _parent(self, text: str, *kinds: type) -> SiteName | AgentName | BankName:
        name = parse_name(text, "parent")
        if not isinstance(name, kinds) or not isinstance(name, SiteName | AgentName | BankName):
            forms = ", ".join(kind.__name__.removesuffix("Name").lower() for kind in kinds)
            raise InvalidInput(f"parent {text!r} is not the name of a {forms}.", reason="BAD_NAME")
        self._check_site(name.site)
        return name

    def _feeder(self, text: str, what: str) -> str:
        name = FeederName.parse(text, what)
        self._check_site(name.site)
        return self._site.tree.feeder(name.feeder).name

    def _agent(self, name: AgentName) -> AgentView:
        self._check_site(name.site)
        view = self._fleet.agents.get(name.agent)
        if view is None:
            raise NotFound(
                f"no agent {name.agent!r} is known here; list agents.",
                reason="NO_SUCH_AGENT",
                metadata={"agent": name.agent},
            )
        return view

    def _bank(self, name: BankName) -> BankView | None:
        """Return a bank's view, None for one that is declared but was never reported."""
        view = self._agent(AgentName(name.site, name.agent)).banks.get(name.bank)
        if view is None and self._site.bank(name.agent, name.bank) is None:
            raise NotFound(
                f"agent {name.agent!r} has no bank {name.bank!r}; list its banks.",
                reason="NO_SUCH_BANK",
                metadata={"name": str(name)},
            )
        return view

    def _bank_keys(self) -> list[tuple[str, str]]:
        heard = {(view.agent, view.inventory.bank) for view in self._fleet.banks()}
        declared = {(bank.agent, bank.bank) for bank in self._site.banks}
        return sorted(heard | declared, key=lambda key: f"{key[0]}/{key[1]}")

    def _bank_message(self, agent: str, bank: str) -> fleet_pb2.Bank:
        view = self._fleet.agents[agent].banks.get(bank)
        declared: SiteBank | None = self._site.bank(agent, bank)
        return self._views.bank(agent, bank, view, declared)


def _number(key: str) -> int:
    """Return a token's key that must be a number."""
    if not (key.isascii() and key.isdigit()):
        raise InvalidInput("page_token does not belong to this list; leave it empty.", reason="BAD_PAGE_TOKEN")
    return int(key)


async def _in_thread(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking read of the archive beside the event loop."""
    try:
        async with asyncio.timeout(ARCHIVE_TIMEOUT_S):
            return await asyncio.to_thread(read, *args, **kwargs)
    except TimeoutError:
        raise TimedOut(f"the archive has not answered for {ARCHIVE_TIMEOUT_S:.0f} s; try a smaller page.") from None
