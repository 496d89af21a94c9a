"""Look at the fleet every few seconds, for metrics. Decides nothing; a look is one pass in the event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from swingbus.clock import Clock
from swingbus_controller.domain.fleet.fleet import FeederReading, Fleet
from swingbus_controller.ports.event_log import EventLog

LOOK_EVERY_S = 5.0
_MODES = {0: "unknown", 1: "mining", 2: "inference", 3: "standby", 4: "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BankLook:
    """One bank in one look."""

    power_w: float | None
    modes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """One look at the fleet."""

    agents: Mapping[str, int]
    feeders: Mapping[str, FeederReading]
    banks: Mapping[tuple[str, str], BankLook]
    unattributed_ratio: float | None
    # Of the agents that are heard, the certificate that ends first.
    agents_certificate_expire_unix_s: float | None
    revision: int
    epoch: int


class FleetGauges(Protocol):
    """Where looks go."""

    def show(self, snapshot: FleetSnapshot) -> None: ...


def look(fleet: Fleet, log: EventLog, now_s: float) -> FleetSnapshot:
    """Return the fleet as it is heard now; banks of agents that are not heard are left out."""
    states = {name: fleet.liveness(view, now_s) for name, view in fleet.agents.items()}
    feeders = {name: fleet.feeder_reading(name, now_s) for name in fleet.site.tree.feeders}
    head = feeders[fleet.site.tree.root]
    ratio = None
    if head.unattributed_w is not None and head.metered_w:
        ratio = head.unattributed_w / head.metered_w
    banks = {
        (view.agent, view.inventory.bank): BankLook(
            power_w=view.reading.power_w if view.reading is not None else None,
            modes=Counter(_MODES.get(int(mode), "unrecognized") for mode in view.frame.modes),
        )
        for view in fleet.banks()
        if view.frame is not None and states[view.agent].value == "live"
    }
    return FleetSnapshot(
        agents=Counter(state.value for state in states.values()),
        feeders=feeders,
        banks=banks,
        unattributed_ratio=ratio,
        agents_certificate_expire_unix_s=min(
            (
                view.certificate_expire_unix_s
                for name, view in fleet.agents.items()
                if states[name].value == "live" and view.certificate_expire_unix_s is not None
            ),
            default=None,
        ),
        revision=log.newest_revision(),
        epoch=log.epoch,
    )


async def watch_fleet(fleet: Fleet, log: EventLog, gauges: FleetGauges, clock: Clock) -> None:
    """Look until cancelled."""
    while True:
        gauges.show(look(fleet, log, clock.boottime_s()))
        await clock.sleep(LOOK_EVERY_S)
