"""What truly is at one instant: the record that the judge, the money and the tests read.

A tick is the mean over the step that ends at `at_s` (the step is 0.1 s, so this is the 100 ms record).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Disobedience:
    """One device that draws more than its last order allows, because of a planted fault or an unordered reboot."""

    device: int
    extra_w: float
    since_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class Surge:
    """One uncontrolled load above its ordinary course."""

    load: str
    node: int
    extra_w: float
    since_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """The site's truth over one step.

    `node_w`, `limit_w` and `potential_w` are by node; `device_w` and `states` by device (ASICs, then GPUs). A potential is what a
    node would draw if every machine did what its present state allows it (pool back, fans caught up, caps filled).
    States: O off, B booting or waking, M mining, S asleep, D GPU idle, G GPU mining, I GPU inference, L lost, H hung.
    """

    at_s: float
    voltage_ratio: float
    node_w: tuple[float, ...]
    limit_w: tuple[float | None, ...]
    potential_w: tuple[float, ...]
    device_w: tuple[float, ...]
    states: str
    disobedient: tuple[Disobedience, ...]
    surges: tuple[Surge, ...]
    mining_w: float
    inference_w: float
    hashrate_ths: float
    gpu_mining_gpus: float
    inference_capacity_gpus: float
    price_usd_per_mwh: float
    demand_gpus: float
    hashprice_usd_per_th_day: float


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of the fault ledger: what the scenario (or a test) did to the site.

    `phase`: `started`, `ended`, `armed` (waits for its condition), `announced` (a limit to come), or `due` (the runner's task).
    """

    at_s: float
    id: int
    kind: str
    phase: str
    targets: tuple[str, ...]
    detail: dict[str, float | str | bool | None]
