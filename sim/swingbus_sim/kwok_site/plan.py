"""What a simulated cluster looks like: nodes, GPUs, metered groups, tenants; the one description that site file, agents and bench share."""

from __future__ import annotations

from dataclasses import dataclass

from swingbus.faults import InvalidInput
from swingbus_sim.catalogue import GPU_CLASSES, GpuClass

LIMIT_FACTOR = 1.03  # counted watts per watt of limit; the model never draws more than 1.015
MINE_W, SERVE_W, REST_W = 500.0, 700.0, 200.0
BANK = "gpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """A site of equal GPU nodes under one grid connection.

    Args:
        node_count, gpus_per_node: its size.
        nodes_per_meter: nodes whose power one meter measures together: 1 is a PDU branch each, more a rack.
        miner_namespace: pods there are miners, all others infer.
        limit_ratio: the grid connection's limit as a share of nameplate.
        report_period_s: how often an agent reads and reports.
    """

    node_count: int
    gpus_per_node: int = 8
    nodes_per_meter: int = 1
    gpu_class: str = "h100-sxm"
    miner_namespace: str = "swingbus-miners"
    limit_ratio: float = 1.0
    mining_workload: str = "miner"
    inference_workload: str = "llm"
    report_period_s: float = 1.0

    def __post_init__(self) -> None:
        if self.node_count < 1 or self.gpus_per_node < 1 or self.nodes_per_meter < 1:
            raise InvalidInput("a site needs at least one node, one GPU in it and one node per meter")
        if self.gpu_class not in GPU_CLASSES:
            raise InvalidInput(f"no GPU class {self.gpu_class!r}; there are {', '.join(sorted(GPU_CLASSES))}")
        if not 0.0 < self.limit_ratio <= 2.0:
            raise InvalidInput(f"a limit of {self.limit_ratio} x nameplate")

    @property
    def gpu(self) -> GpuClass:
        """The GPUs' model."""
        return GPU_CLASSES[self.gpu_class]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names as `cluster/kwok.py` gives them."""
        return tuple(f"kwok-{number:03}" for number in range(1, self.node_count + 1))

    def feeder_of(self, node: str) -> str:
        """Return the feeder that a node hangs on: named after the first node behind its meter, whose agent reads it."""
        at = self.nodes.index(node)
        return self.nodes[at - at % self.nodes_per_meter]

    def node_counted_w(self, limit_w: float) -> float:
        """Return what a node counts at with all its GPUs at one limit; the site file's factors are the catalogue's."""
        return self.gpu.host_w(self.gpus_per_node * limit_w * LIMIT_FACTOR)

    @property
    def nameplate_w(self) -> float:
        """Every node at its ceiling."""
        return self.node_count * self.node_counted_w(self.gpu.default_limit_w)

    @property
    def limit_w(self) -> float:
        """What the grid connection allows."""
        return self.nameplate_w * self.limit_ratio

    def tenant_of(self, namespace: str) -> str:
        """Return which tenant the pods of a namespace are."""
        return "mining" if namespace == self.miner_namespace else "inference"

    def static_limit_w(self) -> float:
        """Return the GPU limit at which the worst case, every GPU busy at it, just fits the site's limit.

        What a careful operator sets by hand: with the same counting factor that the controller is given.
        """
        gpu = self.gpu
        node_w = self.limit_w / self.node_count
        gpus_w = (node_w * gpu.supply_efficiency_ratio - gpu.host_base_w) / (1.0 + gpu.host_fan_ratio)
        limit_w = gpus_w / self.gpus_per_node / LIMIT_FACTOR
        if limit_w < gpu.min_limit_w:
            raise InvalidInput(f"{self.limit_w:.0f} W do not carry {self.node_count} nodes even at the least limit")
        return min(gpu.max_limit_w, limit_w)
