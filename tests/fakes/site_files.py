"""Site files of the site in virtual time: a contract, ASIC containers, GPU hosts, and what a test changes of them."""

from __future__ import annotations

import tomllib

from swingbus_controller.domain.site.sitefile import SiteFile
from swingbus_controller.domain.site.sitefile_parser import parse_site
from swingbus_controller.domain.site.strict_table import Faults, StrictTable

SITE = """
[site]
name = "north"
authority = "{authority}"

[protocol]
ttl_s = {{value = 20.0, why = "tests"}}
disturbance_s = {{value = 15.0, why = "tests"}}
meter_error_ratio = {{value = 0.003, why = "tests", commissioned = true}}
meter_dead_s = {{value = 6.0, why = "tests"}}
shed_deadline_s = {{value = 20.0, why = "tests"}}
{protocol}
[[feeder]]
name = "grid"
kind = "grid"
u_max_w = 2000.0
[[feeder.limit]]
name = "contract"
limit_w = {limit_w}
window_s = 1.0
source = "contract"
[feeder.meter]
id = "m-grid"
agent = "head"
error_ratio = 0.003
energy_count_j = 1.0

{feeders}
[[class]]
name = "s19"
kind = "asic"
commissioned = true
ceiling_w = 3250.0
floor_w = 15.0
boot_w = 2000.0
asic_target_factor = 1.05
losses_ratio = 0.01
cooling_w = 400.0
safe_share_w = 1500.0
settle_s = 10.0
point = [
  {{name = "mine", mode = "mining", power_w = 3250.0, hashrate_ths = 95.0}},
  {{name = "standby", mode = "standby", power_w = 0.0, draw_w = 15.0}},
]

[[class]]
name = "s21"
kind = "asic"
commissioned = true
ceiling_w = 3500.0
floor_w = 15.0
boot_w = 2000.0
asic_target_factor = 1.05
losses_ratio = 0.01
cooling_w = 400.0
safe_share_w = 1500.0
settle_s = 10.0
point = [
  {{name = "mine", mode = "mining", power_w = 3500.0, hashrate_ths = 200.0}},
  {{name = "standby", mode = "standby", power_w = 0.0, draw_w = 15.0}},
]

[[class]]
name = "h100"
kind = "gpu"
commissioned = true
ceiling_w = 700.0
floor_w = 200.0
gpu_limit_factor = 1.03
host_w = 1200.0
cooling_ratio = 0.05
losses_ratio = 0.01
safe_share_w = 5200.0
settle_s = 10.0
unit_size = 8
inference_class = "h100"
mining_class = "h100"
sleeps_by_software_only = false
point = [
  {{name = "mine", mode = "mining", power_w = 500.0, draw_w = 480.0, throughput_ratio = 1.0}},
  {{name = "serve", mode = "inference", power_w = 700.0, draw_w = 620.0, throughput_ratio = 1.0}},
  {{name = "serve-capped", mode = "inference", power_w = 525.0, draw_w = 515.0, throughput_ratio = 0.9}},
  {{name = "standby", mode = "standby", power_w = 200.0, draw_w = 80.0}},
]
[class.workloads]
mining = "miner"
inference = "llm"

{banks}
{reservation}
[policy]
gpu_mining_allowed = true
asic_dwell_s = 10.0
gpu_dwell_s = 10.0
cap_dwell_s = 10.0
power_price_variance = 4.0
inference_margin_variance = 0.001
[policy.times]
planned_s = 60.0
draining_s = 10.0
released_s = 20.0
settling_s = 60.0
starting_s = 30.0
verifying_s = 60.0
"""
FEEDER = """[[feeder]]
name = "{name}"
parent = "grid"
kind = "{kind}"
losses_ratio = {losses_ratio}
[feeder.meter]
id = "m-{name}"
agent = "{agent}"
error_ratio = 0.003
energy_count_j = 1.0
"""
BANK = """[[bank]]
agent = "{agent}"
bank = "{bank}"
feeder = "{feeder}"
class = "{klass}"
device_count = {count}
"""
RESERVATION = """[[reservation]]
name = "acme"
inference_class = "h100"
gpu_count = 8
price_usd_per_gpu_h = "3.10"
start_time = 2026-01-01T00:00:00Z
end_time = 2030-01-01T00:00:00Z
"""


def make_site(
    *,
    limit_w: float = 145_000.0,
    authority: str = "control",
    asics: int = 20,
    gpus: int = 16,
    is_reserved: bool = False,
    protocol: str = "",
    meter_readers: dict[str, str] | None = None,
) -> SiteFile:
    """Parse a site of two ASIC containers (the worse one first) and two GPU hosts with units of 8."""
    readers = {"c1": "edge1", "c2": "edge2", "g1": "gpu1", "g2": "gpu2", **(meter_readers or {})}
    kinds = {"c1": "container", "c2": "container", "g1": "pdu", "g2": "pdu"}
    feeders = [
        FEEDER.format(name=n, kind=k, losses_ratio=0.01 if k == "container" else 0.0, agent=readers[n])
        for n, k in kinds.items()
    ]
    banks = [
        BANK.format(agent="edge1", bank="asics", feeder="c1", klass="s19", count=asics),
        BANK.format(agent="edge2", bank="asics", feeder="c2", klass="s21", count=asics),
        BANK.format(agent="gpu1", bank="gpus", feeder="g1", klass="h100", count=gpus),
        BANK.format(agent="gpu2", bank="gpus", feeder="g2", klass="h100", count=gpus),
    ]
    text = SITE.format(
        limit_w=limit_w,
        authority=authority,
        protocol=protocol,
        feeders="\n".join(feeders),
        banks="\n".join(banks),
        reservation=RESERVATION if is_reserved else "",
    )
    faults = Faults()
    table = StrictTable(tomllib.loads(text), faults)
    site = parse_site(table, faults)
    table.finish()
    faults.raise_if_faulty("the test's site")
    assert site is not None
    return site
