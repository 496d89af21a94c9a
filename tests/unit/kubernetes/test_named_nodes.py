"""A pod that names its nodes (a DaemonSet's does) is offered to no other node, whatever is free there."""

from __future__ import annotations

from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod, Pool, why_not_on
from swingbus_controller.domain.cluster.placing import BankRoom, place_pods

NODES = {name: ClusterNode(name=name, uid=name, gpu_count=8) for name in ("n1", "n2")}
POOL = Pool(name="p", uid="p", revision="1", generation=1, site="s", container="c", node_selector={})


def room(node: str, free_count: int) -> BankRoom:
    """Return a bank with room."""
    return BankRoom(
        bank=node,
        inference_class="h100",
        unit_size=1,
        device_count=8,
        node=NODES[node],
        pool=POOL,
        free_count=free_count,
    )


def pod(name: str, *only: str) -> ClusterPod:
    """Return a pod that waits."""
    return ClusterPod(
        namespace="a", name=name, uid=name, revision="1", gpu_count=1, is_gated=True, only_nodes=frozenset(only)
    )


def test_each_is_in_line_at_its_own_node_alone() -> None:
    """Alike in all else, they are not offered together."""
    placing = place_pods([pod("one", "n1"), pod("two", "n2"), pod("any")], [room("n1", 8), room("n2", 8)], {"a": {}})
    names = {bank: sorted(each.name for each in line) for bank, line in placing.line.items()}
    assert names == {"n1": ["any", "one"], "n2": ["any", "two"]}
    assert not placing.unfit


def test_who_names_a_node_that_is_not_ours_is_told_so() -> None:
    """It is no demand, and the words say which node it wants."""
    lost = pod("lost", "n9")
    placing = place_pods([lost], [room("n1", 8)], {"a": {}})
    assert placing.demand == {"h100": 0}
    assert "n9" in placing.unfit[lost.ref]
    assert why_not_on(pod("any"), NODES["n1"]) == ""
