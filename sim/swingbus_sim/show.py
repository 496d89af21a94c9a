"""Prints scenarios for people: sizing, machines, meters, timeline. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from swingbus_sim.scenario import EVENT_KINDS, Scenario
from swingbus_sim.scenario_file import load_scenario, scenario_names

# The defaults of a site before commissioning: what a device counts at after a reboot, against its nameplate.
ASIC_CEILING_RATIO = 1.10
GPU_CEILING_RATIO = 1.07


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """A site's size against its root's limit; all watts at the root, losses included."""

    limit_w: float
    demand_w: float
    ceiling_w: float
    uncontrolled_max_w: float
    overload_ratio: float

    @property
    def demand_ratio(self) -> float:
        """Return what all machines want at once over the limit."""
        return self.demand_w / self.limit_w

    @property
    def blip_holds(self) -> bool:
        """Tell whether I3 holds: everything awake at its ceiling, plus U, within what the limit bears."""
        return self.ceiling_w + self.uncontrolled_max_w <= self.overload_ratio * self.limit_w


def sizing(scenario: Scenario) -> Sizing:
    """Add up demand and ceilings at the root.

    Raises:
        ValueError: the root has no limit.
    """
    root = scenario.nodes[0]
    if root.limit_w is None:
        raise ValueError(f"node {root.name} has no limit")
    gain = {n.name: 1.0 for n in scenario.nodes}
    for node in scenario.nodes:
        gain[node.name] = (gain[node.parent] if node.parent is not None else 1.0) * (1.0 + node.loss_ratio)
    demand_w = ceiling_w = 0.0
    for group in scenario.miners:
        full_w = group.asic_class.default.power_w
        demand_w += group.count * full_w * gain[group.node]
        ceiling_w += group.count * max(group.asic_class.boot_w, full_w * ASIC_CEILING_RATIO) * gain[group.node]
    for host in scenario.hosts:
        c = host.gpu_class
        demand_w += c.host_w(c.inference_full_w * host.gpu_count) * gain[host.node]
        ceiling_w += c.host_w(c.default_limit_w * GPU_CEILING_RATIO * host.gpu_count) * gain[host.node]
    for cooling in scenario.cooling:
        inside = {n.name for n in scenario.nodes if cooling.node in {p.name for p in scenario.path(n.name)}}
        heat_w = sum(m.count * m.asic_class.default.power_w for m in scenario.miners if m.node in inside)
        heat_w += sum(
            h.gpu_class.host_w(h.gpu_class.inference_full_w * h.gpu_count) for h in scenario.hosts if h.node in inside
        )
        demand_w += min(cooling.nameplate_w, cooling.base_w + cooling.ratio * heat_w) * gain[cooling.node]
        ceiling_w += cooling.nameplate_w * gain[cooling.node]
    demand_w += sum(load.base_w * gain[load.node] for load in scenario.loads)
    return Sizing(
        limit_w=root.limit_w,
        demand_w=demand_w,
        ceiling_w=ceiling_w,
        uncontrolled_max_w=sum(load.max_w * gain[load.node] for load in scenario.loads),
        overload_ratio=root.overload_ratio,
    )


def print_list() -> None:
    """Print the scenarios that come with the simulator."""
    for name in scenario_names():
        scenario = load_scenario(name)
        print(f"{name:12} {scenario.duration_s:5.0f} s  {scenario.description}")


def print_scenario(scenario: Scenario) -> None:
    """Print one scenario."""
    size = sizing(scenario)
    print(f"{scenario.name}: {scenario.description}")
    print(
        f"seed {scenario.seed}, {scenario.duration_s:.0f} real seconds, market clock x{scenario.market.clock_factor:g}"
    )
    print(
        f"limit {size.limit_w / 1000:.1f} kW at {scenario.nodes[0].name}; full demand {size.demand_w / 1000:.1f} kW "
        f"({size.demand_ratio:.0%} of it)"
    )
    verdict = "holds" if size.blip_holds else "DOES NOT HOLD"
    print(
        f"I3 {verdict}: ceilings {size.ceiling_w / 1000:.1f} + U {size.uncontrolled_max_w / 1000:.1f} kW against "
        f"{size.overload_ratio:g} x limit = {size.overload_ratio * size.limit_w / 1000:.1f} kW"
    )
    for node in scenario.nodes:
        limit = f"{node.limit_w / 1000:.1f} kW over {node.window_s:g} s" if node.limit_w is not None else "no limit"
        print(
            f"  node {node.name:12} under {node.parent or '-':12} {limit}, T_r {node.reaction_s:g} s, T_catch {node.catch_s:g} s"
        )
    for group in scenario.miners:
        c = group.asic_class
        print(
            f"  miners {group.name}: {group.count} x {c.model} ({group.firmware}) on {group.node} from {group.first_address}, "
            f"{c.default.hashrate_ths:g} TH/s {c.default.power_w:g} W, boot {c.boot_s:g} s, wake {c.wake_s:g} s, "
            f"sleep {'lasting' if c.sleep_is_lasting else 'volatile'}"
        )
    for host in scenario.hosts:
        print(
            f"  host {host.name}: {host.gpu_count} x {host.gpu_class.model} on {host.node}, units of {host.unit_size}"
        )
    for meter in scenario.meters:
        print(
            f"  meter {meter.name:12} at {meter.node:12} {meter.address}:{meter.port}, {meter.window_s:g} s means, "
            f"lag {meter.lag_s:g} s, gain error {meter.gain_error_ratio:+.2%}, {meter.word_order} word first"
        )
    for name, series in scenario.series.items():
        print(f"  series {name}: {series.source}")
    for event in scenario.events:
        by = " (by the runner)" if event.is_runners else ""
        span = f" for {event.duration_s:g} s" if event.duration_s is not None else ""
        print(
            f"  {event.at_s:6.1f} s  {event.kind}{span} {', '.join(event.targets)}: {EVENT_KINDS[event.kind].meaning}{by}"
        )
