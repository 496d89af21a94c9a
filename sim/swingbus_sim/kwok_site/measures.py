"""The sampler: what all contenders are measured with, once a second, on true power.

Decides what is counted and how. Knows no contender. Invariants: a sample is the mean over the time since the one before (from energy, so
nothing between two samples is missed in it); a second is over the limit by its mean; an idle GPU has no process, whoever holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from swingbus_sim.kwok_site.physics import INFERENCE, MINING, Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One second of the whole site.

    Attributes:
        at_s: CLOCK_BOOTTIME at its end; span_s: how long it was.
        power_w: mean over it.
        idle, mining, inference: GPUs without a process, with a miner's, with an inference pod's.
        inference_w, inference_wanted_w: what GPUs that infer draw, and would draw without their limits.
        throughput: sum over inferring GPUs of the share of full throughput that their limits leave.
        shared: GPUs with processes of more than one pod.
    """

    at_s: float
    span_s: float
    power_w: float
    idle: int
    mining: int
    inference: int
    inference_w: float
    inference_wanted_w: float
    throughput: float
    shared: int


class Sampler:
    """Samples all servers; to be called about once a second."""

    def __init__(self, servers: Sequence[Server], now_s: float) -> None:
        self._servers = servers
        self._energy_j = sum(server.energy_j(now_s) for server in servers)
        self._at_s = now_s

    def sample(self, now_s: float) -> Sample:
        """Return what was since the last call."""
        energy_j = sum(server.energy_j(now_s) for server in self._servers)
        span_s = now_s - self._at_s
        counts = {None: 0, MINING: 0, INFERENCE: 0}
        inference_w = wanted_w = throughput = 0.0
        shared = 0
        for server in self._servers:
            for gpu in server.gpus:
                tenant = gpu.tenant
                counts[tenant] += 1
                shared += len(gpu.processes) > 1
                if tenant == INFERENCE:
                    inference_w += gpu.power_w
                    wanted_w += server.wanted_w(gpu)
                    throughput += server.gpu_class.throughput_ratio(gpu.enforced_w)
        power_w = (energy_j - self._energy_j) / span_s if span_s > 0.0 else 0.0
        self._energy_j, self._at_s = energy_j, now_s
        return Sample(
            at_s=now_s,
            span_s=span_s,
            power_w=power_w,
            idle=counts[None],
            mining=counts[MINING],
            inference=counts[INFERENCE],
            inference_w=inference_w,
            inference_wanted_w=wanted_w,
            throughput=throughput,
            shared=shared,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a stretch of samples adds up to."""

    seconds: float
    over_limit_ws: float
    seconds_over: float
    peak_w: float
    mean_w: float
    ramp_w_per_s: float  # largest change of a 1 s mean to the next
    idle_gpu_s: float
    mining_gpu_s: float
    inference_gpu_s: float
    inference_full_gpu_s: float  # the same, each second weighed by the throughput that limits leave
    inference_short_ws: float  # watts that inference wanted and its limits did not let it have


def total(samples: Sequence[Sample], limit_w: float) -> Totals:
    """Add samples up.

    >>> s = Sample(at_s=1.0, span_s=1.0, power_w=110.0, idle=1, mining=2, inference=0, inference_w=0.0, inference_wanted_w=0.0,
    ...     throughput=0.0, shared=0)
    >>> total([s, s], 100.0).over_limit_ws
    20.0
    """
    seconds = sum(s.span_s for s in samples)
    ramps = [
        abs(after.power_w - before.power_w) / after.span_s for before, after in pairwise(samples) if after.span_s > 0.0
    ]
    return Totals(
        seconds=seconds,
        over_limit_ws=sum(max(0.0, s.power_w - limit_w) * s.span_s for s in samples),
        seconds_over=sum(s.span_s for s in samples if s.power_w > limit_w),
        peak_w=max((s.power_w for s in samples), default=0.0),
        mean_w=sum(s.power_w * s.span_s for s in samples) / seconds if seconds else 0.0,
        ramp_w_per_s=max(ramps, default=0.0),
        idle_gpu_s=sum(s.idle * s.span_s for s in samples),
        mining_gpu_s=sum(s.mining * s.span_s for s in samples),
        inference_gpu_s=sum(s.inference * s.span_s for s in samples),
        inference_full_gpu_s=sum(s.throughput * s.span_s for s in samples),
        inference_short_ws=sum((s.inference_wanted_w - s.inference_w) * s.span_s for s in samples),
    )
