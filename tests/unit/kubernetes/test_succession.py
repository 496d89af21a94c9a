"""Who takes the place of a pod that comes no more, and for how long it is kept for a replacement that is not there yet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod
from swingbus_controller.domain.cluster.leaving import KEPT_S
from swingbus_controller.domain.cluster.succession import Brought, find_heir

NODE = ClusterNode(name="n1", uid="n1", gpu_count=4)


def pod(name: str, **more: Any) -> ClusterPod:
    """Return a pod of a workload that waits behind our gate."""
    facts: dict[str, Any] = {"gpu_count": 1, "owner_uid": "chat", "is_gated": True, **more}
    return ClusterPod(namespace="customers", name=name, uid=f"uid-{name}", revision="1", **facts)


GONE = pod("gone", is_gated=False, node="n1")


def test_first_in_line_comes_before_the_replacement_unless_that_is_dearer() -> None:
    """By priority, then age, wherever they are known from."""
    old, new = pod("old", owner_uid="other", made_unix_s=1.0), pod("new", made_unix_s=2.0)
    assert find_heir(GONE, 1, NODE, [old], [old, new]) == old
    dear = replace(new, priority=5)
    assert find_heir(GONE, 1, NODE, [old], [old, dear]) == dear
    assert find_heir(GONE, 1, NODE, [], [old, new]) == new


@pytest.mark.parametrize(
    "change",
    [
        {"is_gated": False},
        {"has_other_gates": True},
        {"is_leaving": True},
        {"gpu_count": 2},
        {"owner_uid": "other"},
        {"gang": "set"},
        {"queue": "q"},
        {"node_selector": {"gpu": "other"}},
    ],
    ids=str,
)
def test_who_does_not_wait_or_does_not_fit_is_no_heir(change: dict[str, Any]) -> None:
    """A replacement in no line is looked at like one that is."""
    assert find_heir(GONE, 1, NODE, [], [pod("new", **change)]) is None


def test_who_found_no_node_is_not_followed_by_its_like() -> None:
    """It would find none either; somebody else in line may."""
    late, other = pod("late", is_gated=False, aimed_at="n1"), pod("other", owner_uid="other")
    assert find_heir(late, 1, NODE, [], [pod("new")]) is None
    assert find_heir(late, 1, NODE, [other], [pod("new"), other]) == other
    brought = Brought()
    brought.note(late)
    brought.note_lost(late.ref, 100.0)
    assert not brought.may_be_followed(late.ref, 100.0)


def test_a_pod_that_had_some_places_already_is_followed_by_one_of_its_size() -> None:
    """Two of its four GPUs are still to come: its like takes all four; a pod of two is taken where there is none."""
    big = replace(GONE, gpu_count=4)
    like, half = pod("like", gpu_count=4), pod("half", owner_uid="other", gpu_count=2)
    assert find_heir(big, 2, NODE, [half], [half, like]) == like
    assert find_heir(big, 2, NODE, [half], [half]) == half
    assert find_heir(None, 2, NODE, [like, half], [like, half]) == half


def test_a_place_is_kept_for_a_moment_where_somebody_would_make_the_pod_again() -> None:
    """From when it was first seen lost; not for a pod that nobody owns, nor for one that was never seen to come."""
    brought = Brought()
    lone = pod("lone", owner_uid="")
    for each in (GONE, lone):
        brought.note(each)
    for second in range(3):
        for each in (GONE, lone, pod("unseen")):
            brought.note_lost(each.ref, 100.0 + second)
    assert brought.may_be_followed(GONE.ref, 100.0 + KEPT_S - 0.1)
    assert not brought.may_be_followed(GONE.ref, 100.0 + KEPT_S)
    assert not brought.may_be_followed(lone.ref, 100.0)
    assert not brought.may_be_followed(pod("unseen").ref, 100.0)
    brought.forget_others(set())
    assert not brought.may_be_followed(GONE.ref, 100.0)
