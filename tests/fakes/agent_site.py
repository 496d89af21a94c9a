"""A running agent for tests: the real program's loops in this event loop, on simulated miners that speak their protocols."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from swingbus.clock import SystemClock
from swingbus.link.v1alpha import agent_link_service_pb2 as pb
from swingbus.link.v1alpha import link_pb2
from swingbus_agent.adapters.asic.client import boottime_s
from swingbus_agent.running import Agent
from swingbus_agent.settings import AgentSettings, parse_settings
from swingbus_sim.miners import Firmware, ServedMiner, serve_miners
from tests.fakes.miners import FakeAsic

BANK = "s19k"
RUN_W, LOW_W, REST_W = 2794.0, 1657.0, 25.0
CEILING_W = 3300.0
# Each process of a parallel run has addresses of its own.
_SECOND = 110 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_networks = itertools.count(1)


def miner_names(count: int) -> list[str]:
    """Return m1, m2, ..."""
    return [f"m{number}" for number in range(1, count + 1)]


def settings_for(
    folder: Path, endpoint: str, hosts: Mapping[str, str], *, writes: bool = True, **extra: Any
) -> AgentSettings:
    """Return quick settings of an agent with one LuxOS bank."""
    document: dict[str, Any] = {
        "name": "edge-1",
        "state_dir": str(folder / "agent"),
        "writes": writes,
        "controller": {
            "endpoint": endpoint,
            "insecure_loopback": bool(endpoint),
            "connect_timeout_s": 3.0,
            "backoff_max_s": 0.5,
        },
        "sampling": {"asic_period_s": 0.3, "host_period_s": 0.5},
        "metrics": {"port": 0},
        "execution": {
            "tick_s": 0.1,
            "stagger_s": 0.0,
            "verify_s": 1.0,
            "boot_s": 3.0,
            "backoff_max_s": 2.0,
            "quarantine_s": 1.0,
        },
    }
    if hosts:
        document["bank"] = [
            {
                "name": BANK,
                "kind": "asic",
                "class": "s19k-pro",
                "point": [
                    {"name": "standby", "mode": "standby", "power_w": 0.0},
                    {"name": "410MHz", "mode": "mining", "power_w": LOW_W, "hashrate_ths": 80.5},
                    {"name": "default", "mode": "mining", "power_w": RUN_W, "hashrate_ths": 121.8},
                ],
                "miner": [{"name": n, "address": h, "firmware": "luxos"} for n, h in hosts.items()],
            }
        ]
    for key, value in extra.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, Mapping) else value
    return parse_settings(document, where="test", environment={})


@asynccontextmanager
async def served_miners(count: int) -> AsyncIterator[tuple[dict[str, FakeAsic], dict[str, str]]]:
    """Serve LuxOS miners; yield their states and addresses by name."""
    network = next(_networks)
    asics = {name: FakeAsic(name=name) for name in miner_names(count)}
    hosts = {name: f"127.{_SECOND}.{network}.{number}" for number, name in enumerate(asics, start=1)}
    served = [
        ServedMiner(asic=asic, firmware=Firmware.LUXOS, host=hosts[name], password="") for name, asic in asics.items()
    ]
    async with serve_miners(served, boottime_s):
        yield asics, hosts


@asynccontextmanager
async def running_agent(settings: AgentSettings) -> AsyncIterator[Agent]:
    """Run an agent until the block ends, then take it away without a word to its devices."""
    agent = Agent(settings, clock=SystemClock(), random_=random.Random(1))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(agent.run())
        try:
            yield agent
        finally:
            running.cancel()


def adoption(epoch: int = 1, instance: str = "ctl-1") -> pb.Adopt:
    """Return an adoption that counts the bank."""
    counting = link_pb2.BankCounting(
        bank=BANK,
        gpu_limit_ratio=1.07,
        asic_target_ratio=1.1,
        asic_boot_w=0.0,
        rest_w=REST_W,
        device_ceiling_w=CEILING_W,
    )
    return pb.Adopt(epoch=epoch, controller_instance=instance, counting=[counting])


def order_points(low: int = 0, full: int = 0, rest: int = 0) -> list[link_pb2.PointCount]:
    """Return how many miners at which point."""
    points = []
    for name, mode, watts, count in (
        ("default", link_pb2.MODE_MINING, RUN_W, full),
        ("410MHz", link_pb2.MODE_MINING, LOW_W, low),
        ("standby", link_pb2.MODE_STANDBY, 0.0, rest),
    ):
        if count:
            points.append(link_pb2.PointCount(point=name, mode=mode, power_w=watts, count=count))
    return points


def counted_grant_w(low: int = 0, full: int = 0, rest: int = 0) -> float:
    """Return the grant that these miners need."""
    return (low * LOW_W + full * RUN_W) * 1.1 + rest * REST_W + 1.0


def bank_desired(
    *,
    generation: int,
    for_instance: str,
    low: int = 0,
    full: int = 0,
    rest: int = 0,
    safe_share_w: float = 0.0,
    **extra: Any,
) -> link_pb2.BankDesired:
    """Return what the bank shall do, with the grant that it needs."""
    return link_pb2.BankDesired(
        bank=BANK,
        generation=generation,
        grant_w=counted_grant_w(low, full, rest),
        device_budget_w=counted_grant_w(low, full, rest),
        points=order_points(low, full, rest),
        urgency=link_pb2.URGENCY_PLANNED,
        safe_shares=[link_pb2.SafeShare(power_w=safe_share_w)],
        for_instance=for_instance,
        **extra,
    )
