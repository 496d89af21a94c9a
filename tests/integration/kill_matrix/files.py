"""The site file and the agents' files of the tiny site.

Every time of the protocol and of flips is the product's default times FACTOR; counts (evidence windows, missed periods) are the
defaults. What belongs to communication keeps its default: agents report every second, a meter is dead after 15 s.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from swingbus_controller.domain.planning.policy import FlipTimes
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_sim.catalogue import ASIC_CLASSES, GPU_CLASSES
from swingbus_sim.scenario import Scenario

FACTOR = 0.1
_COMMUNICATION = ("report_period_s", "meter_dead_s")
ASIC, GPU = ASIC_CLASSES["s19k-pro-luxos"], GPU_CLASSES["h100-sxm"]
MINER_COUNT, GPU_COUNT = 10, 8
GPU_FACTOR = ASIC_FACTOR = 1.05
ASIC_REST_W = ASIC.sleep_w * 1.1  # commissioned: the hungriest of ten at rest
MINING_W, CAPPED_W = 500.0, 525.0
C1_LOSS, PDU_LOSS, GRID_LOSS = 0.004, 0.002, 0.005
GPU_LOSS = (1.0 + PDU_LOSS) / GPU.supply_efficiency_ratio - 1.0
LOAD_S, DRAIN_S = 1.5, 1.0
ASICS, GPUS = "edge/asics", "gpu/gpus"
AGENTS = ("head", "edge", "gpu")
GRID_LIMIT_W = 31_000.0
HELD = {"shelf": "sim/shelves/gpu"}


def scaled_protocol() -> dict[str, float]:
    """Return every time of the protocol, scaled; `settle_windows` and `dark_periods` are counts and stay."""
    return {
        field.name: float(str(field.default)) * FACTOR
        for field in dataclasses.fields(ProtocolSettings)
        if field.name.endswith("_s") and field.name not in _COMMUNICATION and field.default is not None
        if not field.name.endswith("w_per_s")
    }


TTL_S = scaled_protocol()["ttl_s"]
DISTURBANCE_S = scaled_protocol()["disturbance_s"]


def _table(header: str, values: Mapping[str, object]) -> str:
    # JSON's texts, numbers, flags and lists are TOML's.
    return "\n".join([header, *(f"{key} = {json.dumps(value)}" for key, value in values.items())]) + "\n"


def _feeder(name: str, limit_w: float, *, meter: str, agent: str, **more: object) -> str:
    return (
        _table("[[feeder]]", {"name": name, "theta_ratio": 1.6, "theta_s": 12.0, **more})
        + _table("[[feeder.limit]]", {"name": "contract", "limit_w": limit_w, "window_s": 1.0, "source": "rating"})
        + _table(
            "[feeder.meter]",
            {"id": meter, "agent": agent, "error_ratio": 0.003, "quantum_w": 1.0, "energy_count_j": 1.0},
        )
    )


def site_file(port: int) -> str:
    """Return the controller's file."""
    idle_w = (GPU_COUNT * GPU.min_limit_w * GPU_FACTOR * (1.0 + GPU.host_fan_ratio) + GPU.host_base_w) * (1 + GPU_LOSS)
    parts = [
        _table(
            "[controller]",
            {
                "listen": f"127.0.0.1:{port}",
                "metrics_listen": "off",
                "data_dir": "controller",
                "pki_dir": "pki",
                "period_s": 1.0,
            },
        ),
        _table("[site]", {"name": "tiny", "authority": "control"}),
        *(
            _table(f"[protocol.{name}]", {"value": value, "why": f"all times of this test are scaled by {FACTOR}"})
            for name, value in scaled_protocol().items()
        ),
        _table(
            "[protocol.meter_error_ratio]", {"value": 0.003, "why": "class 0.2S meters, declared", "commissioned": True}
        ),
        _feeder("grid", GRID_LIMIT_W, meter="site", agent="head", kind="grid", u_max_w=1000.0, u_step_w=200.0),
        _feeder("c1", 32_000.0, meter="c1", agent="edge", kind="container", parent="grid", losses_ratio=GRID_LOSS),
        _feeder("pdu1", 12_000.0, meter="pdu1", agent="gpu", kind="pdu", parent="grid", losses_ratio=GRID_LOSS),
        _table(
            "[[class]]",
            {
                "name": ASIC.name,
                "kind": "asic",
                "commissioned": True,
                "ceiling_w": ASIC.default.power_w,
                "floor_w": ASIC_REST_W,
                "boot_w": ASIC.boot_w,
                "asic_target_factor": ASIC_FACTOR,
                "losses_ratio": C1_LOSS,
                "safe_share_w": round(MINER_COUNT * ASIC_REST_W * 1.1 + 1.0),
                "settle_s": 10.0 * FACTOR,
            },
        ),
        _table(
            "[[class.point]]",
            {
                "name": ASIC.default.name,
                "mode": "mining",
                "power_w": ASIC.default.power_w,
                "hashrate_ths": ASIC.default.hashrate_ths,
            },
        ),
        _table("[[class.point]]", {"name": "standby", "mode": "standby", "power_w": 0.0, "draw_w": ASIC_REST_W}),
        _table(
            "[[class]]",
            {
                "name": GPU.name,
                "kind": "gpu",
                "commissioned": True,
                "ceiling_w": GPU.default_limit_w,
                "floor_w": GPU.min_limit_w,
                "gpu_limit_factor": GPU_FACTOR,
                "host_w": GPU.host_base_w,
                "cooling_ratio": GPU.host_fan_ratio,
                "losses_ratio": round(GPU_LOSS, 6),
                "safe_share_w": round(idle_w + 1.0),
                "settle_s": 10.0 * FACTOR,
                "unit_size": GPU_COUNT,
                "inference_class": "h100",
                "mining_class": "h100",
                "sleeps_by_software_only": False,
            },
        ),
        _table("[class.workloads]", {"mining": "miner", "inference": "llm"}),
        _table("[[class.point]]", {"name": "mine", "mode": "mining", "power_w": MINING_W, "throughput_ratio": 1.0}),
        _table(
            "[[class.point]]",
            {"name": "serve", "mode": "inference", "power_w": GPU.default_limit_w, "throughput_ratio": 1.0},
        ),
        _table(
            "[[class.point]]",
            {"name": "serve-capped", "mode": "inference", "power_w": CAPPED_W, "throughput_ratio": 0.93},
        ),
        _table(
            "[[class.point]]",
            {"name": "standby", "mode": "standby", "power_w": GPU.min_limit_w, "draw_w": GPU.idle_w},
        ),
        _table(
            "[[bank]]",
            {"agent": "edge", "bank": "asics", "feeder": "c1", "class": ASIC.name, "device_count": MINER_COUNT},
        ),
        _table(
            "[[bank]]",
            {"agent": "gpu", "bank": "gpus", "feeder": "pdu1", "class": GPU.name, "device_count": GPU_COUNT},
        ),
        # No price is ever known here, so the planner moves nothing by itself: each move of these tests is ordered.
        # Dwell is the market's patience, not a time of the protocol: without a market there is none.
        _table(
            "[policy]",
            {"version": "kill-matrix", "gpu_mining_allowed": True, "gpu_dwell_s": 0.0, "asic_dwell_s": 0.0},
        ),
        _table("[policy.times]", dataclasses.asdict(FlipTimes().scaled(FACTOR))),
    ]
    return "\n".join(parts)


