"""What a run earned: one function for the real run and for the baselines, on true physics.

    mining     USD = sum over ASICs of TH/s x hashprice (USD/TH/day) x (1 - pool fee) x days
    GPU mining USD = mining GPU-hours at full load x USD per GPU-hour
    inference  USD = served GPU-hours x USD per GPU-hour; served = min(demand, capacity), capacity = inference GPUs x the share of
                     full throughput that their cap leaves
    energy     USD = MWh at the root feeder x price (USD/MWh)
    margin         = mining + GPU mining + inference - energy

Capacity counts a GPU from the birth of its inference process, its few seconds of loading included (on both sides alike).
Time is real time: the market's clock moves the prices faster (see `clock_factor`), it does not multiply the kilowatt-hours.
Capital, demand charges, curtailment payments and flip costs are left out on both sides of the comparison.

>>> round(mining_usd(hashrate_ths=1000.0, hashprice_usd_per_th_day=0.05, pool_fee_ratio=0.02, seconds=86400.0), 2)
49.0
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swingbus.faults import InvalidInput
from swingbus_sim import truth_log
from swingbus_sim.physics.truth import Tick
from swingbus_sim.scenario import Market, Scenario


def mining_usd(*, hashrate_ths: float, hashprice_usd_per_th_day: float, pool_fee_ratio: float, seconds: float) -> float:
    """Return what a hashrate earns in a time."""
    return hashrate_ths * hashprice_usd_per_th_day * (1.0 - pool_fee_ratio) * seconds / 86400.0


@dataclass(slots=True)
class Purse:
    """Adds up money over ticks."""

    market: Market
    mining_usd: float = 0.0
    gpu_mining_usd: float = 0.0
    inference_usd: float = 0.0
    energy_usd: float = 0.0
    energy_mwh: float = 0.0
    served_gpu_hours: float = 0.0
    demanded_gpu_hours: float = 0.0

    def add(self, tick: Tick, seconds: float) -> None:
        """Add one tick of `seconds`."""
        hours = seconds / 3600.0
        served = min(tick.demand_gpus, tick.inference_capacity_gpus)
        self.mining_usd += mining_usd(
            hashrate_ths=tick.hashrate_ths,
            hashprice_usd_per_th_day=tick.hashprice_usd_per_th_day,
            pool_fee_ratio=self.market.pool_fee_ratio,
            seconds=seconds,
        )
        self.gpu_mining_usd += tick.gpu_mining_gpus * self.market.gpu_mining_usd_per_gpu_hour * hours
        self.inference_usd += served * self.market.inference_usd_per_gpu_hour * hours
        self.served_gpu_hours += served * hours
        self.demanded_gpu_hours += tick.demand_gpus * hours
        mwh = tick.node_w[0] * hours / 1e6
        self.energy_mwh += mwh
        self.energy_usd += mwh * tick.price_usd_per_mwh

    def as_json(self) -> dict[str, Any]:
        """Return the sums, rounded to a hundredth of a cent."""
        margin = self.mining_usd + self.gpu_mining_usd + self.inference_usd - self.energy_usd
        return {
            "margin_usd": round(margin, 4),
            "mining_usd": round(self.mining_usd, 4),
            "gpu_mining_usd": round(self.gpu_mining_usd, 4),
            "inference_usd": round(self.inference_usd, 4),
            "energy_usd": round(self.energy_usd, 4),
            "energy_kwh": round(self.energy_mwh * 1000.0, 3),
            "served_gpu_hours": round(self.served_gpu_hours, 4),
            "demanded_gpu_hours": round(self.demanded_gpu_hours, 4),
            "market_clock_factor": self.market.clock_factor,
        }


def margin_of_log(path: Path, scenario: Scenario) -> dict[str, Any]:
    """Return the money of a truth log, until the scenario's end: a run that went on is compared with others that did not.

    Raises:
        NotFound: no such log.
        InvalidInput: the log is of another scenario.
    """
    purse = Purse(scenario.market)
    step_s = 0.1
    for line in truth_log.read_lines(path):
        if line["type"] == "header":
            step_s = line["step_s"]
            if line["scenario"] != scenario.name:
                raise InvalidInput(f"{path} is a run of {line['scenario']!r}, not of {scenario.name!r}")
        elif line["type"] == "tick":
            tick = truth_log.parse_tick(line)
            if tick.at_s > scenario.duration_s:
                break
            purse.add(tick, step_s)
    return purse.as_json()
