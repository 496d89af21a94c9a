"""A pod that leaves: its place is kept for a moment, for one successor, and no longer."""

from __future__ import annotations

from swingbus_controller.domain.cluster.facts import ClusterPod
from swingbus_controller.domain.cluster.leaving import KEPT_S, Leaving


def pod(name: str, *, owner: str = "chat", is_leaving: bool = True, gpu_count: int = 1) -> ClusterPod:
    """Return a pod of a workload."""
    return ClusterPod(
        namespace="customers",
        name=name,
        uid=f"uid-{name}",
        revision="1",
        gpu_count=gpu_count,
        owner_uid=owner,
        is_leaving=is_leaving,
    )


def test_place_is_kept_for_a_moment_and_not_beside_its_successor() -> None:
    """Two leave, one successor waits: one place is kept; after the moment none."""
    leaving = Leaving()
    pods = [pod("a", gpu_count=2), pod("b", gpu_count=2)]
    leaving.note("bank", pods, 100.0)
    refs = [each.ref for each in pods]
    assert leaving.kept_counts({}, refs, 100.0) == {"bank": 4}
    assert leaving.kept_counts({"chat": 1}, refs, 101.0) == {"bank": 2}
    assert leaving.kept_counts({"chat": 2}, refs, 101.0) == {}
    assert leaving.kept_counts({"other": 5}, refs, 101.0) == {"bank": 4}
    assert leaving.kept_counts({}, refs, 100.0 + KEPT_S) == {}


def test_pod_that_takes_long_to_leave_keeps_its_place_once() -> None:
    """Seen again and again while it goes: the moment does not begin anew; when it is gone it is forgotten."""
    leaving = Leaving()
    for second in range(30):
        leaving.note("bank", [pod("slow")], 100.0 + second)
        kept = leaving.kept_counts({}, [pod("slow").ref], 100.0 + second)
        assert kept == ({"bank": 1} if second < KEPT_S else {})
    assert leaving.kept_counts({}, [], 140.0) == {} and leaving.left == {}


def test_nobody_comes_in_place_of_a_pod_without_an_owner_or_of_one_that_stays() -> None:
    """Their places are free at once, or are not."""
    leaving = Leaving()
    leaving.note("bank", [pod("alone", owner=""), pod("stays", is_leaving=False)], 100.0)
    assert leaving.kept_counts({}, [], 100.0) == {}
