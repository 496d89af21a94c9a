"""One simulated site as a running process: the world stepped on real time, and every socket that shows it.

Decides only when to step. Invariant: world time never runs ahead of the clock, and after a stall every missed step is made up, so
that energy and lags stay true; the stall is counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from swingbus_sim import truth_log
from swingbus_sim.control import ControlSocket
from swingbus_sim.meters.meter import Meter
from swingbus_sim.meters.server import serve_meters
from swingbus_sim.miners.server import Firmware, MinerTraffic, ServedMiner, serve_miners
from swingbus_sim.nvml.layout import GpuIdentity
from swingbus_sim.nvml.shelf import Shelf
from swingbus_sim.physics.world import STEP_S, World
from swingbus_sim.scenario import GpuServer, Scenario
from swingbus_sim.truth_hub import TruthHub

_MAX_CATCH_UP_STEPS = 20
_LATE_S = 0.5


def boottime_s() -> float:
    """Return seconds since boot, counting suspension (CLOCK_BOOTTIME): the axis that all the site's programs share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SiteRun:
    """One run of a scenario in `folder`."""

    def __init__(self, scenario: Scenario, folder: Path, *, t0_boottime_s: float, duration_s: float | None) -> None:
        """Build the site.

        Args:
            scenario: what to run.
            folder: RUN_DIR; shelves, sockets and the truth log go there.
            t0_boottime_s: the CLOCK_BOOTTIME second that is the scenario's second 0.
            duration_s: when to end; None runs until it is told to stop.
        """
        self.scenario = scenario
        self.folder = folder
        self._t0_s = t0_boottime_s
        self._duration_s = duration_s
        self._stopping = asyncio.Event()
        self._late_count = 0
        self._worst_late_s = 0.0
        self._traffic = MinerTraffic()

    def now_s(self) -> float:
        """Return seconds since the scenario's start."""
        return boottime_s() - self._t0_s

    def stop(self) -> None:
        """End the run at the next step."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve and step until the duration is over or `stop` is called."""
        _allow_many_files()
        self.folder.mkdir(parents=True, exist_ok=True)
        ready_path = self.folder / "sim.json"
        ready_path.unlink(missing_ok=True)
        async with AsyncExitStack() as stack:
            shelves = {h.name: stack.enter_context(self._make_shelf(h)) for h in self.scenario.hosts}
            world = World(self.scenario, shelves)
            meters = make_meters(world)
            hub = await stack.enter_async_context(TruthHub(self.folder))
            hub.send(truth_log.header_line(world, t0_boottime_s=self._t0_s))
            await stack.enter_async_context(ControlSocket(self.folder, world, stop=self.stop, health=self._health))
            await stack.enter_async_context(serve_meters(meters, self.now_s))
            self._traffic = await stack.enter_async_context(serve_miners(self._served_miners(world), self.now_s))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
                stack.callback(loop.remove_signal_handler, number)
            # Shelves must answer before an agent opens them, so the first step comes before readiness.
            self._step_once(world, meters, hub, STEP_S)
            stack.callback(ready_path.unlink, missing_ok=True)
            await self._step_on_time(world, meters, hub, ready_path)
            hub.send(truth_log.end_line(world.now_s))

    async def _step_on_time(self, world: World, meters: list[Meter], hub: TruthHub, ready_path: Path) -> None:
        steps = 1
        is_ready = False
        while not self._stopping.is_set():
            now_s = self.now_s()
            if not is_ready and all(meter.values(now_s) is not None for meter in meters):
                is_ready = True
                self._write_ready(ready_path, world)
            due = int(now_s / STEP_S) - steps
            if due > 0:
                late_s = now_s - (steps + 1) * STEP_S
                if late_s > _LATE_S:
                    self._late_count += 1
                    self._worst_late_s = max(self._worst_late_s, late_s)
                for _ in range(min(due, _MAX_CATCH_UP_STEPS)):
                    steps += 1
                    self._step_once(world, meters, hub, steps * STEP_S)
                if self._duration_s is not None and world.now_s >= self._duration_s:
                    return
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout(max(0.0, (steps + 1) * STEP_S - now_s)):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def _step_once(self, world: World, meters: list[Meter], hub: TruthHub, now_s: float) -> None:
        tick = world.step(now_s, STEP_S)
        observe_meters(world, meters, now_s)
        for entry in world.faults.take_new():
            hub.send(truth_log.ledger_line(entry))
        hub.send(truth_log.tick_line(tick))

    def _health(self) -> dict[str, Any]:
        return {
            "cpu_s": round(time.process_time(), 2),
            "late_steps": self._late_count,
            "worst_late_s": round(self._worst_late_s, 3),
            "miner_connections": self._traffic.connections,
            "miner_requests": self._traffic.requests,
        }

    def _make_shelf(self, host: GpuServer) -> Shelf:
        identities = [
            GpuIdentity(
                uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_URL, f'swingbus-sim/{self.scenario.name}/{name}')}",
                name=host.gpu_class.model,
                bus_id=f"00000000:{0x10 + index * 8:02X}:00.0",
                serial=f"16{abs(hash_of(name)) % 10**11:011d}",
            )
            for index, name in enumerate(host.device_names())
        ]
        return Shelf.create(self.folder / "shelves" / host.name, identities)

    def _served_miners(self, world: World) -> list[ServedMiner]:
        addresses = self.scenario.addresses()
        return [
            ServedMiner(
                asic=world.asics[name],
                firmware=Firmware(group.firmware),
                host=addresses[name],
                password=group.password,
            )
            for group in self.scenario.miners
            for name in group.device_names()
        ]

    def _write_ready(self, path: Path, world: World) -> None:
        content = {
            "pid": os.getpid(),
            "scenario": self.scenario.name,
            "t0_boottime_s": self._t0_s,
            "truth_socket": str(self.folder / "truth.sock"),
            "control_socket": str(self.folder / "control.sock"),
            "shelves": {h.name: str(self.folder / "shelves" / h.name) for h in self.scenario.hosts},
            "meters": {m.name: f"{m.address}:{m.port}" for m in self.scenario.meters},
            "miners": self.scenario.addresses(),
        }
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
        aside.replace(path)


def hash_of(name: str) -> int:
    """Return a number that is the same in every process for the same name."""
    return int.from_bytes(uuid.uuid5(uuid.NAMESPACE_URL, name).bytes[:6], "big")


def make_meters(world: World) -> list[Meter]:
    """Build the scenario's meters on a world."""
    scenario = world.scenario
    return [
        Meter(
            spec,
            fault=world.faults.meter_faults[spec.name],
            random=world.random_for(f"meter/{spec.name}"),
            nominal_v=scenario.voltage_v,
            frequency_hz=scenario.frequency_hz,
            power_factor_ratio=scenario.power_factor_ratio,
        )
        for spec in scenario.meters
    ]


def observe_meters(world: World, meters: list[Meter], now_s: float) -> None:
    """Show every meter the step that has just been made."""
    for meter in meters:
        index = world.tree.index[meter.spec.node]
        meter.set_fault(world.faults.meter_faults[meter.spec.name])
        meter.observe(now_s, STEP_S, world.tick.node_w[index], world.voltage[index])


def _allow_many_files() -> None:
    """Raise the soft limit of open files: every miner listens, and is talked to, on sockets of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16384 if hard == resource.RLIM_INFINITY else min(16384, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