def agent_file(scenario: Scenario, agent: str, run_dir: Path, *, port: int, model_port: int) -> str:
    """Return one agent's file."""
    parts = [
        f"name = {json.dumps(agent)}\nstate_dir = {json.dumps(str(run_dir / 'agents' / agent))}\nwrites = true\n",
        _table("[controller]", {"endpoint": f"127.0.0.1:{port}", "backoff_max_s": 2.0, "connect_timeout_s": 5.0}),
        _table("[sampling]", {"meter_period_s": 0.5, "gpu_period_s": 1.0, "asic_period_s": 0.5}),
        _table("[metrics]", {"port": 0}),
        _table(
            "[execution]",
            {
                # The simulated machines answer within 0.1 s; twice the scaled default, for two cores do all of this.
                "verify_s": 15.0 * FACTOR * 2,
                "tick_s": 0.1,
                "boot_s": 120.0 * FACTOR,
                "backoff_max_s": 60.0 * FACTOR,
                "quarantine_s": 60.0 * FACTOR,
                "stagger_s": 0.005,
            },
        ),
    ]
    match agent:
        case "edge":
            parts.extend(_asic_bank(scenario))
        case "gpu":
            parts.extend(_gpu_bank(run_dir, model_port))
    meter = scenario.meters[AGENTS.index(agent)]
    parts.append(
        _table(
            "[[meter]]",
            {
                "name": meter.name,
                "feeder": meter.node,
                "host": meter.address,
                "port": meter.port,
                "word_order": meter.word_order,
                "window_s": meter.window_s,
                "lag_s": meter.lag_s,
                "error_ratio": meter.declared_error_ratio,
            },
        )
    )
    return "\n".join(parts)


