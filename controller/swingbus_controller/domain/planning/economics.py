"""Money: what a hash, a GPU-hour and a flip are worth, in USD per hour and USD per MWh.

This room decides nothing about fleets: it holds formulas, each with its source and a worked example. It knows no bank and no
clock. Floats on purpose: money enters as decimal strings at the edge, and a planner that compares dollars per hour gains
nothing from exact cents. Invariant: every function is total on finite, positive input and says which input it refuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from swingbus.faults import InvalidInput

HASHES_PER_DIFFICULTY = 2.0**32
SECONDS_PER_DAY = 86_400.0
HOURS_PER_DAY = 24.0
WATTS_PER_MW = 1e6


def _positive(name: str, value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise InvalidInput(f"{name} is {value}, must be a finite number > 0", metadata={"field": name})
    return value


def _not_negative(name: str, value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise InvalidInput(f"{name} is {value}, must be a finite number >= 0", metadata={"field": name})
    return value


def blocks_per_th_day(difficulty: float) -> float:
    """Return the blocks that 1 TH/s is expected to find in a day: 86400 * 1e12 / (difficulty * 2^32).

    >>> f"{blocks_per_th_day(150_839_487_445_890):.10e}"
    '1.3336406767e-07'
    """
    return SECONDS_PER_DAY * 1e12 / (_positive("difficulty", difficulty) * HASHES_PER_DIFFICULTY)


def network_hashrate_ths(difficulty: float) -> float:
    """Return the network's hashrate (TH/s) that finds one block in 600 s at this difficulty.

    >>> round(network_hashrate_ths(150_839_487_445_890) / 1e6, 2)  # EH/s
    1079.75
    """
    return _positive("difficulty", difficulty) * HASHES_PER_DIFFICULTY / 600.0 / 1e12


def hashprice_usd_per_th_day(
    *, difficulty: float, subsidy_btc: float, fees_btc_per_block: float, btc_usd: float, pool_fee_ratio: float = 0.0
) -> float:
    """Return what 1 TH/s earns in a day (USD), net of the pool's fee.

    blocks per TH-day * (subsidy + fees per block) * BTC price * (1 - pool fee). Difficulty, not the hashrate estimate: that is noise.

    >>> gross = hashprice_usd_per_th_day(
    ...     difficulty=150_839_487_445_890, subsidy_btc=3.125, fees_btc_per_block=2.9679 / 144, btc_usd=110_819.47)
    >>> f"{gross:.5f} {gross * 0.98:.5f}"
    '0.04649 0.04556'
    """
    if not 0.0 <= pool_fee_ratio < 1.0:
        raise InvalidInput(f"pool_fee_ratio is {pool_fee_ratio}, must be >= 0 and < 1")
    reward_btc = _not_negative("subsidy_btc", subsidy_btc) + _not_negative("fees_btc_per_block", fees_btc_per_block)
    return blocks_per_th_day(difficulty) * reward_btc * _positive("btc_usd", btc_usd) * (1.0 - pool_fee_ratio)


def energy_cost_usd_per_th_day(
    *, j_per_th: float, power_price_usd_per_mwh: float, overhead_ratio: float = 1.0
) -> float:
    """Return what the energy of 1 TH/s costs in a day (USD): J/TH * 24 * price / 1e6, times the overhead.

    >>> round(energy_cost_usd_per_th_day(j_per_th=17.5, power_price_usd_per_mwh=50.0), 6)
    0.021
    """
    return j_per_th * HOURS_PER_DAY * power_price_usd_per_mwh / WATTS_PER_MW * overhead_ratio


def break_even_usd_per_mwh(*, hashprice_usd_per_th_day: float, j_per_th: float, overhead_ratio: float = 1.0) -> float:
    """Return the power price (USD/MWh) at which mining earns nothing: the strike of this machine.

    hashprice * 1e6 / (24 * J/TH * overhead). With a 2 % pool fee at 0.0465 USD/TH/day:

    >>> [round(break_even_usd_per_mwh(hashprice_usd_per_th_day=0.0465 * 0.98, j_per_th=j)) for j in (30.5, 21.3, 17.5, 15.0)]
    [62, 89, 108, 127]
    """
    return (
        hashprice_usd_per_th_day
        * WATTS_PER_MW
        / (HOURS_PER_DAY * _positive("j_per_th", j_per_th) * _positive("overhead_ratio", overhead_ratio))
    )


def mining_revenue_usd_per_h(*, hashrate_ths: float, hashprice_usd_per_th_day: float) -> float:
    """Return what a hashrate earns in an hour (USD) at a hashprice that is net of fees."""
    return hashrate_ths * hashprice_usd_per_th_day / HOURS_PER_DAY


def energy_cost_usd_per_h(*, draw_w: float, power_price_usd_per_mwh: float, overhead_ratio: float = 1.0) -> float:
    """Return what a draw costs in an hour (USD); negative prices pay.

    >>> round(energy_cost_usd_per_h(draw_w=3500.0, power_price_usd_per_mwh=60.0, overhead_ratio=1.1), 4)
    0.231
    """
    return draw_w * overhead_ratio / WATTS_PER_MW * power_price_usd_per_mwh


def revenue_usd_per_mwh(*, revenue_usd_per_h: float, draw_w: float, overhead_ratio: float = 1.0) -> float:
    """Return what one MWh at the meter earns when it is spent on this draw: the strike price of any tenant.

    An 8-GPU server of 10.2 kW behind an overhead of 1.2 is 1.53 kW per GPU, so 2.35 USD/GPU-h is 1,536 USD/MWh at the meter:

    >>> round(revenue_usd_per_mwh(revenue_usd_per_h=2.35, draw_w=10_200 / 8, overhead_ratio=1.2))
    1536
    >>> [round(revenue_usd_per_mwh(revenue_usd_per_h=p, draw_w=1275.0, overhead_ratio=1.2)) for p in (2.0, 3.0)]
    [1307, 1961]
    """
    return (
        revenue_usd_per_h / (_positive("draw_w", draw_w) * _positive("overhead_ratio", overhead_ratio)) * WATTS_PER_MW
    )


def inference_value_usd_per_mwh(
    *, price_usd_per_gpu_h: float, draw_w_per_gpu: float, output_ratio: float = 1.0, overhead_ratio: float = 1.0
) -> float:
    """Return what one MWh earns renting GPUs at a cap point that gives `output_ratio` of full throughput for `draw_w_per_gpu`.

    A cap of 250 W on a 400 W A100 keeps 87 % of the tokens for 66 % of the watts, so each MWh earns more, not less:

    >>> full = inference_value_usd_per_mwh(price_usd_per_gpu_h=1.2, draw_w_per_gpu=400.0)
    >>> capped = inference_value_usd_per_mwh(price_usd_per_gpu_h=1.2, draw_w_per_gpu=264.0, output_ratio=0.87)
    >>> round(full), round(capped)
    (3000, 3955)
    """
    return revenue_usd_per_mwh(
        revenue_usd_per_h=price_usd_per_gpu_h * output_ratio, draw_w=draw_w_per_gpu, overhead_ratio=overhead_ratio
    )


def token_cost_usd_per_million(*, rate_usd_per_h: float, tokens_per_s: float) -> float:
    """Return what a million tokens cost (USD) on hardware rented at a rate per hour.

    >>> round(token_cost_usd_per_million(rate_usd_per_h=4 * 2.35, tokens_per_s=6827.0), 2)
    0.38
    """
    return rate_usd_per_h / (_positive("tokens_per_s", tokens_per_s) * 3600.0) * 1e6


def hysteresis_half_width_usd_per_h(*, round_trip_cost_usd: float, margin_variance_usd2_per_h3: float) -> float:
    """Return half the width (USD/h) of the band in which switching is not worth its cost.

    Optimal switching between two states is a two-threshold rule (Brennan-Schwartz 1985, Dixit 1989). For a margin difference
    that moves like Brownian motion with variance s2 ((USD/h)^2 per hour), round-trip cost K and little discounting, smooth fit of
    0.5 s2 w'' + x = 0 gives h = (3 K s2 / 4)^(1/3). The cube root matters: an eighth of the cost halves the band.

    >>> round(hysteresis_half_width_usd_per_h(round_trip_cost_usd=0.63, margin_variance_usd2_per_h3=0.01), 4)
    0.1678
    """
    cost = _not_negative("round_trip_cost_usd", round_trip_cost_usd)
    variance = _not_negative("margin_variance_usd2_per_h3", margin_variance_usd2_per_h3)
    return math.cbrt(3.0 * cost * variance / 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipCosts:
    """What one flip of one device costs (USD): lost rent while loading and draining, wear of a wake.

    Defaults are the example of the economics note: 0.55 into inference is 15 minutes at 2.20 USD/GPU-h.
    """

    into_inference_usd: float = 0.55
    into_gpu_mining_usd: float = 0.08
    asic_wake_usd: float = 0.07
    asic_sleep_usd: float = 0.01
    asic_retune_usd: float = 0.02
    gpu_stop_usd: float = 0.02
    gpu_cap_usd: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _not_negative(name, getattr(self, name))
