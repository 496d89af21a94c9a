"""The whole site's physics in steps of 100 ms.

Decides every true watt. Refuses to know sockets, meters' registers and money. Invariant: the same scenario, seed and calls give
the same ticks; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from swingbus_sim import scenario as spec
from swingbus_sim.physics.asic import SimulatedAsic
from swingbus_sim.physics.faults import FaultLedger
from swingbus_sim.physics.gpu import GpuHost, SimulatedGpu
from swingbus_sim.physics.surroundings import CoolingPlant, UncontrolledLoad
from swingbus_sim.physics.tree import PowerTree
from swingbus_sim.physics.truth import Disobedience, Surge, Tick
from swingbus_sim.ports import AsicState, GpuHealth, GpuShelf

STEP_S = 0.1

_ASIC_LETTER = {AsicState.OFF: "O", AsicState.BOOTING: "B", AsicState.MINING: "M", AsicState.SLEEPING: "S"}


class World:
    """One site."""

    def __init__(self, scenario: spec.Scenario, shelves: Mapping[str, GpuShelf]) -> None:
        """Build the site; `shelves` holds one shelf per host of the scenario, by name."""
        self.scenario = scenario
        self.now_s = 0.0
        self.tree = PowerTree(scenario.nodes)
        self.asics: dict[str, SimulatedAsic] = {}
        self.voltage: dict[int, float] = dict.fromkeys(range(len(scenario.nodes)), 1.0)
        self.limits_w: list[float | None] = [n.limit_w for n in scenario.nodes]
        self.asics_at: list[tuple[int, tuple[SimulatedAsic, ...]]] = []
        self.groups: dict[str, tuple[SimulatedAsic, ...]] = {}
        for number, group in enumerate(scenario.miners):
            members = tuple(self._make_asic(group, number, index) for index in range(group.count))
            self.groups[group.name] = members
            self.asics_at.append((self.tree.index[group.node], members))
        self.hosts = {
            host.name: GpuHost(
                name=host.name,
                gpu_class=host.gpu_class,
                gpu_count=host.gpu_count,
                shelf=shelves[host.name],
                random=self.random_for(host.name),
                rides_through_s=host.rides_through_s,
                boot_s=host.boot_s,
            )
            for host in scenario.hosts
        }
        self._hosts_at = [(self.tree.index[h.node], self.hosts[h.name]) for h in scenario.hosts]
        self.loads = {load.name: UncontrolledLoad(load, random=self.random_for(load.name)) for load in scenario.loads}
        self._loads_at = [(self.tree.index[load.node], self.loads[load.name]) for load in scenario.loads]
        self._plants = [self._make_plant(cooling) for cooling in scenario.cooling]
        self._spikes = self.random_for("spikes")
        self._spike_until_s = -1.0
        self.device_names = (
            *self.asics,
            *(gpu.name for host in self.hosts.values() for gpu in host.gpus),
        )
        self._gpu_offset = len(self.asics)
        self._potential_w: tuple[float, ...] = (0.0,) * len(scenario.nodes)
        self._steps = 0
        self.faults = FaultLedger(self)
        self.tick = self._make_tick([0.0] * len(scenario.nodes))

    # -- one step -----------------------------------------------------------------------------------------------------

    def step(self, now_s: float, dt_s: float) -> Tick:
        """Advance by `dt_s`, ending at `now_s` (seconds since the scenario's start), and return the truth over the step."""
        self.now_s = now_s
        self.faults.advance(now_s)
        if now_s >= self._spike_until_s and self._spikes.random() < self.scenario.spikes_per_minute / 60.0 * dt_s:
            self._spike_until_s = now_s + self._spikes.uniform(0.1, 0.3)
        is_spiking = now_s < self._spike_until_s
        own_w = [0.0] * len(self.limits_w)
        for node, group in self.asics_at:
            total_w = 0.0
            for asic in group:
                asic.step(now_s, dt_s)
                total_w += asic.power_w
            own_w[node] += total_w
        for node, host in self._hosts_at:
            is_powered = self.voltage[node] > 0.5
            host.feed(now_s, is_powered=is_powered)
            host.step(now_s, dt_s, is_spiking=is_spiking, is_powered=is_powered)
            own_w[node] += host.power_w
        for node, load in self._loads_at:
            load.step(now_s, is_powered=self.voltage[node] > 0.5)
        for node, plant, inside, members, hosts in self._plants:
            heat_w = sum(own_w[i] for i in inside)
            plant.step(dt_s, heat_w, is_powered=self.voltage[node] > 0.5)
            for asic in members:
                asic.inlet_c = plant.inlet_c
            for host in hosts:
                host.inlet_c = plant.inlet_c
        for node, plant, *_ in self._plants:
            own_w[node] += plant.power_w
        for node, load in self._loads_at:
            own_w[node] += load.power_w
        if self._steps % 10 == 0:
            self._potential_w = self._sum_potential(now_s)
        self._steps += 1
        self.tick = self._make_tick(self.tree.sum(own_w))
        return self.tick

    def gpu(self, name: str) -> tuple[GpuHost, SimulatedGpu]:
        """Return a GPU and its host by device name; KeyError where there is none."""
        for host in self.hosts.values():
            for gpu in host.gpus:
                if gpu.name == name:
                    return host, gpu
        raise KeyError(name)

    # -- parts --------------------------------------------------------------------------------------------------------

    def random_for(self, name: str) -> Random:
        """Return the seeded source of chance that belongs to `name` alone."""
        return Random(f"{self.scenario.seed}/{name}")

    def _make_asic(self, group: spec.MinerGroup, number: int, index: int) -> SimulatedAsic:
        name = group.device_names()[index]
        asic = SimulatedAsic(
            name=name,
            mac=f"02:5b:{number:02x}:00:{index >> 8:02x}:{index & 255:02x}",
            serial_number=f"SB{number:02d}{index:06d}",
            asic_class=group.asic_class,
            random=self.random_for(name),
            is_mining=index < group.start_mining_count,
        )
        self.asics[name] = asic
        return asic

    def _make_plant(
        self, cooling: spec.Cooling
    ) -> tuple[int, CoolingPlant, frozenset[int], list[SimulatedAsic], list[GpuHost]]:
        inside = self.tree.below(cooling.node)
        members = [a for node, group in self.asics_at if node in inside for a in group]
        hosts = [h for node, h in self._hosts_at if node in inside]
        devices_w = sum(a.power_w for a in members) + sum(h.power_w for h in hosts)
        plant = CoolingPlant(cooling, ambient_c=self.scenario.ambient_c, devices_w=devices_w)
        return self.tree.index[cooling.node], plant, inside, members, hosts

    def _sum_potential(self, now_s: float) -> tuple[float, ...]:
        own_w = [0.0] * len(self.limits_w)
        for node, members in self.asics_at:
            own_w[node] += sum(
                # A disobedience younger than the reaction time counts as it is: nobody could have seen it yet.
                a.power_w
                if a.disobeys_since_s is not None and now_s - a.disobeys_since_s < self.scenario.nodes[node].reaction_s
                else a.potential_w
                for a in members
            )
        for node, host in self._hosts_at:
            own_w[node] += host.potential_w
        for node, plant, inside, *_ in self._plants:
            own_w[node] += plant.potential_w(sum(own_w[i] for i in inside))
        for node, load in self._loads_at:
            own_w[node] += load.power_w
        return tuple(self.tree.sum(own_w))

    def _make_tick(self, node_w: list[float]) -> Tick:
        device_w: list[float] = []
        states: list[str] = []
        disobedient: list[Disobedience] = []
        hashrate_ths = asic_w = 0.0
        for index, asic in enumerate(self.asics.values()):
            device_w.append(asic.power_w)
            states.append(_ASIC_LETTER[asic.state])
            hashrate_ths += asic.hashrate_ths
            asic_w += asic.power_w
            if asic.disobeys_since_s is not None:
                disobedient.append(Disobedience(index, asic.disobedient_w, asic.disobeys_since_s, asic.disobeys_cause))
        index = self._gpu_offset
        mining_w, inference_w, mining_gpus, capacity_gpus = asic_w, 0.0, 0.0, 0.0
        for host in self.hosts.values():
            host_mining_w, host_inference_w = host.tenant_watts()
            mining_w += host_mining_w
            inference_w += host_inference_w
            for gpu in host.gpus:
                device_w.append(gpu.power_w)
                states.append(_gpu_letter(host, gpu))
                is_working = host.is_up and gpu.health is not GpuHealth.LOST
                if gpu.kind == "mining" and is_working:
                    full_w = host.gpu_class.mining_w
                    mining_gpus += min(1.0, gpu.power_w / full_w) * gpu.load_ratio
                elif gpu.kind == "inference" and is_working:
                    capacity_gpus += host.gpu_class.throughput_ratio(gpu.enforced_w)
                if gpu.disobeys_since_s is not None:
                    disobedient.append(Disobedience(index, gpu.disobedient_w, gpu.disobeys_since_s, gpu.disobeys_cause))
                index += 1
        surges = tuple(
            Surge(load.spec.name, node, load.surge_w, load.surge_since_s)
            for node, load in self._loads_at
            if load.surge_w > 0.0
        )
        series = self.scenario.series
        return Tick(
            at_s=self.now_s,
            voltage_ratio=self.voltage[0],
            node_w=tuple(node_w),
            limit_w=tuple(self.limits_w),
            potential_w=self._potential_w,
            device_w=tuple(device_w),
            states="".join(states),
            disobedient=tuple(disobedient),
            surges=surges,
            mining_w=mining_w,
            inference_w=inference_w,
            hashrate_ths=hashrate_ths,
            gpu_mining_gpus=mining_gpus,
            inference_capacity_gpus=capacity_gpus,
            price_usd_per_mwh=series["price_usd_per_mwh"].value(self.now_s),
            demand_gpus=series["demand_gpus"].value(self.now_s),
            hashprice_usd_per_th_day=series["hashprice_usd_per_th_day"].value(self.now_s),
        )


def _gpu_letter(host: GpuHost, gpu: SimulatedGpu) -> str:
    if not host.is_up:
        return "O"
    if gpu.health is GpuHealth.LOST:
        return "L"
    if gpu.health is GpuHealth.HUNG:
        return "H"
    return {"mining": "G", "inference": "I"}.get(gpu.kind or "", "D")
