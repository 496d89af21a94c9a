"""The configuration files that the owner of the scenario's site would have written: the site file and one file an agent.

Counting factors are those that commissioning of these simulated machines would find; each protocol setting that differs from its
default is written with its reason. Nothing here is read by the simulator or the judge.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from swingbus_sim.catalogue import AsicClass, GpuClass
from swingbus_sim.scenario import GpuServer, MeterSpec, MinerGroup, Node, Scenario

HEAD_AGENT = "head"
MINING_LIMIT_W = 500.0
CAPPED_LIMIT_W = 525.0
ASIC_FACTOR = 1.05
GPU_FACTOR = 1.05
REST_FACTOR = 1.05
INFERENCE_CLASS = "h100"
# Commissioned: the slowest write that these two firmwares were ever seen to carry out took 6 s; two meter windows on top.
QUARANTINE_S = 12.0
# Commissioned at this site: what differs from the product's defaults, and why.
PROTOCOL: Mapping[str, tuple[float, str, bool]] = {
    "ttl_s": (20.0, "the demo is six minutes long", False),
    "disturbance_s": (15.0, "the demo is six minutes long", False),
    "meter_error_ratio": (0.003, "class 0.2S meters, declared 0.3 %", True),
    "meter_dead_s": (6.0, "meters answer every second", True),
    "shed_deadline_s": (20.0, "both firmwares shed within 5 s", True),
}
# How long a flip may stay in each phase; as short as the demo is.
FLIP_TIMES: Mapping[str, float] = {
    "planned_s": 60.0,
    "draining_s": 10.0,
    "released_s": 20.0,
    "settling_s": 60.0,
    "starting_s": 30.0,
    "verifying_s": 60.0,
}


def longest_flip_s() -> float:
    """Return how long a flip can be open: each phase until its deadline, and all the way back.

    A way back plans and drains nothing; their time is left for a pool whose pods may refuse to go for longer than a process may drain.
    """
    return 2.0 * sum(FLIP_TIMES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the controller and each agent's link to it listen on loopback."""

    controller: int
    metrics: int
    links: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodHost:
    """A GPU host that is a node of a cluster.

    Attributes:
        node: its name there; socket: kubelet's PodResources, as the agent reaches it.
    """

    node: str
    socket: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class InCluster:
    """Which hosts are nodes, and how the controller reaches the cluster.

    Attributes:
        hosts: by the scenario's name of the host.
        kubeconfig: the controller's own rights; None where it is a pod, which has its service account's.
    """

    hosts: Mapping[str, PodHost]
    kubeconfig: Path | None
    pool: str
    miner_namespace: str


NO_CLUSTER = InCluster(hosts={}, kubeconfig=None, pool="", miner_namespace="")
PODS_CLASS = "h100-pods"


def agents_of(scenario: Scenario) -> tuple[str, ...]:
    """Return every agent of the site: edge boxes, GPU hosts, and the one that reads the head meter."""
    agents = (HEAD_AGENT, *(g.agent for g in scenario.miners), *(h.agent for h in scenario.hosts))
    return tuple(dict.fromkeys(agents))


def bank_of(scenario: Scenario, group: MinerGroup) -> str:
    """Return the bank's name: `asics`, or the group's own where one agent has several."""
    return group.name if sum(g.agent == group.agent for g in scenario.miners) > 1 else "asics"


def _class_of(scenario: Scenario, group: MinerGroup) -> str:
    """Return the class's name; groups of one model in different places are counted differently (cooling, losses)."""
    model = group.asic_class.name
    is_shared = sum(g.asic_class.name == model for g in scenario.miners) > 1
    return f"{model}-{group.name}" if is_shared else model


def _cooling_w(scenario: Scenario, group: MinerGroup) -> float:
    """Return the group's share, by machines, of its container's cooling at nameplate."""
    nameplate_w = sum(c.nameplate_w for c in scenario.cooling if c.node == group.node)
    inside_count = sum(g.count for g in scenario.miners if g.node == group.node)
    return round(nameplate_w * group.count / inside_count, 1)


def _value(value: object) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's.
    return json.dumps(value)


def _table(header: str, values: Mapping[str, object]) -> str:
    lines = [header, *(f"{key} = {_value(value)}" for key, value in values.items() if value is not None)]
    return "\n".join(lines) + "\n"


def _meter_of(scenario: Scenario, node: str) -> MeterSpec | None:
    return next((m for m in scenario.meters if m.node == node), None)


