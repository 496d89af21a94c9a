"""The same physics, seed, faults and series in virtual time, under policies that know no power budget.

Policies:
- always-on: every ASIC mines, every GPU serves inference at full power, all the time. No limit is looked at.
- gpu-filler-only: ASICs as above; GPUs follow the inference demand in whole units, the rest mine. No watt moves between the two tenants.
- static-safe: the fixed plan of a careful operator: GPUs as in gpu-filler-only; only so many ASICs are switched on (best J/TH first)
  that everything at once, at ceilings, fits the lowest limit of the whole timeline. Never over, and poorer for it.

Each is heard by the same court as the real run, so its W·s over the limits stand beside its margin. Nobody answers the planted faults:
a sleeping machine that wakes stays awake, and after an outage each machine does what its firmware does. What the runner does (kills, cuts)
has no meaning here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swingbus.faults import NotFound
from swingbus_sim import truth_log
from swingbus_sim.judge.court import Court
from swingbus_sim.money import Purse
from swingbus_sim.physics.world import STEP_S, World
from swingbus_sim.ports import GpuProcess, GpuReading
from swingbus_sim.scenario import GpuServer, Scenario
from swingbus_sim.show import ASIC_CEILING_RATIO, GPU_CEILING_RATIO

POLICIES = ("always-on", "gpu-filler-only", "static-safe")
_DECIDE_S = 5.0
_SERVING_MEMORY_BYTES = 60 * 1024**3


class VirtualShelf:
    """A GPU host without a driver: the policy says which GPUs do what. Implements `swingbus_sim.ports.GpuShelf`."""

    def __init__(self, gpu_count: int) -> None:
        self._limits: list[float | None] = [None] * gpu_count
        self._processes: tuple[GpuProcess, ...] = ()
        self.readings: tuple[GpuReading, ...] = ()

    def set_work(self, kind: str, load_ratio: float) -> None:
        """Give every GPU one process of `kind`."""
        self._processes = tuple(
            GpuProcess(pid=1000 + i, gpu=i, kind=kind, load_ratio=load_ratio, memory_used_bytes=_SERVING_MEMORY_BYTES)
            for i in range(len(self._limits))
        )

    def request_limit(self, gpu: int, limit_w: float | None) -> None:
        """Ask for a power limit, as the host's tools would."""
        self._limits[gpu] = limit_w

    def requested_limits_w(self) -> tuple[float | None, ...]:
        """Return what was asked since the last reboot."""
        return tuple(self._limits)

    def processes(self) -> tuple[GpuProcess, ...]:
        """Return the work given by `set_work`."""
        return self._processes

    def publish(self, readings: Sequence[GpuReading]) -> None:
        """Keep the newest readings."""
        self.readings = tuple(readings)

    def clear_requests(self) -> None:
        """Forget limits."""
        self._limits = [None] * len(self._limits)


def run_baseline(scenario: Scenario, policy: str) -> dict[str, Any]:
    """Run one policy over the whole scenario and return its money and W·s over the limits.

    Raises:
        NotFound: no such policy.
    """
    if policy not in POLICIES:
        raise NotFound(f"no policy {policy!r}; there are {', '.join(POLICIES)}")
    shelves = {h.name: VirtualShelf(h.gpu_count) for h in scenario.hosts}
    world = World(scenario, shelves)
    court = Court(json.loads(truth_log.header_line(world, t0_boottime_s=0.0)))
    purse = Purse(scenario.market)
    mining = _miners_switched_on(world, policy)
    for name, asic in world.asics.items():
        if name in mining:
            asic.wake(0.0)
        else:
            asic.sleep(0.0)
    steps = round(scenario.duration_s / STEP_S)
    for step in range(1, steps + 1):
        now_s = step * STEP_S
        if step % round(_DECIDE_S / STEP_S) == 1:
            _assign_gpus(scenario, shelves, policy, demand_gpus=scenario.series["demand_gpus"].value(now_s))
        tick = world.step(now_s, STEP_S)
        for entry in world.faults.take_new():
            court.hear(json.loads(truth_log.ledger_line(entry)))
        court.hear(json.loads(truth_log.tick_line(tick)))
        purse.add(tick, STEP_S)
    court.hear(json.loads(truth_log.end_line(world.now_s)))
    verdict = court.verdict()
    return {
        "policy": policy,
        **purse.as_json(),
        "asics_switched_on": len(mining),
        "over_cap_ws": round(sum(verdict["over_cap_ws"].values()), 1),
        "over_cap_ws_by_cause": verdict["over_cap_ws"],
        "max_over_limit_ratio": round(
            max(verdict["nodes"][n.name]["max_w"] / n.limit_w for n in scenario.nodes if n.limit_w is not None), 4
        ),
        "curtailment_seconds_to_comply": verdict["curtailment_seconds_to_comply"],
        "verdict": verdict["verdict"],
        "limit_used_ratio": verdict["limit_used_ratio"],
    }


