"""Figures of pools for an alert: who waits and how long; flips and evictions that are over."""

from __future__ import annotations

from swingbus_controller.adapters.metrics import ControllerMetrics
from swingbus_controller.domain.cluster.pool_words import GpuCounts, PoolWords


def make_words(*, waiting: int = 0, oldest_unix_s: float | None = None) -> PoolWords:
    """Return what is said of a pool of eight GPUs."""
    return PoolWords(
        generation=1,
        epoch=1,
        gpus=GpuCounts(total=8, inference=3, mining=5),
        waiting_pods=waiting,
        waiting_gpus=2 * waiting,
        oldest_unix_s=oldest_unix_s,
    )


def test_pods_that_wait_are_shown_with_the_age_of_the_oldest() -> None:
    """Absent where nobody waits: 0 s would be a pod that has just come."""
    metrics = ControllerMetrics("north")
    of_pool = {"site": "north", "pool": "h100"}

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {**of_pool, **labels})

    metrics.show_pools({"h100": make_words(waiting=2, oldest_unix_s=900.0)}, 1000.0)
    assert value("swingbus_pool_waiting_pods") == 2
    assert value("swingbus_pool_waiting_gpus") == 4
    assert value("swingbus_pool_oldest_waiting_seconds") == 100.0
    assert value("swingbus_pool_gpus", does="mining") == 5
    assert value("swingbus_pool_gpus", does="unknown") == 0
    assert value("swingbus_pool_gpus", does="total") is None
    metrics.show_pools({"h100": make_words()}, 1001.0)
    assert value("swingbus_pool_waiting_pods") == 0
    assert value("swingbus_pool_oldest_waiting_seconds") is None
    metrics.show_pools({}, 1002.0)
    assert value("swingbus_pool_waiting_pods") is None


def test_flips_and_evictions_are_counted_apart() -> None:
    """By path and end, and by answer."""
    metrics = ControllerMetrics("north")
    for phase in ("active", "active", "rolled_back"):
        metrics.flip_ended("h100", "mining to inference", phase)
    metrics.eviction_answered("blocked")
    flips = {"site": "north", "pool": "h100", "path": "mining to inference"}
    get = metrics.registry.get_sample_value
    assert get("swingbus_controller_tenant_flips_total", {**flips, "phase": "active"}) == 2
    assert get("swingbus_controller_tenant_flips_total", {**flips, "phase": "rolled_back"}) == 1
    assert get("swingbus_controller_evictions_total", {"site": "north", "answer": "blocked"}) == 1