def _reader(scenario: Scenario, node: str) -> str:
    group = next((g for g in scenario.miners if g.node == node), None)
    host = next((h for h in scenario.hosts if h.node == node), None)
    return group.agent if group is not None else host.agent if host is not None else HEAD_AGENT


def _feeder(scenario: Scenario, node: Node, *, kind: str) -> list[str]:
    parent = None if node.parent is None else scenario.node(node.parent)
    loads = [load for load in scenario.loads if load.node == node.name]
    # Cooling of a container without a meter of its own group counts as load that nobody asks us about.
    plants = [c for c in scenario.cooling if c.node == node.name and not any(g.node == c.node for g in scenario.miners)]
    rows: dict[str, object] = {
        "name": node.name,
        "parent": node.parent,
        "kind": kind,
        "losses_ratio": 0.0 if parent is None else parent.loss_ratio,
        "theta_ratio": node.overload_ratio,
        "theta_s": node.catch_s,
        "u_max_w": sum(load.max_w for load in loads) + sum(c.nameplate_w for c in plants),
        "u_step_w": max([load.step_w for load in loads], default=0.0),
    }
    parts = [_table("[[feeder]]", rows)]
    if node.limit_w is not None:
        limit = {
            "name": "contract",
            "limit_w": node.limit_w,
            "window_s": node.window_s,
            "source": f"rating of {node.name}",
        }
        parts.append(_table("[[feeder.limit]]", limit))
    meter = _meter_of(scenario, node.name)
    if meter is not None:
        spec = {
            "id": meter.name,
            "agent": _reader(scenario, node.name),
            "error_ratio": meter.declared_error_ratio,
            "quantum_w": 1.0,
            "energy_count_j": 1.0,
        }
        parts.append(_table("[feeder.meter]", spec))
    return parts


def _kind(scenario: Scenario, node: Node) -> str:
    if node.parent is None:
        return "grid"
    if any(h.node == node.name for h in scenario.hosts):
        return "pdu"
    return (
        "transformer"
        if any(n.parent == node.name and n.parent != node.name for n in scenario.nodes)
        and not any(c.node == node.name for c in scenario.cooling)
        else "container"
    )


def _asic_class(scenario: Scenario, group: MinerGroup) -> list[str]:
    asic: AsicClass = group.asic_class
    cooling_w = _cooling_w(scenario, group)
    rows: dict[str, object] = {
        "name": _class_of(scenario, group),
        "kind": "asic",
        "commissioned": True,
        "ceiling_w": asic.default.power_w,
        # Commissioned: what a sleeping machine says it draws wanders by a few per cent.
        "floor_w": round(asic.sleep_w * REST_FACTOR, 2),
        "boot_w": asic.boot_w,
        "asic_target_factor": ASIC_FACTOR,
        "cooling_w": cooling_w,
        "losses_ratio": scenario.node(group.node).loss_ratio,
        "safe_share_w": round(group.count * asic.sleep_w * 1.1 + cooling_w + 1.0),
        "settle_s": 10.0,
    }
    mining = {
        "name": asic.default.name,
        "mode": "mining",
        "power_w": asic.default.power_w,
        "draw_w": asic.default.power_w,
        "hashrate_ths": asic.default.hashrate_ths,
    }
    rest = {"name": "standby", "mode": "standby", "power_w": 0.0, "draw_w": asic.sleep_w}
    return [_table("[[class]]", rows), _table("[[class.point]]", mining), _table("[[class.point]]", rest)]


def _class_name(host: GpuServer, cluster: InCluster) -> str:
    return f"{host.gpu_class.name}-pods" if host.name in cluster.hosts else host.gpu_class.name


