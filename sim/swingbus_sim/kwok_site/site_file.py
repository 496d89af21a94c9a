"""The site file of a simulated cluster, as an operator would write it: the grid connection, a metered feeder per group, a bank per node."""

from __future__ import annotations

from swingbus_sim.catalogue import GpuClass
from swingbus_sim.kwok_site.plan import BANK, LIMIT_FACTOR, MINE_W, REST_W, SERVE_W, SitePlan

GRID_METER = "m-grid"

_HEAD = """
[controller]
listen = "127.0.0.1:0"
metrics_listen = "off"
data_dir = "data"
pki_dir = "pki"
period_s = {report_period_s:g}
max_agents = 10000

[site]
name = "{site}"
authority = "{authority}"

[protocol.ttl_s]
value = {ttl_s:g}
why = "simulated nodes"

[protocol.report_period_s]
value = {report_period_s:g}
why = "simulated nodes"

[[feeder]]
name = "grid"
kind = "grid"

[[feeder.limit]]
name = "contract"
limit_w = {limit_w:.0f}
source = "{limit_percent:.0f} % of nameplate"

[feeder.meter]
id = "{grid_meter}"
agent = "{first}"
error_ratio = 0.003
quantum_w = 1
energy_count_j = 1
lag_s = 1

[[class]]
name = "{gpu_class}"
kind = "gpu"
commissioned = true
unit_size = 1
ceiling_w = {ceiling_w:.0f}
floor_w = {floor_w:.0f}
gpu_limit_factor = {factor}
inference_class = "{gpu_class}"
mining_class = "{gpu_class}"
host_w = {host_w:.0f}
cooling_ratio = {cooling_ratio}
losses_ratio = {losses_ratio:.9f}
safe_share_w = {safe_share_w:.0f}
settle_s = 10
sleeps_by_software_only = false

[class.workloads]
mining = "{mining_workload}"
inference = "{inference_workload}"

[[class.point]]
name = "mine"
mode = "mining"
power_w = {mine_w:.0f}
draw_w = {mining_draw_w:.0f}
throughput_ratio = 1.0

[[class.point]]
name = "serve"
mode = "inference"
power_w = {serve_w:.0f}
draw_w = {inference_draw_w:.0f}
throughput_ratio = 1.0

{lower}[[class.point]]
name = "standby"
mode = "standby"
power_w = {rest_w:.0f}
draw_w = {idle_w:.0f}

[[signal]]
signal = "power_price_usd_per_mwh"
stale_after_s = 7200
fallback = "40"

[[signal]]
signal = "gpu_mining_price_usd_per_gpu_h/{gpu_class}"
stale_after_s = 7200
fallback = "0.12"

[[signal]]
signal = "inference_price_usd_per_gpu_h/{gpu_class}"
stale_after_s = 7200
fallback = "2.35"

[policy]
gpu_mining_allowed = {is_mining_allowed}
gpu_dwell_s = {dwell_s:g}
cap_dwell_s = {dwell_s:g}
spot_first = true
max_flips_in_flight = {flips_in_flight}
"""
_LOWER = """[[class.point]]
name = "serve-low"
mode = "inference"
power_w = {serve_w:.0f}
draw_w = {inference_draw_w:.0f}
throughput_ratio = {throughput_ratio:.3f}

"""
_FEEDER = """
[[feeder]]
name = "{name}"
parent = "grid"
kind = "pdu"

[feeder.meter]
id = "m-{name}"
agent = "{name}"
error_ratio = 0.003
quantum_w = 1
energy_count_j = 1
lag_s = 1
"""
_BANK = """
[[bank]]
agent = "{node}"
bank = "{bank}"
class = "{gpu_class}"
feeder = "{feeder}"
device_count = {count}
"""
_PODS = """workloads = "kubernetes"
node = "{node}"
pool = "{pool}"
"""


def write_site(
    plan: SitePlan,
    *,
    site: str = "bench",
    authority: str = "control",
    pool: str | None = None,
    is_mining_allowed: bool = True,
    dwell_s: float = 20.0,
    ttl_s: float = 60.0,
    flips_in_flight: int = 512,
    low_serve_w: float | None = None,
    more: str = "",
) -> str:
    """Return the file's text.

    Args:
        pool: the CapacityPool whose pods are the banks' workloads; None leaves workloads to the agents.
        low_serve_w: a second, lower limit that inference may run at; None for one limit only.
        more: further tables, at the end.
    """
    gpu = plan.gpu
    parts = [
        _HEAD.format(
            site=site,
            authority=authority,
            limit_w=plan.limit_w,
            limit_percent=100.0 * plan.limit_ratio,
            grid_meter=GRID_METER,
            first=plan.nodes[0],
            gpu_class=plan.gpu_class,
            ceiling_w=gpu.default_limit_w,
            floor_w=gpu.min_limit_w,
            factor=LIMIT_FACTOR,
            host_w=gpu.host_base_w,
            cooling_ratio=gpu.host_fan_ratio,
            losses_ratio=1.0 / gpu.supply_efficiency_ratio - 1.0,
            # All at the floor: what a node falls to alone is the least that it can be held to.
            safe_share_w=plan.node_counted_w(gpu.min_limit_w),
            mining_workload=plan.mining_workload,
            inference_workload=plan.inference_workload,
            mine_w=MINE_W,
            mining_draw_w=gpu.mining_w,
            serve_w=SERVE_W,
            inference_draw_w=gpu.inference_full_w,
            lower="" if low_serve_w is None else _lower(gpu, low_serve_w),
            rest_w=REST_W,
            idle_w=gpu.idle_w,
            is_mining_allowed=str(is_mining_allowed).lower(),
            dwell_s=dwell_s,
            ttl_s=ttl_s,
            report_period_s=plan.report_period_s,
            flips_in_flight=flips_in_flight,
        )
    ]
    parts += [_FEEDER.format(name=name) for name in plan.nodes[:: plan.nodes_per_meter]]
    for node in plan.nodes:
        parts.append(
            _BANK.format(
                node=node,
                bank=BANK,
                gpu_class=plan.gpu_class,
                feeder=plan.feeder_of(node),
                count=plan.gpus_per_node,
            )
        )
        if pool is not None:
            parts.append(_PODS.format(node=node, pool=pool))
    return "".join([*parts, more])


def _lower(gpu: GpuClass, limit_w: float) -> str:
    draw_w = min(limit_w, gpu.inference_full_w)
    return _LOWER.format(serve_w=limit_w, inference_draw_w=draw_w, throughput_ratio=gpu.throughput_ratio(limit_w))