def _asic_bank(scenario: Scenario) -> list[str]:
    group = scenario.miners[0]
    addresses = scenario.addresses()
    return [
        _table("[[bank]]", {"name": "asics", "kind": "asic", "class": ASIC.name, "unit_size": 1, "meter": "c1"}),
        _table(
            "[[bank.point]]",
            {
                "name": ASIC.default.name,
                "mode": "mining",
                "power_w": ASIC.default.power_w,
                "hashrate_ths": ASIC.default.hashrate_ths,
            },
        ),
        _table("[[bank.point]]", {"name": "standby", "mode": "standby", "power_w": 0.0}),
        *(
            _table("[[bank.miner]]", {"name": name, "address": addresses[name], "firmware": ASIC.firmware})
            for name in group.device_names()
        ),
    ]


def _gpu_bank(run_dir: Path, model_port: int) -> list[str]:
    shelf = str(run_dir / HELD["shelf"])
    tool = [sys.executable, "-m", "swingbus_sim.workloads"]
    common = ["--shelf", shelf, "--gpus", "{gpus}", "--drain-s", str(DRAIN_S)]
    return [
        _table(
            "[[bank]]",
            {
                "name": "gpus",
                "kind": "gpu",
                "class": GPU.name,
                "unit_size": GPU_COUNT,
                "meter": "pdu1",
                "workloads": ["miner", "llm"],
            },
        ),
        _table("[[bank.point]]", {"name": "mine", "mode": "mining", "power_w": MINING_W}),
        _table(
            "[[bank.point]]",
            {"name": "serve", "mode": "inference", "power_w": GPU.default_limit_w, "throughput_ratio": 1.0},
        ),
        _table(
            "[[bank.point]]",
            {"name": "serve-capped", "mode": "inference", "power_w": CAPPED_W, "throughput_ratio": 0.93},
        ),
        _table("[[bank.point]]", {"name": "standby", "mode": "standby", "power_w": GPU.min_limit_w}),
        _table(
            "[[workload]]",
            {
                "name": "miner",
                "mode": "mining",
                "command": [*tool, "mining", *common],
                "ready_after_s": 1.0 * FACTOR,
                "stop_timeout_s": 30.0 * FACTOR,
            },
        ),
        _table(
            "[[workload]]",
            {
                "name": "llm",
                "mode": "inference",
                "command": [*tool, "inference", *common, "--port", "{port}", "--load-s", str(LOAD_S)],
                "port": model_port,
                "ready_url": "http://127.0.0.1:{port}/health/ready",
                "start_timeout_s": 300.0 * FACTOR,
                "stop_timeout_s": 30.0 * FACTOR,
            },
        ),
    ]
