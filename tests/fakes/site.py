"""A whole site in virtual time: machines, meters and agents that obey like real ones, a judge beside them, the real engine above.

Nothing here asks the controller what is true: watts come from the machines, limits from what was ordered, grants from the journal.
One step is one second. Agents fence, store, apply with delays, renew, lapse and lose their memory; machines can ignore a write, wake
by themselves or draw more than they say. The judge looks at every step: watts over a limit, orders that are not journaled, watts above
claims.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from swingbus.faults import InvalidInput, WrongState
from swingbus_controller.app.commands import Commands, Order
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.deciding import Deciding, build_deciding
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.frames import BatchFrame, MeterFrame
from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Flip, Phase
from swingbus_controller.domain.planning.market import MarketView, Quote
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.site.curtailment import Curtailment
from swingbus_controller.domain.site.sitefile import SiteBank, SiteFile
from swingbus_controller.domain.site_state import SiteState
from swingbus_controller.ports.journal import Journal
from tests.fakes.memory_journal import Crashed, JournalFile, MemoryJournal
from tests.fakes.site_agents import Agent
from tests.fakes.site_clock import BOOTTIME_ZERO_S, VirtualClock
from tests.fakes.site_files import make_site
from tests.fakes.site_machines import Bank, Device, Unit

HEAD = "head"
HOUSE_W = 1500.0
# After a controller or a link is back: the agent reports, is adopted and regranted, is cut, sheds.
RECOVERY_S = 20.0


@dataclass
class Market:
    """Prices and demand, as they stand."""

    power: float | None = 40.0
    hashprice: float | None = 0.05
    inference: float | None = 2.35
    demand: float | None = 0.0
    gpu_mining: float | None = 0.12

    def view(self, now_unix_s: float) -> MarketView:
        def quote(value: float | None) -> Quote | None:
            return None if value is None else Quote(value=value, source="test")

        def by_class(value: float | None) -> MappingProxyType[str, Quote]:
            made = quote(value)
            return MappingProxyType({} if made is None else {"h100": made})

        return MarketView(
            now_s=now_unix_s,
            power_price_usd_per_mwh=quote(self.power),
            hashprice_usd_per_th_day=quote(self.hashprice),
            inference_price_usd_per_gpu_h=by_class(self.inference),
            inference_demand_gpus=by_class(self.demand),
            gpu_mining_usd_per_gpu_h=by_class(self.gpu_mining),
        )


@dataclass
class WrittenSite:
    """A site file on a disk that tests write to."""

    site: SiteFile
    fault: str = ""  # of a file that is no good
    besides: tuple[str, ...] = ()
    is_read_before: bool = False  # a test reads it, and writes to it before the next start
    started: SiteFile | None = None  # as a controller read it at its start
    taken: bytes = b""

    def read(self) -> None:
        """Take it as it is for the next start."""
        self.started, self.taken = self.site, self.text()

    def text(self) -> bytes:
        return repr((self.site, self.site.tree.feeders, self.fault, self.besides)).encode()

    def parse(self, text: bytes) -> tuple[SiteFile, tuple[str, ...]]:
        assert text == self.text()
        if self.fault:
            raise InvalidInput(self.fault, reason="BAD_TOML")
        return self.site, self.besides


@dataclass
class Verdicts:
    """What the judge found; every list must stay empty unless a test planted the cause."""

    over_cap: list[str] = field(default_factory=list)
    unjournaled: list[str] = field(default_factory=list)
    above_claim: list[str] = field(default_factory=list)

    def assert_clean(self) -> None:
        """Fail with the first findings."""
        assert not self.unjournaled, self.unjournaled[:3]
        assert not self.over_cap, self.over_cap[:3]
        assert not self.above_claim, self.above_claim[:3]


@dataclass(frozen=True)
class TrueLimit:
    """A limit as it was ordered, in the judge's own words: `full_from_s` is when all of it must hold."""

    feeder: str
    watts: float
    full_from_s: float
    until_s: float


