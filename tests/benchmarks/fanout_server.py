"""The server of the fan-out figure, in a process of its own: the real link service and door over mutual TLS, 1,000 control streams.

The control plane beside it is a small one: it holds one order per agent and counts the answers. So the figure is that of the link: making
the messages, hashing, TLS, 1,000 streams, reading and checking 1,000 answers. An answer counts when `take_report` is called with a report
that carries the new generation, the right epoch and the hash of exactly what was ordered.

Commands come as lines on standard input: `round` changes every agent's order and prints what came back; `end` ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from swingbus.clock import SystemClock
from swingbus.rpc.interceptors import DoorInterceptor
from swingbus.rpc.server import bind_port, build_server, server_credentials
from swingbus_controller.adapters.pki import CertificateAuthority
from swingbus_controller.adapters.pki_records import DenyListFile
from swingbus_controller.api import codec
from swingbus_controller.api.link_service import AgentLinkService
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

EPOCH = 7
INSTANCE = "bench-controller"
ROUND_S = 30.0


class PlainControl:
    """Implements `ports.control.ControlPlane`: one order per agent, changed for all at once."""

    def __init__(self, agent_count: int) -> None:
        self._agent_count = agent_count
        self.all_heard = asyncio.Event()
        self.generation = 0
        self.heard: set[str] = set()
        self.answered_s: dict[str, float] = {}
        self.wrong: list[str] = []
        self._orders: dict[str, AgentOrder] = {}
        self._hashes: dict[str, str] = {}
        self._echoed: dict[str, str] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self.complete = asyncio.Event()

    def change(self, agents: list[str]) -> float:
        """Give every agent a new order; return when that began."""
        self.answered_s.clear()
        self.complete.clear()
        began_s = time.monotonic()
        self.generation += 1
        for agent in agents:
            self._orders[agent] = self._order(40_000.0 + self.generation)
            event = self._changed.pop(agent, None)
            if event is not None:
                event.set()
        return began_s

    def note_hashes(self) -> None:
        """Reckon what every agent must echo; outside the measured time, since the link reckons it itself."""
        self._hashes = {
            agent: codec.order_to_proto(order, marker=1, ticket="").desired.hash
            for agent, order in self._orders.items()
        }

    def check(self, agents: list[str]) -> None:
        """Note every answer that is not to exactly what was ordered."""
        for agent in agents:
            if self._echoed.get(agent) != self._hashes[agent]:
                self.wrong.append(f"{agent} echoed {self._echoed.get(agent)}")

    def _order(self, grant_w: float) -> AgentOrder:
        return AgentOrder(
            epoch=EPOCH,
            controller_instance=INSTANCE,
            generation=self.generation,
            ttl_s=60.0,
            banks=(
                BankOrder(
                    bank="asics",
                    generation=self.generation,
                    grant_w=grant_w,
                    device_budget_w=grant_w - 1000.0,
                    points=(
                        PointOrder(point="normal", mode=Mode.MINING, power_w=3068.0, count=10),
                        PointOrder(point="asleep", mode=Mode.STANDBY, power_w=0.0, count=3),
                    ),
                    urgency=Urgency.EMERGENCY,
                    safe_shares=(SafeShareStep(start_unix_s=None, power_w=500.0),),
                    locked_out=False,
                ),
            ),
        )

    # What the link service calls.

    def take_report(self, report: AgentReport, *, is_hello: bool, now_s: float) -> None:
        """Count a hello or an answer to the newest order."""
        if is_hello:
            self.heard.add(report.agent)
            if len(self.heard) == self._agent_count:
                self.all_heard.set()
            return
        if report.generation != self.generation or report.epoch != EPOCH or report.agent in self.answered_s:
            return
        self.answered_s[report.agent] = time.monotonic()
        self._echoed[report.agent] = report.hash
        if len(self.answered_s) == len(self.heard):
            self.complete.set()

    def note_marker(self, agent: str, marker: int, now_s: float) -> None:
        """Nothing to remember."""

    def agent_gone(self, agent: str, now_s: float) -> None:
        """A stream that ends in the middle leaves its answer out, and the round fails."""

    def adopt_order(self, agent: str) -> AdoptOrder:
        """Return the fence."""
        return AdoptOrder(
            epoch=EPOCH,
            controller_instance=INSTANCE,
            counting=(
                BankCounting(
                    bank="asics",
                    gpu_limit_ratio=1.0,
                    asic_target_ratio=1.05,
                    asic_boot_w=3400.0,
                    rest_w=15.0,
                    device_ceiling_w=3250.0,
                    cooling_ratio=0.0,
                    losses_ratio=0.0,
                    fixed_w=0.0,
                ),
            ),
        )

    def renew(self, agent: str, sent_boottime_ns: int, now_s: float) -> RenewalReply:
        """Renew."""
        return RenewalReply(sent_boottime_ns=sent_boottime_ns, epoch=EPOCH, ttl_s=60.0)

    def order_for(self, agent: str) -> AgentOrder | None:
        """Return the newest order."""
        return self._orders.get(agent)

    async def wait_order(self, agent: str, after_generation: int) -> AgentOrder:
        """Return when an order is newer."""
        while True:
            order = self._orders.get(agent)
            if order is not None and order.generation > after_generation:
                return order
            await self._changed.setdefault(agent, asyncio.Event()).wait()


class NoIngest:
    """Stands where telemetry would be taken: this server is sent none."""

    credit = 0


async def main(site: Path) -> None:
    """Serve, and do what standard input says."""
    configuration = load_configuration(site)
    agents = sorted(configuration.site.agents())
    clock = SystemClock()
    authority = CertificateAuthority(configuration.controller.pki_dir)
    control = PlainControl(len(agents))
    ingest: Any = NoIngest()
    link = AgentLinkService(
        ingest=ingest,
        fleet=Fleet(configuration.site, period_s=1.0),
        clock=clock,
        period_s=1.0,
        control=control,
    )
    server = build_server(DoorInterceptor(clock, DenyListFile(authority.serving.deny_list_path)))
    link.add_to_server(server)
    port = bind_port(server, "127.0.0.1:0", server_credentials(authority.serving.identity))
    await server.start()
    print(json.dumps({"port": port, "pid": os.getpid()}), flush=True)
    loop = asyncio.get_running_loop()
    while True:
        line = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
        match line:
            case "wait":
                async with asyncio.timeout(120):
                    await control.all_heard.wait()
                # As the program does once it serves.
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000, 20, 50)
                print(json.dumps({"heard": len(control.heard)}), flush=True)
            case "round":
                print(json.dumps(await play_round(control, agents)), flush=True)
            case _:
                break
    await server.stop(0)


async def play_round(control: PlainControl, agents: list[str]) -> dict[str, Any]:
    """Change every order and wait for every answer."""
    cpu_s = time.process_time()
    began_s = control.change(agents)
    try:
        async with asyncio.timeout(ROUND_S):
            await control.complete.wait()
    except TimeoutError:
        missing = sorted(control.heard - set(control.answered_s))
        return {"missing": missing[:10], "answered": len(control.answered_s)}
    cpu_s = time.process_time() - cpu_s
    control.note_hashes()
    control.check(agents)
    return {
        "latencies_s": [at_s - began_s for at_s in control.answered_s.values()],
        "answered": len(control.answered_s),
        "generation": control.generation,
        "wrong": control.wrong[:10],
        "server_cpu_s": cpu_s,
    }


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(Path(sys.argv[1])))
