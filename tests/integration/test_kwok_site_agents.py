"""Agents of simulated nodes against the real controller as a process: adopted, granted, settled, cut, silent, rebooted, adopted again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from swingbus.bundle import format_bundle, write_private
from swingbus.fleet.v1alpha import fleet_pb2, fleet_service_pb2_grpc
from swingbus.fleet.v1alpha import fleet_service_pb2 as rpc
from swingbus.rpc.roles import Role
from swingbus_sim.kwok_site.plan import SitePlan
from swingbus_sim.kwok_site.running import KwokSite
from swingbus_sim.kwok_site.site_file import write_site
from tests.fakes.controllers import TestSite

QUICK = "".join(
    f'[protocol.{name}]\nvalue = {value}\nwhy = "tests"\n'
    for name, value in (("adopt_grace_s", 1), ("disturbance_s", 4))
)


class Site:
    """A simulated cluster without pods, a controller above it, and a viewer."""

    def __init__(self, nodes: KwokSite, viewer: fleet_service_pb2_grpc.FleetServiceAsyncStub) -> None:
        self.nodes = nodes
        self._viewer = viewer

    async def banks(self) -> dict[str, fleet_pb2.Bank]:
        """Return the controller's view of each node's bank."""
        answer = await self._viewer.ListBanks(rpc.ListBanksRequest(parent="sites/bench", page_size=1000), timeout=10)
        return {bank.name.split("/")[3]: bank for bank in answer.banks}

    async def until(self, so: Callable[[dict[str, fleet_pb2.Bank]], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait until the controller shows it so."""
        banks: dict[str, fleet_pb2.Bank] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while not so(banks := await self.banks()):
                    await asyncio.sleep(0.2)
        except TimeoutError:
            seen = {name: (bank.state, bank.claim_w, bank.grant_w) for name, bank in banks.items()}
            raise AssertionError(f"not {what}: {seen}; {self.nodes.status()}") from None


@asynccontextmanager
async def running(folder: Path, plan: SitePlan, *, boot_limit_w: float | None) -> AsyncIterator[Site]:
    """Run a controller as a process and the nodes in this event loop.

    Grants are short: a meter that another agent reads is dated by markers, and those come with renewals.
    """
    controller = TestSite(folder, write_site(plan, is_mining_allowed=False, ttl_s=12.0, more=QUICK))
    bundles = folder / "bundles"
    bundles.mkdir()
    for name in plan.nodes:
        bundle = controller.authority.issue(name, Role.AGENT, now=datetime.now(UTC))
        write_private(bundles / f"{name}.toml", format_bundle(bundle))
    process = await controller.spawn()
    try:
        nodes = KwokSite(
            plan, folder, boot_limit_w=boot_limit_w, endpoint=f"127.0.0.1:{controller.port}", bundles=bundles
        )
        async with controller.channel("vera", Role.VIEWER) as channel, asyncio.TaskGroup() as tasks:
            tasks.create_task(nodes.run())
            try:
                yield Site(nodes, fleet_service_pb2_grpc.FleetServiceStub(channel))
            finally:
                nodes.stop()
    finally:
        process.terminate()
        await process.wait()


def all_held(banks: dict[str, fleet_pb2.Bank]) -> bool:
    """Tell whether every bank's newest grant is proven."""
    return bool(banks) and all(bank.state == "HELD" for bank in banks.values())


@pytest.mark.parametrize("nodes_per_meter", [1, 2])
async def test_nodes_are_adopted_and_settle_by_their_meters(tmp_path: Path, nodes_per_meter: int) -> None:
    """Each alone behind a PDU branch, or two behind one meter that one of them reads: all grants are proven, at what counts."""
    plan = SitePlan(node_count=4, nodes_per_meter=nodes_per_meter)
    async with running(tmp_path, plan, boot_limit_w=200.0) as site:
        await site.until(all_held, "held")

        banks = await site.banks()
        assert sorted(banks) == list(plan.nodes)
        floor_w = plan.node_counted_w(200.0)
        assert [bank.claim_w for bank in banks.values()] == pytest.approx([floor_w] * 4, rel=1e-3)
        assert site.nodes.status()["refusals"] == []


async def test_uncapped_nodes_are_cut_until_the_limit_holds_on_paper(tmp_path: Path) -> None:
    """Limits at the driver's default do not fit 80 % of nameplate: the agents write lower ones, and the meters prove it."""
    plan = SitePlan(node_count=3, limit_ratio=0.8)
    async with running(tmp_path, plan, boot_limit_w=None) as site:
        assert sum(plan.node_counted_w(gpu.enforced_w) for s in site.nodes.servers for gpu in s.gpus[:1]) > plan.limit_w

        await site.until(all_held, "held")

        banks = await site.banks()
        assert sum(bank.claim_w for bank in banks.values()) <= plan.limit_w
        counted = [plan.gpu.host_w(1.03 * sum(gpu.enforced_w for gpu in server.gpus)) for server in site.nodes.servers]
        assert sum(counted) <= plan.limit_w


async def test_silent_node_is_dark_and_keeps_its_claim_until_it_is_heard_again(tmp_path: Path) -> None:
    """A node whose agent leaves the wire draws on and counts on; heard again, it is adopted without a cut."""
    plan = SitePlan(node_count=2)
    async with running(tmp_path, plan, boot_limit_w=200.0) as site:
        await site.until(all_held, "held")
        node = plan.nodes[1]
        claim_w = (await site.banks())[node].claim_w

        site.nodes.inject("silent", node)

        await site.until(lambda banks: banks[node].state == "DARK", "dark")
        assert (await site.banks())[node].claim_w >= claim_w - 1e-6
        assert site.nodes.kubelets[node].server.power_w > 1000.0
        site.nodes.inject("heal", node)
        await site.until(all_held, "held again")


async def test_rebooted_node_comes_back_with_reset_limits_and_is_held_again(tmp_path: Path) -> None:
    """A reboot forgets limits: the new boot's agent lowers them, is granted anew and proven by readings of that boot."""
    plan = SitePlan(node_count=2)
    async with running(tmp_path, plan, boot_limit_w=200.0) as site:
        await site.until(all_held, "held")
        node = plan.nodes[1]
        kubelet = site.nodes.kubelets[node]
        kubelet.times = type(kubelet.times)(boot_s=3.0)
        kubelet.server.boot_limit_w = 700.0
        boot_id = site.nodes.links[node].agent.boot_id

        site.nodes.inject("reboot", node)
        assert [gpu.enforced_w for gpu in kubelet.server.gpus] == [700.0] * 8

        await site.until(lambda banks: banks[node].state != "HELD", "noticed")
        await site.until(all_held, "held again")
        assert site.nodes.links[node].agent.boot_id != boot_id
        assert max(gpu.enforced_w for gpu in kubelet.server.gpus) <= 201.0