def _gpu_class(scenario: Scenario, host: GpuServer, cluster: InCluster) -> list[str]:
    is_in_cluster = host.name in cluster.hosts
    inference_class = PODS_CLASS if is_in_cluster else INFERENCE_CLASS
    gpu: GpuClass = host.gpu_class
    loss = (1.0 + scenario.node(host.node).loss_ratio) / gpu.supply_efficiency_ratio - 1.0
    idle_w = (host.gpu_count * gpu.min_limit_w * GPU_FACTOR * (1.0 + gpu.host_fan_ratio) + gpu.host_base_w) * (
        1.0 + loss
    )
    rows: dict[str, object] = {
        "name": _class_name(host, cluster),
        "kind": "gpu",
        "commissioned": True,
        "ceiling_w": gpu.default_limit_w,
        "floor_w": gpu.min_limit_w,
        "gpu_limit_factor": GPU_FACTOR,
        "host_w": gpu.host_base_w,
        "cooling_ratio": gpu.host_fan_ratio,
        "losses_ratio": round(loss, 6),
        "safe_share_w": round(idle_w + 1.0),
        "settle_s": 10.0,
        # Pods ask for GPUs one by one.
        "unit_size": 1 if is_in_cluster else host.unit_size,
        "inference_class": inference_class,
        "mining_class": INFERENCE_CLASS,
        "sleeps_by_software_only": False,
    }
    points: list[dict[str, object]] = [
        {"name": "mine", "mode": "mining", "power_w": MINING_LIMIT_W, "draw_w": gpu.mining_w, "throughput_ratio": 1.0},
        {
            "name": "serve",
            "mode": "inference",
            "power_w": gpu.default_limit_w,
            "draw_w": gpu.inference_full_w,
            "throughput_ratio": 1.0,
        },
        {
            "name": "serve-capped",
            "mode": "inference",
            "power_w": CAPPED_LIMIT_W,
            "draw_w": CAPPED_LIMIT_W * 0.98,
            "throughput_ratio": round(gpu.throughput_ratio(CAPPED_LIMIT_W), 4),
        },
        {"name": "standby", "mode": "standby", "power_w": gpu.min_limit_w, "draw_w": gpu.idle_w},
    ]
    workloads = {"mining": "miner", "inference": "llm"}
    return [
        _table("[[class]]", rows),
        _table("[class.workloads]", workloads),
        *(_table("[[class.point]]", point) for point in points),
    ]


def site_file(
    scenario: Scenario, ports: Ports, *, start_time: str, end_time: str, cluster: InCluster = NO_CLUSTER
) -> str:
    """Return the controller's file. `start_time` and `end_time`: the firm reservation's term, RFC 3339."""
    parts = [
        _table(
            "[controller]",
            {
                "listen": f"127.0.0.1:{ports.controller}",
                "metrics_listen": f"127.0.0.1:{ports.metrics}",
                "data_dir": "controller",
                "pki_dir": "pki",
                "period_s": 1.0,
            },
        ),
        _table("[site]", {"name": scenario.site, "authority": "control", "price_zone": "demo"}),
    ]
    if cluster.hosts:
        kubeconfig = None if cluster.kubeconfig is None else str(cluster.kubeconfig)
        parts.append(_table("[kubernetes]", {"kubeconfig": kubeconfig}))
    for name, (value, why, commissioned) in PROTOCOL.items():
        parts.append(_table(f"[protocol.{name}]", {"value": value, "why": why, "commissioned": commissioned}))
    for node in scenario.nodes:
        parts.extend(_feeder(scenario, node, kind=_kind(scenario, node)))
    for group in scenario.miners:
        parts.extend(_asic_class(scenario, group))
    for host in _first_of_class(scenario.hosts, cluster):
        parts.extend(_gpu_class(scenario, host, cluster))
    for group in scenario.miners:
        rows = {
            "agent": group.agent,
            "bank": bank_of(scenario, group),
            "feeder": group.node,
            "class": _class_of(scenario, group),
        }
        parts.append(_table("[[bank]]", {**rows, "device_count": group.count}))
    for host in scenario.hosts:
        rows = {"agent": host.agent, "bank": "gpus", "feeder": host.node, "class": _class_name(host, cluster)}
        if found := cluster.hosts.get(host.name):
            rows |= {"workloads": "kubernetes", "node": found.node, "pool": cluster.pool}
        parts.append(_table("[[bank]]", {**rows, "device_count": host.gpu_count}))
    if any(host.name not in cluster.hosts for host in scenario.hosts):
        parts.append(
            _table(
                "[[reservation]]",
                {
                    "name": "acme",
                    "inference_class": INFERENCE_CLASS,
                    "gpu_count": scenario.hosts[0].unit_size,
                    "price_usd_per_gpu_h": "3.10",
                    "uptime_ratio": 0.99,
                    "credit_steps": ["0.99:0.10", "0.95:0.30"],
                },
            )
            + f"start_time = {start_time}\nend_time = {end_time}\n"
        )
    signals = signals_of(scenario, 0.0, cluster)
    parts.extend(_table("[[signal]]", {"signal": name, "stale_after_s": 60.0}) for name in signals)
    policy: dict[str, object] = {
        "version": "demo",
        "gpu_mining_allowed": True,
        "asic_dwell_s": 10.0,
        "gpu_dwell_s": 10.0,
        "cap_dwell_s": 10.0,
        "power_price_variance": 4.0,
        # Demand here comes in blocks and is known: with the default of 0.01 idle GPUs would wait for it instead of mining.
        "inference_margin_variance": 0.001,
        "pool_fee_ratio": scenario.market.pool_fee_ratio,
    }
    parts.append(_table("[policy]", policy))
    parts.append(_table("[policy.times]", FLIP_TIMES))
    return "\n".join(parts)


