"""Builds the part that decides. `main` imports this module only above authority OBSERVE: below it, no write path is loaded.

Decides how far the journal is believed and which authority holds: the site file's is the ceiling, what an admin set later counts
within it. Refuses to know: the wire and the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio

from swingbus.capacity.v1alpha import capacity_service_pb2_grpc
from swingbus.clock import Clock
from swingbus_controller.api.capacity_service import CapacityService
from swingbus_controller.app.commands import Commands
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.app.showing import LedgerView
from swingbus_controller.app.site_watching import SiteSource, SiteWatch
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.power.budget_events import JournalTrust
from swingbus_controller.domain.site.sitefile import SiteFile
from swingbus_controller.domain.site_state import SiteState
from swingbus_controller.ports.journal import Journal

_ORDER = (Authority.OBSERVE, Authority.ADVISE, Authority.CONTROL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """The engine with its RPCs."""

    engine: SiteEngine
    service: CapacityService
    view: LedgerView
    watch: SiteWatch

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Register CapacityService."""
        capacity_service_pb2_grpc.add_CapacityServiceServicer_to_server(self.service, server)


def build_deciding(
    *,
    site: SiteFile,
    journal: Journal,
    journal_is_new: bool,
    clock: Clock,
    instance: str,
    boot_id: str,
    market: Callable[[float], MarketView],
    source: SiteSource,
    cluster: ClusterState | None = None,
) -> Deciding:
    """Fold the journal and build the engine; it claims the next epoch. Limits are those of the site file from then on.

    Args:
        source: the site file, for what changes while it runs.
        cluster: what is seen of the cluster, where banks run pods.
    """
    state = SiteState(site)
    for journaled in journal.read():
        if journaled.entry.payload is not None:
            state.fold(journaled.entry.payload)
    if _ORDER.index(state.authority) > _ORDER.index(site.authority):
        state.authority = site.authority
    engine = SiteEngine(
        state=state,
        journal=journal,
        clock=clock,
        instance=instance,
        boot_id=boot_id,
        trust=JournalTrust.LOST if journal_is_new else JournalTrust.UNPROVEN,
        market=market,
        cluster=cluster,
    )
    watch = SiteWatch(source=source, engine=engine, clock=clock)
    watch.start()
    return Deciding(
        engine=engine,
        service=CapacityService(engine, Commands(engine, clock), clock),
        view=LedgerView(engine),
        watch=watch,
    )
