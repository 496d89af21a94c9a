"""Site files of the bench: containers of 8 GPUs and 200 ASICs, or many small banks, written as an operator would."""

from __future__ import annotations

from pathlib import Path

_HEAD = """
[controller]
listen = "127.0.0.1:0"
metrics_listen = "off"
data_dir = "data"
pki_dir = "pki"
period_s = 1.0
max_agents = 10000

[site]
name = "bench"
authority = "{authority}"

[[feeder]]
name = "grid"
kind = "grid"

[[feeder.limit]]
name = "contract"
limit_w = {limit_w}
source = "bench"

[[class]]
name = "s19j"
kind = "asic"
ceiling_w = 3250
floor_w = 15
boot_w = 3400
asic_target_factor = 1.05
commissioned = true
safe_share_w = {safe_share_w}
settle_s = 10

[[class.point]]
name = "normal"
mode = "mining"
power_w = 3068
draw_w = 3050
hashrate_ths = 104

[[class.point]]
name = "asleep"
mode = "standby"
power_w = 0
draw_w = 15

[[class]]
name = "h100"
kind = "gpu"
unit_size = 8
ceiling_w = 700
floor_w = 200
gpu_limit_factor = 1.03
inference_class = "h100"
mining_class = "h100"
host_w = 1200

[class.workloads]
inference = "llm"
mining = "hash"

[[class.point]]
name = "full"
mode = "inference"
power_w = 700
throughput_ratio = 1.0

[[class.point]]
name = "idle"
mode = "standby"
power_w = 200
"""
_CONTAINER = """
[[feeder]]
name = "{agent}"
parent = "grid"
kind = "container"

[feeder.meter]
id = "m-{agent}"
agent = "{agent}"
error_ratio = 0.005
"""
_BANK = """
[[bank]]
agent = "{agent}"
bank = "{bank}"
class = "{device_class}"
feeder = "{feeder}"
device_count = {count}
"""


def container_site(folder: Path, agents: list[str], *, authority: str) -> Path:
    """Write the file of a site with one container of 8 GPUs and 200 ASICs per agent."""
    parts = [_HEAD.format(authority=authority, limit_w=100_000_000, safe_share_w=50_000)]
    for agent in agents:
        parts.append(_CONTAINER.format(agent=agent))
        parts.append(_BANK.format(agent=agent, bank="gpus", device_class="h100", feeder=agent, count=8))
        parts.append(_BANK.format(agent=agent, bank="asics", device_class="s19j", feeder=agent, count=200))
    return _write(folder, parts)


def wide_site(folder: Path, agents: list[str], *, devices: int, per_feeder: int = 10) -> Path:
    """Write the file of a site with one ASIC bank per agent, ten to a metered container, under authority control."""
    parts = [_HEAD.format(authority="control", limit_w=len(agents) * devices * 4000, safe_share_w=devices * 50)]
    for at, agent in enumerate(agents):
        if at % per_feeder == 0:
            parts.append(_CONTAINER.format(agent=agent))
        feeder = agents[at - at % per_feeder]
        parts.append(_BANK.format(agent=agent, bank="asics", device_class="s19j", feeder=feeder, count=devices))
    return _write(folder, parts)


def _write(folder: Path, parts: list[str]) -> Path:
    path = folder / "site.toml"
    path.write_text("".join(parts), encoding="utf-8")
    return path