def signals_of(scenario: Scenario, at_s: float, cluster: InCluster = NO_CLUSTER) -> dict[str, float]:
    """Return the market's signals at a scenario second, by the name that the market API takes; pods are their own demand."""
    market = scenario.market
    in_pods = (
        {f"inference_price_usd_per_gpu_h/{PODS_CLASS}": market.inference_usd_per_gpu_hour} if cluster.hosts else {}
    )
    return {
        **in_pods,
        "power_price_usd_per_mwh": scenario.series["price_usd_per_mwh"].value(at_s),
        "hashprice_usd_per_th_day": scenario.series["hashprice_usd_per_th_day"].value(at_s),
        f"inference_price_usd_per_gpu_h/{INFERENCE_CLASS}": market.inference_usd_per_gpu_hour,
        f"inference_demand_gpu_count/{INFERENCE_CLASS}": scenario.series["demand_gpus"].value(at_s),
        f"gpu_mining_price_usd_per_gpu_h/{INFERENCE_CLASS}": market.gpu_mining_usd_per_gpu_hour,
    }


def _first_of_class(hosts: Iterable[GpuServer], cluster: InCluster) -> list[GpuServer]:
    seen: dict[str, GpuServer] = {}
    for host in hosts:
        seen.setdefault(_class_name(host, cluster), host)
    return list(seen.values())


def agent_file(
    scenario: Scenario, agent: str, folder: Path, ports: Ports, *, run_dir: Path, cluster: InCluster = NO_CLUSTER
) -> str:
    """Return one agent's file; `folder` holds its state."""
    period_s = 1.0
    parts = [
        f"name = {_value(agent)}\nstate_dir = {_value(str(folder))}\nwrites = true\n",
        _table(
            "[controller]",
            {"endpoint": f"127.0.0.1:{ports.links[agent]}", "backoff_max_s": 2.0, "connect_timeout_s": 5.0},
        ),
        _table(
            "[sampling]",
            {"meter_period_s": 0.5, "gpu_period_s": 1.0, "asic_period_s": period_s, "asic_concurrency": 64},
        ),
        _table("[metrics]", {"port": 0}),
        _table(
            "[execution]",
            {
                "tick_s": 0.25,
                "batch": 32,
                "stagger_s": 0.02,
                "verify_s": 4.0,
                "boot_s": 60.0,
                "attempts": 3,
                "backoff_max_s": 10.0,
                "quarantine_s": QUARANTINE_S,
            },
        ),
    ]
    for group in (g for g in scenario.miners if g.agent == agent):
        parts.extend(_asic_bank(scenario, group, folder))
    for host in (h for h in scenario.hosts if h.agent == agent):
        parts.extend(
            _pod_bank(scenario, host, cluster) if host.name in cluster.hosts else _gpu_bank(scenario, host, run_dir)
        )
    for meter in scenario.meters:
        if _reader(scenario, meter.node) == agent:
            rows = {
                "name": meter.name,
                "feeder": meter.node,
                "host": meter.address,
                "port": meter.port,
                "word_order": meter.word_order,
                "window_s": meter.window_s,
                "lag_s": meter.lag_s,
                "error_ratio": meter.declared_error_ratio,
                "timeout_s": 2.0,
            }
            parts.append(_table("[[meter]]", rows))
    return "\n".join(parts)


