"""From the API's words to the domain's: spans, times, taints, miners made of templates, why a bank is frozen, who was refused."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from swingbus.faults import InvalidInput
from swingbus_controller.adapters.kubernetes.facts import api_time, span_s, unix_s
from swingbus_controller.adapters.kubernetes.pod_calls import miner_body
from swingbus_controller.domain.cluster.blocking import Blockings
from swingbus_controller.domain.cluster.facts import (
    ClusterNode,
    ClusterPod,
    OnBlocked,
    PodRef,
    Pool,
    PoolMode,
    Taint,
    Toleration,
    why_not_on,
)
from swingbus_controller.domain.cluster.pool_checks import why_frozen

NODE = ClusterNode(name="n", uid="n", gpu_count=8, labels=MappingProxyType({"gpu": "h100"}))
POOL = Pool(
    name="pool",
    uid="u",
    revision="1",
    generation=1,
    site="north",
    container="c1",
    node_selector=MappingProxyType({"gpu": "h100"}),
    miner_namespace="miners",
    miner_template="miner",
    mode=PoolMode.AUTO,
)
POD = ClusterPod(namespace="customers", name="p", uid="p", revision="1", gpu_count=1)
REF = PodRef(namespace="customers", name="p", uid="p")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("5m", 300.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("250ms", 0.25), ("1m1ms", 60.001)],
)
def test_spans_are_read_as_kubernetes_writes_them(text: str, seconds: float) -> None:
    """Units may follow each other, and have fractions."""
    assert span_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", "-30s", "30s!", "1d", "five", "١s", "3e2s"])
def test_what_is_no_span_is_refused_with_what_to_write(text: str) -> None:
    """A span without a unit, or with one that Kubernetes does not know."""
    with pytest.raises(InvalidInput, match="write 30s, 5m, 1h30m"):
        span_s(text)


@pytest.mark.parametrize("text", [None, "", "yesterday", "2026-13-01T00:00:00Z", "1", "🕐"])
def test_what_is_no_time_is_none(text: str | None) -> None:
    """A mark that somebody wrote by hand is no time, and no fault."""
    assert unix_s(text) is None


def test_times_survive_the_way_to_the_api_and_back() -> None:
    """Whole seconds."""
    assert unix_s(api_time(1_795_435_200.0)) == 1_795_435_200.0


def test_a_pod_runs_where_labels_taints_and_the_node_let_it() -> None:
    """Each reason is told; who bears a taint may go where it is."""
    assert why_not_on(POD, NODE) == ""
    assert "cordoned" in why_not_on(POD, replace(NODE, is_unschedulable=True))
    assert "not ready" in why_not_on(POD, replace(NODE, is_ready=False))
    assert why_not_on(replace(POD, node_selector={"gpu": "b200"}), NODE) == "node n has no label gpu=b200"
    tainted = replace(NODE, taints=(Taint(key="gpu", effect="NoSchedule", value="yes"),))
    assert why_not_on(POD, tainted) == "node n has taint gpu:NoSchedule"
    for toleration in (
        Toleration(operator="Exists"),
        Toleration(key="gpu", operator="Exists"),
        Toleration(key="gpu", value="yes"),
        Toleration(key="gpu", value="yes", effect="NoSchedule"),
    ):
        assert why_not_on(replace(POD, tolerations=(toleration,)), tainted) == ""
    for toleration in (
        Toleration(key="gpu", value="no"),
        Toleration(key="other", operator="Exists"),
        Toleration(operator="Exists", effect="NoExecute"),
    ):
        assert why_not_on(replace(POD, tolerations=(toleration,)), tainted) != ""
    assert why_not_on(POD, replace(NODE, taints=(Taint(key="x", effect="PreferNoSchedule"),))) == ""


def frozen(pool: Pool | None = POOL, *others: Pool, node: ClusterNode | None = NODE) -> str:
    """Return the first word of why the bank is frozen."""
    known = [each for each in (pool, *others) if each is not None]
    why = why_frozen(site="north", feeders=["grid", "c1"], node_name="n", pool_name="pool", node=node, pools=known)
    return why.partition(":")[0]


def test_a_bank_is_frozen_with_the_reason_to_mend_first() -> None:
    """Each reason by its word; a bank whose parts belong together is not frozen."""
    assert frozen() == ""
    assert frozen(None) == "PoolMissing"
    assert frozen(replace(POOL, site="south")) == "SiteDiffers"
    assert frozen(replace(POOL, container="c2")) == "ContainerDiffers"
    assert frozen(node=None) == "NodeMissing"
    assert frozen(POOL, replace(POOL, name="other")) == "PoolsOverlap"
    assert frozen(node=replace(NODE, labels={})) == "NodeNotSelected"
    assert frozen(replace(POOL, mode=PoolMode.ADVISORY)) == "Advisory"
    assert frozen(replace(POOL, site="south", mode=PoolMode.ADVISORY), node=None) == "SiteDiffers"


def test_a_nodes_rest_grows_with_rejections_and_is_bounded() -> None:
    """The same pod counts once; a start forgets all."""
    found, rests = Blockings(), []
    for number in range(20):
        found.note_rejected("b", replace(REF, uid=str(number)), "no device", 100.0)
        found.note_rejected("b", replace(REF, uid=str(number)), "no device", 100.0)
        rests.append(found.rejected["b"].rests_until_s - 100.0)
    assert rests[:4] == [10.0, 20.0, 40.0, 80.0]
    assert rests[-1] == max(rests) == 600.0
    assert found.is_resting("b", 699.0) and not found.is_resting("b", 700.0)
    found.note_started("b")
    assert not found.is_resting("b", 100.0)


def test_a_blocked_pod_is_given_up_at_its_deadline_where_the_pool_says_so() -> None:
    """The deadline counts from the first no; two budgets are a no for ever."""
    found = Blockings()
    for now_s in (0.0, 60.0, 119.0):
        found.note_blocked(REF, budget="pdb", detail="needs 2", now_s=now_s)
        assert found.why_given_up(REF, POOL, now_s) == ""
    assert "needs 2" in found.why_given_up(REF, POOL, 120.0)
    assert found.why_given_up(REF, replace(POOL, on_blocked=OnBlocked.WAIT), 120.0) == ""
    found.note_blocked(REF, budget="", detail="two budgets", now_s=0.0, is_for_ever=True)
    assert "two budgets" in found.why_given_up(REF, POOL, 0.0)


def test_a_pod_that_several_budgets_keep_is_overruled_at_the_deadline_and_not_before() -> None:
    """onBlocked: Delete promises its owner evictDeadline, also where the Eviction API says at once that it never takes the pod."""
    found, deleting = Blockings(), replace(POOL, on_blocked=OnBlocked.DELETE)
    for now_s in (10.0, 70.0, 129.0):
        found.note_blocked(REF, budget="", detail="two budgets", now_s=now_s, is_for_ever=True)
        assert not found.is_past_deadline(REF, deleting, now_s)
    assert found.is_past_deadline(REF, deleting, 130.0)
    assert all(
        found.is_past_deadline(REF, replace(POOL, on_blocked=other), 10.0) for other in (OnBlocked.CAP, OnBlocked.WAIT)
    )


def test_a_miner_is_made_of_its_template_for_one_node_and_never_preempts() -> None:
    """What decides where it runs and whom it pushes out is ours, whatever the template says; the template is left as it was."""
    template = {
        "metadata": {"labels": {"app": "miner", "swingbus.io/pool": "forged"}},
        "spec": {
            "preemptionPolicy": "PreemptLowerPriority",
            "affinity": {"nodeAffinity": {"x": 1}, "podAffinity": {"y": 1}},
            "containers": [{"name": "m", "resources": {"limits": {"cpu": "1", "nvidia.com/gpu": "8"}}}, {"name": "s"}],
        },
    }
    before = repr(template)
    body = miner_body(template, POOL, NODE, slot=3, gpu_count=2, flip="f", resource="nvidia.com/gpu")
    assert repr(template) == before
    spec, meta = body["spec"], body["metadata"]
    assert spec["preemptionPolicy"] == "Never"
    assert spec["containers"][0]["resources"]["limits"] == {"cpu": "1", "nvidia.com/gpu": "2"}
    assert spec["affinity"]["podAffinity"] == {"y": 1}
    assert "nodeName" not in spec and "x" not in spec["affinity"]["nodeAffinity"]
    assert (meta["name"], meta["namespace"]) == ("miner-n-3", "miners")
    assert meta["labels"]["swingbus.io/pool"] == "pool" and meta["labels"]["app"] == "miner"
    assert meta["ownerReferences"][0]["uid"] == "u"


@pytest.mark.parametrize("template", [{}, {"spec": None}, {"spec": {"containers": []}}, {"metadata": None, "spec": {}}])
def test_a_template_without_a_container_is_refused_by_name(template: dict[str, object]) -> None:
    """The fault says which template, and what to write."""
    with pytest.raises(InvalidInput, match="miners/miner has no container"):
        miner_body(template, POOL, NODE, slot=0, gpu_count=1, flip="f", resource="nvidia.com/gpu")
