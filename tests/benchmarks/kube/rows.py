"""What is measured: one row of the matrix, and what came of it for one contender."""

from __future__ import annotations

from dataclasses import dataclass, field

from swingbus_sim.kwok_site.measures import Totals
from swingbus_sim.kwok_site.plan import MINE_W, SERVE_W, SitePlan
from tests.benchmarks.figure import percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: how large, how tight, how many come at once.

    Args:
        arrivals: inference pods that are posted at the same moment, one GPU each.
        nodes_per_meter: nodes that one meter measures together; it only concerns who needs meters.
        repeats: how often such a group comes, every `every_s`, whether the one before was served or not.
        hold_s: how long after that all stay before they leave; refill_s: how long is looked at then. So the measured stretch is as
            long for everybody, and who serves late has less to show for it.
        flips_in_flight: how many our controller may have open; it only concerns ours.
    """

    node_count: int
    arrivals: int
    limit_ratio: float
    nodes_per_meter: int = 1
    repeats: int = 1
    seed: int = 1
    every_s: float = 8.0
    hold_s: float = 20.0
    refill_s: float = 20.0
    dwell_s: float = 10.0
    report_period_s: float = 1.0
    flips_in_flight: int = 1024

    @property
    def plan(self) -> SitePlan:
        """The site."""
        return SitePlan(
            node_count=self.node_count,
            limit_ratio=self.limit_ratio,
            nodes_per_meter=self.nodes_per_meter,
            report_period_s=self.report_period_s,
        )

    @property
    def gpu_count(self) -> int:
        """All GPUs of the site."""
        return self.node_count * self.plan.gpus_per_node

    @property
    def has_free_watts(self) -> bool:
        """Whether all that come fit the limit while everybody else mines on: else somebody must shrink and be proven first."""
        plan = self.plan
        per_gpu_w = (plan.node_counted_w(SERVE_W) - plan.node_counted_w(MINE_W)) / plan.gpus_per_node
        largest_w = (plan.node_counted_w(SERVE_W) - plan.node_counted_w(0.0)) / plan.gpus_per_node
        margin_w = 0.005 * plan.limit_w + 3.0 * largest_w  # what our controller keeps for meters and self-wakers
        mining_w = plan.node_count * plan.node_counted_w(MINE_W)
        return mining_w + self.arrivals * self.repeats * per_gpu_w <= plan.limit_w - margin_w

    @property
    def stay_s(self) -> float:
        """From the first arrival until all leave."""
        return self.repeats * self.every_s + self.hold_s

    @property
    def title(self) -> str:
        """For a table."""
        times = f" x {self.repeats}" if self.repeats > 1 else ""
        meters = f", {self.nodes_per_meter} nodes to a meter" if self.nodes_per_meter > 1 else ""
        return f"{self.node_count} nodes, {self.arrivals}{times} arrive, {round(100 * self.limit_ratio, 3):g} %{meters}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Seconds of many of one kind: how many, the middle, the 99th of a hundred, the worst. None where there were none."""

    count: int
    p50_s: float | None
    p99_s: float | None
    max_s: float | None

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        """Sum up."""
        if not seconds:
            return cls(count=0, p50_s=None, p99_s=None, max_s=None)
        return cls(
            count=len(seconds),
            p50_s=round(percentile(seconds, 0.5), 3),
            p99_s=round(percentile(seconds, 0.99), 3),
            max_s=round(max(seconds), 3),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What one process used in the measured stretch."""

    cpu_s: float
    rss_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one contender did in one row. All times count from the moment that a pod's POST was accepted.

    Args:
        bound, running: POST to bound, and to its process on a GPU.
        all_bound_s: per group, first POST to the last pod bound; None for a group that was not all bound when it left.
        victim_told, victim_gone, victim_released: POST to a miner that is told to end, whose pod is gone, and of which no process is
            on any GPU; the n-th miner counts from the group's n-th POST.
        unbound: pods that left without having been bound.
        killed: miners whose process ran and was ended by force while inference came; killed_in_dwell: of those, before they ran so long.
        totals: watts and GPU-seconds of the whole stretch; watched_s its length; baseline_w the mean just before it.
        api_writes: by verb and resource, of everybody.
        used: by process.
        sitting: which of the report's sittings it was measured in.
        notes: what a reader must know.
    """

    contender: str
    row: Row
    bound: Spread
    running: Spread
    all_bound_s: tuple[float | None, ...]
    victim_told: Spread
    victim_gone: Spread
    victim_released: Spread
    unbound: int
    killed: int
    killed_in_dwell: int
    refused_by_kubelet: int
    totals: Totals
    baseline_w: float
    limit_w: float
    api_writes: dict[str, int]
    used: dict[str, Used]
    setup_s: float
    sitting: int = 0
    notes: tuple[str, ...] = ()
    own: dict[str, object] = field(default_factory=dict)

    @property
    def killed_per_gpu(self) -> float | None:
        """Miners killed per GPU that inference got; None where it got none."""
        return None if not self.bound.count else self.killed / self.bound.count