def _asic_bank(scenario: Scenario, group: MinerGroup, folder: Path) -> list[str]:
    asic = group.asic_class
    meter = _meter_of(scenario, group.node)
    bank = {
        "name": bank_of(scenario, group),
        "kind": "asic",
        "class": _class_of(scenario, group),
        "unit_size": 1,
        "meter": None if meter is None else meter.name,
    }
    mining = {
        "name": asic.default.name,
        "mode": "mining",
        "power_w": asic.default.power_w,
        "hashrate_ths": asic.default.hashrate_ths,
    }
    parts = [
        _table("[[bank]]", bank),
        _table("[[bank.point]]", mining),
        _table("[[bank.point]]", {"name": "standby", "mode": "standby", "power_w": 0.0}),
    ]
    password_file = None
    if group.password is not None:
        password_file = folder / f"{group.name}-password"
        password_file.write_text(group.password)
        password_file.chmod(0o600)
    addresses = scenario.addresses()
    for name in group.device_names():
        rows = {
            "name": name,
            "address": addresses[name],
            "firmware": asic.firmware,
            "password_file": None if password_file is None else str(password_file),
        }
        parts.append(_table("[[bank.miner]]", rows))
    return parts


def broken_model(run_dir: Path) -> Path:
    """Return the file that makes one host's model fail its probe while it exists."""
    return run_dir / "model-is-broken"


def _points_of(host: GpuServer) -> list[str]:
    gpu = host.gpu_class
    points = [
        {"name": "mine", "mode": "mining", "power_w": MINING_LIMIT_W},
        {"name": "serve", "mode": "inference", "power_w": gpu.default_limit_w, "throughput_ratio": 1.0},
        {
            "name": "serve-capped",
            "mode": "inference",
            "power_w": CAPPED_LIMIT_W,
            "throughput_ratio": round(gpu.throughput_ratio(CAPPED_LIMIT_W), 4),
        },
        {"name": "standby", "mode": "standby", "power_w": gpu.min_limit_w},
    ]
    return [_table("[[bank.point]]", point) for point in points]


def _pod_bank(scenario: Scenario, host: GpuServer, cluster: InCluster) -> list[str]:
    meter = _meter_of(scenario, host.node)
    pods = {
        "socket": str(cluster.hosts[host.name].socket),
        "miner_namespace": cluster.miner_namespace,
        "mining_workload": "miner",
        "inference_workload": "llm",
    }
    bank = {
        "name": "gpus",
        "kind": "gpu",
        "class": _class_name(host, cluster),
        "unit_size": 1,
        "meter": None if meter is None else meter.name,
        "runs": "pods",
    }
    return [_table("[pods]", pods), _table("[[bank]]", bank), *_points_of(host)]


def _gpu_bank(scenario: Scenario, host: GpuServer, run_dir: Path) -> list[str]:
    gpu = host.gpu_class
    meter = _meter_of(scenario, host.node)
    bank = {
        "name": "gpus",
        "kind": "gpu",
        "class": gpu.name,
        "unit_size": host.unit_size,
        "meter": None if meter is None else meter.name,
        "workloads": ["miner", "llm"],
    }
    shelf = str(run_dir / "sim" / "shelves" / host.name)
    tool = [sys.executable, "-m", "swingbus_sim.workloads"]
    llm = [*tool, "inference", "--shelf", shelf, "--gpus", "{gpus}", "--port", "{port}", "--load-s", "4"]
    if host is _host_with_broken_model(scenario):
        # The operator's own file may use a shell; the controller only ever knows the name.
        words = " ".join(word if word.startswith("{") else shlex.quote(word) for word in llm)
        flag = shlex.quote(str(broken_model(run_dir)))
        llm = ["/bin/sh", "-c", f"if [ -e {flag} ]; then exec {words} --fail-ready; else exec {words}; fi"]
    # One base port a host: the hosts share this machine's loopback.
    base_port = 21000 + 16 * scenario.hosts.index(host)
    workloads: list[dict[str, object]] = [
        {
            "name": "miner",
            "mode": "mining",
            "command": [*tool, "mining", "--shelf", shelf, "--gpus", "{gpus}"],
            "ready_after_s": 1.0,
            "stop_timeout_s": 5.0,
        },
        {
            "name": "llm",
            "mode": "inference",
            "command": llm,
            "port": base_port,
            "ready_url": "http://127.0.0.1:{port}/health/ready",
            "start_timeout_s": 20.0,
            "stop_timeout_s": 5.0,
        },
    ]
    return [
        _table("[[bank]]", bank),
        *_points_of(host),
        *(_table("[[workload]]", workload) for workload in workloads),
    ]


def _host_with_broken_model(scenario: Scenario) -> GpuServer | None:
    return scenario.hosts[-3] if len(scenario.hosts) >= 3 else None