def run_baselines(scenario: Scenario, policies: Sequence[str] = POLICIES) -> dict[str, dict[str, Any]]:
    """Run several policies, by name."""
    return {policy: run_baseline(scenario, policy) for policy in policies}


def print_baselines(scenario: Scenario, policy: str, *, out: Path | None) -> None:
    """Run `policy` (or "all") and print one JSON object."""
    result = run_baselines(scenario, POLICIES if policy == "all" else (policy,))
    text = json.dumps(result, indent=1)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    print(text)


def _assign_gpus(scenario: Scenario, shelves: dict[str, VirtualShelf], policy: str, *, demand_gpus: float) -> None:
    """Give whole hosts to inference until the demand is met (always-on: all of them); the rest mine."""
    capacity = sum(h.gpu_count for h in scenario.hosts)
    serving = capacity if policy == "always-on" else _whole_units(scenario.hosts, demand_gpus)
    load = min(1.0, demand_gpus / serving) if serving else 0.0
    left = serving
    for host in scenario.hosts:
        if left >= host.gpu_count:
            shelves[host.name].set_work("inference", load)
            left -= host.gpu_count
        else:
            shelves[host.name].set_work("mining", 1.0)


def _whole_units(hosts: Sequence[GpuServer], demand_gpus: float) -> int:
    if not hosts:
        return 0
    size = hosts[0].gpu_count
    return min(len(hosts), math.ceil(demand_gpus / size)) * size


def _miners_switched_on(world: World, policy: str) -> frozenset[str]:
    if policy != "static-safe":
        return frozenset(world.asics)
    scenario = world.scenario
    root = scenario.nodes[0].name
    own_limit_w = scenario.nodes[0].limit_w
    limits = [own_limit_w] if own_limit_w is not None else []
    limits += [e.limit_w for e in scenario.events if e.kind == "limit" and root in e.targets and e.limit_w is not None]
    if not limits:
        return frozenset(world.asics)
    gain = {n.name: math.prod(1.0 + p.loss_ratio for p in scenario.path(n.name)) for n in scenario.nodes}
    room_w = min(limits) - sum(load.max_w * gain[load.node] for load in scenario.loads)
    room_w -= sum(c.nameplate_w * gain[c.node] for c in scenario.cooling)
    for host in scenario.hosts:
        c = host.gpu_class
        room_w -= c.host_w(c.default_limit_w * GPU_CEILING_RATIO * host.gpu_count) * gain[host.node]
    room_w -= sum(m.count * m.asic_class.sleep_w * gain[m.node] for m in scenario.miners)
    chosen: list[str] = []
    ranked = sorted(
        ((a.efficiency_j_per_th, a, gain[m.node]) for m in scenario.miners for a in world.groups[m.name]),
        key=lambda row: row[0],
    )
    for _, asic, factor in ranked:
        needed_w = asic.asic_class.default.power_w * ASIC_CEILING_RATIO * factor
        if needed_w > room_w:
            break
        room_w -= needed_w
        chosen.append(asic.name)
    return frozenset(chosen)