class VirtualSite:
    """The site, its agents and at most one living controller."""

    def __init__(
        self,
        site: SiteFile | None = None,
        *,
        seed: int = 1,
        mining: int | None = None,
        open_journal: Callable[[], Any] | None = None,
    ) -> None:
        """Make the site; `mining` machines of each ASIC bank run at the start, all by default none."""
        self.site = site or make_site()
        self.written = WrittenSite(self.site)
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.market = Market()
        self.verdicts = Verdicts()
        self.banks: dict[str, Bank] = {b.name: self._bank(b, mining or 0) for b in self.site.banks}
        self.agents: dict[str, Agent] = {
            name: Agent(name, [b for b in self.banks.values() if b.site.agent == name], self.clock)
            for name in self.site.agents()
        }
        self.journal_file = JournalFile()
        self._open_journal = open_journal
        self.journal: Any = None
        self.deciding: Deciding | None = None
        self.controllers = 0
        self.marker = 0
        self.energy_j = dict.fromkeys(self.site.tree.feeders, 0.0)
        self.counts = dict.fromkeys(self.site.tree.feeders, 0)
        self.dead_meters: set[str] = set()
        self.voltage_v = 230.0
        self.limits: list[TrueLimit] = [
            TrueLimit("grid", lim.limit_w, -1e18, 1e18) for lim in self.site.tree.feeder("grid").limits
        ]
        self.excused_until_s = -1e18
        self.undecided_s = -1e18
        self.is_disobedient: set[str] = set()
        self.house_w = HOUSE_W
        self._grants: dict[tuple[str, int, int], float] = {}
        self._rows_read = 0
        self._orders: dict[str, tuple[orders.AgentOrder, float]] = {}
        self.is_new = False

    def _bank(self, declared: SiteBank, mining: int) -> Bank:
        is_gpu = declared.spec.kind.value == "gpu"
        size = self.site.classes[declared.device_class].unit_size
        devices = [
            Device(
                name=f"d{i:02d}",
                unit=i // size if is_gpu else 0,
                is_gpu=is_gpu,
                rated_w=declared.spec.device_ceiling_w,
                floor_w=declared.spec.device_floor_w,
                mode=Mode.MINING if i < mining and not is_gpu else Mode.STANDBY,
                enforced_w=200.0 if is_gpu else (declared.spec.device_ceiling_w if i < mining else 0.0),
                restarted_s=BOOTTIME_ZERO_S - 5000.0,
            )
            for i in range(declared.device_count)
        ]
        units = [Unit(i) for i in range(declared.device_count // size)] if is_gpu else []
        return Bank(site=declared, name=declared.name, devices=devices, units=units)

    # The controller.

    @property
    def engine(self) -> SiteEngine:
        """Return the living controller's engine."""
        assert self.deciding is not None, "no controller lives"
        return self.deciding.engine

    @property
    def state(self) -> SiteState:
        """Return the living controller's state."""
        return self.engine.state

    def start_controller(self, *, boot_id: str = "boot-controller") -> None:
        """Build a controller from the journal as it is."""
        self.controllers += 1
        if not self.written.is_read_before:
            self.written.read()
        assert self.written.started is not None
        self.journal = self._open_journal() if self._open_journal else MemoryJournal(self.journal_file)
        self.is_new = self.journal.was_created
        self.deciding = build_deciding(
            site=self.written.started,
            source=self.written,
            journal=self.journal,
            journal_is_new=self.journal.was_created,
            clock=self.clock,
            instance=f"controller-{self.controllers}",
            boot_id=boot_id,
            market=self.market.view,
            cluster=self.cluster_state(),
        )
        self.commands = Commands(self.engine, self.clock)
        self.marker = 0
        self._orders.clear()
        for agent in self.agents.values():
            agent.said_hello = False

    def cluster_state(self) -> ClusterState | None:
        """Return what the controller sees of a cluster; this site has none."""
        return None

    def kill_controller(self) -> None:
        """Drop it where it stands."""
        self.deciding = None
        self._orders.clear()
        close = getattr(self.journal, "close", None)
        if close is not None:
            close()

    def restart_controller(self) -> None:
        """Kill and start."""
        self.kill_controller()
        self.start_controller()

    # Time.

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether `until` came true (True without one)."""
        for _ in range(int(seconds)):
            self.step()
            if until is not None and until():
                return True
        return until is None

    def step(self) -> None:
        """One second."""
        self.clock.s += 1.0
        now_s = self.clock.s
        for bank in self.banks.values():
            for device in bank.devices:
                device.land(now_s)
        for agent in self.agents.values():
            if agent.is_alive:
                agent.act()
        watts = self.true_w()
        for feeder, power_w in watts.items():
            self.energy_j[feeder] += power_w
            self.counts[feeder] += 1
        try:
            for agent in self.agents.values():
                if agent.is_alive and agent.is_linked and self.deciding is not None:
                    self._talk(agent, watts)
            if self.deciding is not None:
                self.engine.tick(now_s, self.clock.now().timestamp())
        except Crashed:
            self.kill_controller()
        if self.deciding is not None:
            self._send()
        self._judge(watts)

    def _talk(self, agent: Agent, watts: dict[str, float]) -> None:
        engine, now_s = self.engine, self.clock.s
        if agent.name in self._orders:
            order, sent_s = self._orders.pop(agent.name)
            agent.take_order(order, sent_s)
            agent.act()
        if not agent.said_hello:
            engine.take_inventory(agent.inventory(), now_s)
            self._take_report(agent, is_hello=True)
            agent.said_hello = True
            adopt = engine.adopt_order(agent.name)
            if adopt is not None:
                agent.take_adopt(adopt)
                self._mark(agent)
        agent.batch += 1
        engine.take_batch(
            BatchFrame(
                agent=agent.name,
                sequence=agent.batch,
                first_sequence=agent.batch,
                boot_id=agent.boot_id,
                sample_unix_s=self.clock.now().timestamp(),
                sample_boottime_s=now_s,
                banks=agent.frames(),
                meters=tuple(self._meters(agent, watts)),
                host_values=(),
                events=(),
                is_live=True,
            ),
            now_s,
        )
        try:
            self._take_report(agent, is_hello=False)
        except WrongState as refused:
            if refused.reason != "NEW_EPOCH":
                raise
            agent.said_hello = False  # the stream is closed; it connects again with the next step
            return
        renewed = engine.renew(agent.name, round(now_s * 1e9), now_s)
        if renewed is not None:
            agent.renewed(renewed)
            self._mark(agent)

    def _take_report(self, agent: Agent, *, is_hello: bool) -> None:
        self.engine.take_report(agent.report(), is_hello=is_hello, now_s=self.clock.s)

    def _mark(self, agent: Agent) -> None:
        self.marker += 1
        self.engine.note_marker(agent.name, self.marker, self.clock.s)
        agent.markers.append((self.clock.s, self.state.ledger.epoch, self.marker))
        del agent.markers[:-40]

    def _meters(self, agent: Agent, watts: dict[str, float]) -> Iterator[MeterFrame]:
        for feeder, note in self.site.feeder_notes.items():
            if note.meter_agent != agent.name or not note.meter or feeder in self.dead_meters:
                continue
            end_s = self.clock.s
            gain = 1.0 + self.rng.uniform(-0.0005, 0.0005)
            power_w = watts[feeder] * gain
            epoch, marker = agent.marker_before(end_s - 1.0)
            yield MeterFrame(
                meter=note.meter,
                feeder=feeder,
                measurement_count=self.counts[feeder],
                window_start_boottime_s=end_s - 1.0,
                window_end_boottime_s=end_s,
                marker=marker,
                marker_epoch=epoch,
                power_w=power_w,
                energy_j=self.energy_j[feeder],
                voltage_v=self.voltage_v,
                current_a=power_w / (3.0 * self.voltage_v * 0.98),
                power_factor=0.98,
                fault="",
            )

    def _send(self) -> None:
        """Hand the newest orders out, as the link does: they arrive with the next step."""
        self._read_grants()
        for agent in self.agents.values():
            order = self.engine.order_for(agent.name)
            if order is None:
                continue
            held = agent.order
            if held is None or (held.epoch, held.generation) != (order.epoch, order.generation):
                self.check_order(agent, order)
                if agent.is_linked and agent.is_alive:
                    self._orders[agent.name] = (order, self.clock.s)

    def _read_grants(self) -> None:
        for row in self.journal.read(self._rows_read if self._rows_read <= self.journal.newest_revision() else 0):
            self._rows_read = row.revision
            budget = (row.entry.payload or {}).get("budget", {})
            if budget.get("event") == "GrantIssued":
                self._grants[(budget["bank"], budget["epoch"], budget["generation"])] = budget["grant_w"]

    def forget_grants(self) -> None:
        """Read the journal from its start again: another one was put in its place."""
        self._rows_read = 0
        self._grants.clear()

    def check_order(self, agent: Agent, order: orders.AgentOrder) -> None:
        for bank in order.banks:
            key = (f"{agent.name}/{bank.bank}", order.epoch, bank.generation)
            if self._grants.get(key) != bank.grant_w:
                self.verdicts.unjournaled.append(f"{key}: {bank.grant_w} ordered, {self._grants.get(key)} journaled")

    # Truth.

    def true_w(self) -> dict[str, float]:
        """Return what every feeder truly carries."""
        now_s = self.clock.s
        tree = self.site.tree
        watts = dict.fromkeys(tree.feeders, 0.0)
        watts["grid"] += self.house_w
        for bank in self.banks.values():
            at_w = bank.true_w(now_s)
            for feeder, factor in tree.path(bank.site.feeder):
                watts[feeder] += at_w * factor
        return watts

    def limit_w(self) -> float:
        """Return the grid's limit that must hold now."""
        now_s = self.clock.s
        return min(lim.watts for lim in self.limits if lim.full_from_s <= now_s < lim.until_s)

    def unreachable_w(self) -> float:
        """Return watts that no controller could have taken away in time: of dead agents, or of all while none has decided lately."""
        now_s, tree = self.clock.s, self.site.tree
        is_undecided = now_s - self.undecided_s <= RECOVERY_S
        total_w = 0.0
        for bank in self.banks.values():
            agent = self.agents[bank.site.agent]
            if not (agent.is_alive and agent.is_linked):
                agent.lost_s = now_s
            if is_undecided or now_s - agent.lost_s <= RECOVERY_S:
                total_w += bank.true_w(now_s) * tree.loss_factor(bank.site.feeder, "grid")
        return total_w

    def excuse(self, seconds: float) -> None:
        """Let the judge look away for a while: a limit fell without notice, or a machine was made to misbehave."""
        self.excused_until_s = self.clock.s + seconds

    def _judge(self, watts: dict[str, float]) -> None:
        now_s = self.clock.s
        if self.deciding is None:
            self.undecided_s = now_s
        for lim in self.limits:
            if not lim.full_from_s <= now_s < lim.until_s:
                continue
            over_w = watts["grid"] - lim.watts
            if lim.full_from_s > BOOTTIME_ZERO_S:
                # A programme's limit: nobody can tell a dead agent's machines, and a dead controller tells nobody.
                over_w -= self.unreachable_w()
            if over_w > 0.0 and now_s > self.excused_until_s:
                self.verdicts.over_cap.append(f"t={now_s:.0f}: {over_w:.0f} W over {lim.watts:.0f} W")
        if self.deciding is None:
            return
        for name, bank in self.banks.items():
            claim_w = self.state.ledger.claim_w(name)
            true_w = bank.true_w(now_s)
            if true_w > claim_w + 1.0 and name not in self.is_disobedient:
                self.verdicts.above_claim.append(f"t={now_s:.0f}: {name} draws {true_w:.0f} W, claims {claim_w:.0f} W")

    # Words for tests.

    def order(self, request_id: str, *, validate_only: bool = False, digest: str = "") -> Order:
        """Return what every write carries."""
        return Order(
            author="ada", request_id=request_id, reason="test", digest=digest or request_id, validate_only=validate_only
        )

    def curtail(
        self, limit_w: float, *, notice_s: float = 30.0, ramp_s: float = 0.0, duration_s: float = 120.0, id: str = "c"
    ) -> Curtailment:
        """Order a curtailment of the grid and tell the judge."""
        made = self.commands.start_curtailment(
            self.order(f"curtail-{id}-{self.clock.s}"),
            feeder="grid",
            limit_w=limit_w,
            notice_s=notice_s,
            ramp_s=ramp_s,
            duration_s=duration_s,
            window_s=60.0,
            payment="",
            penalty="",
        )
        start_s = self.clock.s + notice_s
        self.limits.append(TrueLimit("grid", limit_w, start_s + ramp_s, start_s + ramp_s + duration_s))
        return made

    def flips(self, *phases: Phase, bank: str | None = None) -> list[Flip]:
        """Return flips, of some phases and one bank where named."""
        return [
            f
            for f in self.state.flips.values()
            if (not phases or f.phase in phases) and (bank is None or f.bank == bank)
        ]

    def flips_open(self, bank: str) -> list[Flip]:
        """Return open flips of a bank."""
        return list(self.state.open_flips(bank))

    def count(self, bank: str, mode: Mode) -> int:
        """Return machines of a bank that truly are in a mode."""
        agent = self.agents[self.banks[bank].site.agent]
        return sum(agent._mode_of(self.banks[bank], d) is mode for d in self.banks[bank].devices)

    def claimed_ratio(self, feeder: str = "grid") -> float:
        """Return claims, uncontrolled load and margin over the limit."""
        view = self.state.ledger.feeder_view(feeder, self.clock.s)
        return (view.claimed_w + view.uncontrolled_w + view.margin_w) / view.limit_w

    def is_quiet(self) -> bool:
        """Tell whether every flip is over and every bank settled."""
        return not self.state.open_flips() and all(self.state.ledger.is_settled(b) for b in self.banks)

    def explain(self) -> str:
        """Tell where everything stands, for failing tests."""
        ledger, now_s = self.state.ledger, self.clock.s
        lines = [
            f"t={now_s:.0f} grid {self.true_w()['grid']:.0f} W of {self.limit_w():.0f}, ratio {self.claimed_ratio():.3f}"
        ]
        for name in self.banks:
            newest = ledger.newest_grant(name)
            lines.append(
                f"{name}: {ledger.state(name, now_s).value} claim {ledger.claim_w(name):.0f} grant "
                f"{'-' if newest is None else f'{newest.grant_w:.0f} ({newest.epoch}.{newest.generation} {newest.reason})'} "
                f"true {self.banks[name].true_w(now_s):.0f}; "
                + ", ".join(f"{p.count} {p.point}" for p in self.state.holdings[name].placements)
                if name in self.state.holdings
                else f"{name}: no holdings, {ledger.state(name, now_s).value} claim {ledger.claim_w(name):.0f}"
            )
            group = ledger.group_of(name)
            if group is not None and not ledger.is_settled(name):
                lines.append(f"   not settled: {self.engine.not_settled(group)}")
        lines += [
            f"open: {f.story()} {f.direction} {f.watts} since {f.since_s:.0f} "
            f"{self.engine.flips.refusals.get(f.id, '')}"
            for f in self.state.open_flips()
        ]
        return "\n".join(lines)


def settled_site(site: SiteFile | None = None, *, seed: int = 1, mining: int = 10, **options: Any) -> VirtualSite:
    """Return a site with a controller that has adopted everything, filled the limit and come to rest."""
    made = VirtualSite(site, seed=seed, mining=mining, **options)
    made.start_controller()
    assert made.run(400, lambda: made.clock.s > BOOTTIME_ZERO_S + 60 and made.is_quiet()), made.explain()
    return made


__all__ = [
    "Authority",
    "Journal",
    "JournalFile",
    "Market",
    "MemoryJournal",
    "Path",
    "TrueLimit",
    "VirtualSite",
    "make_site",
    "replace",
    "settled_site",
]
