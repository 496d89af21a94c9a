"""A whole site in virtual time whose GPU hosts are nodes of a cluster: the real engine and the real mover above, kubelets below.

Agents say what they see on GPUs and what their kubelet lists; limits, grants, meters and the judge are those of `tests.fakes.site`.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from swingbus_controller.app.bank_views import BankViews
from swingbus_controller.app.pod_mover import PodMover
from swingbus_controller.domain.cluster.facts import Pool, PoolMode
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.unit_roles import unit_wishes
from swingbus_controller.domain.site.sitefile import SiteFile
from swingbus_controller.domain.site.sitefile_parser import parse_site
from swingbus_controller.domain.site.strict_table import Faults, StrictTable
from tests.fakes.cluster import FakeCluster
from tests.fakes.memory_journal import Crashed
from tests.fakes.site import VirtualSite
from tests.fakes.site_agents import Agent
from tests.fakes.site_clock import BOOTTIME_ZERO_S
from tests.fakes.site_files import BANK, FEEDER, SITE
from tests.fakes.site_machines import Bank, Device

GPUS = 4
POOL = Pool(
    name="pool",
    uid="pool-1",
    revision="1",
    generation=1,
    site="north",
    container="grid",
    node_selector=MappingProxyType({"gpu": "h100"}),
    is_mining_enabled=True,
    miner_namespace="miners",
    miner_template="miner",
    evict_deadline_s=20.0,
    dwell_mining_s=10.0,
    dwell_inference_s=10.0,
    lift_deadline_s=10.0,
    mode=PoolMode.AUTO,
)


def make_pod_site(*, limit_w: float = 130_000.0, gpus: int = GPUS, asics: int = 10, has_caps: bool = True) -> SiteFile:
    """Parse a site of one ASIC container and two GPU hosts that run pods, GPUs moving one by one.

    Args:
        has_caps: whether what serves may also run at less.
    """
    readers = {"c1": "edge1", "g1": "gpu1", "g2": "gpu2"}
    kinds = {"c1": "container", "g1": "pdu", "g2": "pdu"}
    feeders = [FEEDER.format(name=n, kind=kinds[n], losses_ratio=0.0, agent=readers[n]) for n in readers]
    in_cluster = 'workloads = "kubernetes"\nnode = "{agent}"\npool = "pool"\n'
    banks = [
        BANK.format(agent="edge1", bank="asics", feeder="c1", klass="s21", count=asics),
        BANK.format(agent="gpu1", bank="gpus", feeder="g1", klass="h100", count=gpus) + in_cluster.format(agent="gpu1"),
        BANK.format(agent="gpu2", bank="gpus", feeder="g2", klass="h100", count=gpus) + in_cluster.format(agent="gpu2"),
    ]
    text = SITE.format(
        limit_w=limit_w,
        authority="control",
        protocol="",
        feeders="\n".join(feeders),
        banks="\n".join(banks),
        reservation="",
    )
    text = text.replace("unit_size = 8", "unit_size = 1").replace("safe_share_w = 5200.0", "safe_share_w = 2400.0")
    if not has_caps:
        text = "\n".join(line for line in text.splitlines() if '"serve-capped"' not in line)
    faults = Faults()
    table = StrictTable(tomllib.loads(text), faults)
    site = parse_site(table, faults)
    table.finish()
    faults.raise_if_faulty("the test's site")
    assert site is not None
    return site


class PodAgent(Agent):
    """An agent on a node: units are held by pods, it starts and stops nothing."""

    cluster: FakeCluster
    is_kubelet_silent = False
    shows_servers_late = False  # what serves is in no sample yet

    def held_by(self, bank: Bank, unit: int) -> list[str]:
        return [pod for gpu, pod in self.cluster.holders(bank.site.node) if bank.devices[gpu].unit == unit]

    def has_process(self, bank: Bank, unit: int) -> bool:
        return any(bank.devices[p.gpu].unit == unit for p in self.cluster.processes if p.node == bank.site.node)

    def _act_gpu(self, bank: Bank, allowed_w: float, may_raise: bool) -> None:
        order = bank.order
        assert order is not None
        # The limits are the base's business; what the order wants run is not ours to start or to stop.
        for unit in bank.units:
            unit.phase, unit.workload = "idle", ""
        bank.order = replace(order, points=tuple(replace(point, workload="") for point in order.points))
        try:
            super()._act_gpu(bank, allowed_w, may_raise)
        finally:
            bank.order = order
        for unit in bank.units:
            holders = self.held_by(bank, unit.number)
            working = self.has_process(bank, unit.number)
            is_miner = any(pod.startswith(self.cluster.miner_namespace + "/") for pod in holders)
            unit.workload = ("miner" if is_miner else "llm") if holders else "unknown" if working else ""
            unit.phase = "ready" if working else "starting" if holders else "idle"

    def in_progress(self, bank: Bank) -> bool:
        if not bank.is_gpu or bank.order is None:
            return super().in_progress(bank)
        if any(d.due_s is not None and not d.is_hung for d in bank.devices):
            return True
        wanted = {u: bank.fitted_w.get(u, p.power_w) for p in bank.order.points for u in p.units}
        return any(abs(d.enforced_w - wanted[d.unit]) >= 0.5 and not self._is_stuck(d) for d in bank.devices)

    def _is_held(self, bank: Bank, device: Device) -> bool:
        if not bank.is_gpu or bank.order is None:
            return super()._is_held(bank, device)
        wanted = {u: bank.fitted_w.get(u, p.power_w) for p in bank.order.points for u in p.units}
        return abs(device.enforced_w - wanted[device.unit]) < 0.5 and device.due_s is None

    def _bank_report(self, bank: Bank) -> orders.BankReport:
        report = super()._bank_report(bank)
        if not bank.is_gpu:
            return report
        holdings = []
        for unit in bank.units:
            holders = tuple(sorted(set(self.held_by(bank, unit.number))))
            working = self.has_process(bank, unit.number) or self.is_kubelet_silent
            holdings.append(
                orders.UnitHolding(
                    unit=unit.number,
                    holders=holders,
                    workload=unit.workload if holders else "",
                    has_process=working or bool(holders),
                    reason=self._reason(bank, unit.number, holders),
                )
            )
        free = tuple(h.unit for h in holdings if not h.holders and not h.has_process)
        return replace(report, unit_holdings=tuple(holdings), released_units=free, failed_workloads=())

    def _reason(self, bank: Bank, unit: int, holders: tuple[str, ...]) -> str:
        """Return the words that a real agent has for a unit."""
        if self.is_kubelet_silent:
            return "kubelet cannot be asked"
        if holders:
            return f"held by {', '.join(holders)}"
        if self.has_process(bank, unit):
            return "no pod holds it; processes on it"
        points = () if bank.order is None else bank.order.points
        is_wanted = any(point.workload and unit in point.units for point in points)
        return "waits for a pod to be given these GPUs" if is_wanted else ""

    def _mode_of(self, bank: Bank, device: Device) -> Mode:
        if not bank.is_gpu or device.is_hung:
            return super()._mode_of(bank, device)
        unit = bank.units[device.unit]
        if unit.phase != "ready":
            return Mode.STANDBY
        if unit.workload == "llm" and self.shows_servers_late:
            return Mode.STANDBY
        return {"llm": Mode.INFERENCE, "miner": Mode.MINING}.get(unit.workload, Mode.UNKNOWN)


class PodSite(VirtualSite):
    """The site with its cluster."""

    def __init__(self, site: SiteFile | None = None, *, pool: Pool = POOL, **options: Any) -> None:
        super().__init__(site or make_pod_site(), **options)
        self.cluster = FakeCluster(self.rng, lambda: self.clock.s)
        self.cluster.state.see_pool(pool)
        self.cluster.state.see_namespace("customers", {"swingbus.io/power-gate": "enabled"})
        for bank in self.banks.values():
            if bank.site.is_in_cluster:
                self.cluster.add_node(bank.site.node, len(bank.devices), {"gpu": "h100"})
        for name in self.agents:
            agent = PodAgent(name, [b for b in self.banks.values() if b.site.agent == name], self.clock)
            agent.cluster = self.cluster
            self.agents[name] = agent
        self._loop = asyncio.new_event_loop()
        self.mover: PodMover | None = None
        self.is_mover_dead = False
        self.wrong: list[str] = []

    def cluster_state(self) -> ClusterState:
        return self.cluster.state

    def start_controller(self, *, boot_id: str = "boot-controller") -> None:
        super().start_controller(boot_id=boot_id)
        self.mover = PodMover(desk=self.engine.desk, cluster=self.cluster, clock=self.clock)

    def step(self) -> None:
        self.cluster.step()
        miners = {name: self._miners_count(bank) for name, bank in self.banks.items()}
        super().step()
        if self.deciding is not None and self.mover is not None and not self.is_mover_dead:
            try:
                self._loop.run_until_complete(self._move(self.mover))
            except* Crashed:
                self.kill_controller()
        self._judge_pods(miners)

    async def _move(self, mover: PodMover) -> None:
        if self.cluster.may_write_s() <= 0:
            return
        async with asyncio.TaskGroup() as tasks:
            mover.start_due(tasks)

    # What must never be.

    def _miners_count(self, bank: Bank) -> int:
        if not bank.site.is_in_cluster:
            return 0
        return sum(not pod.is_over for pod in self.cluster.miners_on(bank.site.node))

    def _judge_pods(self, before: dict[str, int]) -> None:
        now_s = self.clock.s
        by_gpu: dict[tuple[str, int], set[str]] = {}
        for process in self.cluster.processes:
            by_gpu.setdefault((process.node, process.gpu), set()).add(f"{process.pod} {process.uid}")
        self.wrong += [f"t={now_s:.0f}: {gpu} is shared by {sorted(p)}" for gpu, p in by_gpu.items() if len(p) > 1]
        self.wrong += [f"t={now_s:.0f}: preempted {each}" for each in self.cluster.preempted]
        if self.deciding is None:
            return
        for name, bank in self.banks.items():
            count = self._miners_count(bank)
            if count > before[name] and count > self.mining_units(name):
                self.wrong.append(f"t={now_s:.0f}: {count} miners on {name}, {self.mining_units(name)} granted")

        self._judge_views(now_s)

    def _judge_views(self, now_s: float) -> None:
        """What the planner is shown of a bank must be what it would be shown if nothing was remembered from earlier plans."""
        now_unix_s = self.clock.now().timestamp()
        desk, views, anew = self.engine.desk, self.engine.views, BankViews(self.state)
        for name, holdings in self.state.holdings.items():
            shown = desk.bank_view(views.view(name, holdings, now_s, now_unix_s), now_s)
            right, sight = anew.view(name, holdings, now_s, now_unix_s), desk.sights.get(name)
            if sight is not None:
                right = desk.bank_view_anew(right, sight, now_s)
            if shown != right:
                self.wrong.append(f"t={now_s:.0f}: an old view of {name} is shown: {shown}, not {right}")

    def mining_units(self, bank: str) -> int:
        """Return how many units of a bank shall mine now, open flips counted as they stand."""
        state = self.state
        if bank not in state.holdings:
            return 0
        wishes = unit_wishes(state.models[bank], state.holdings[bank], state.open_flips(bank))
        return sum(wish.tenant.value == "mining" for wish in wishes)

    def assert_right(self) -> None:
        """Fail with the first thing that must never be: a shared GPU, somebody pushed out, a miner that nobody granted, watts."""
        assert not self.wrong, self.wrong[:3]
        self.verdicts.assert_clean()

    def close(self) -> None:
        """Close the loop that calls ran in."""
        self._loop.close()

    def tenants(self) -> dict[str, int]:
        """Return how many GPUs truly work for whom."""
        counts = {"miner": 0, "llm": 0}
        for process in self.cluster.processes:
            counts["miner" if process.is_miner else "llm"] += 1
        return counts


def settled_pod_site(site: SiteFile | None = None, *, pool: Pool = POOL, **options: Any) -> PodSite:
    """Return a site that has adopted everything and come to rest."""
    made = PodSite(site, pool=pool, **options)
    made.start_controller()
    assert made.run(300, lambda: made.clock.s > BOOTTIME_ZERO_S + 60 and made.is_quiet()), made.explain()
    return made


__all__ = ["Callable", "PodSite", "make_pod_site", "settled_pod_site"]
