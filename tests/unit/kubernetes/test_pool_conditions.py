"""Each condition of a pool and each of its reasons, from plain facts: whether it holds, and that its words name what to mend."""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swingbus_controller.domain.cluster.blocking import Blocked, Rejected
from swingbus_controller.domain.cluster.facts import (
    ClusterNode,
    ClusterPod,
    LabelNeed,
    OnBlocked,
    PodRef,
    Pool,
    PoolMode,
)
from swingbus_controller.domain.cluster.pool_conditions import (
    agents_reporting,
    curtailed,
    drain_blocked,
    gate_enforced,
    within_limit,
)
from swingbus_controller.domain.cluster.pool_demand import demand_served, find_fits, find_homeless, waiting_here
from swingbus_controller.domain.cluster.pool_facts import (
    BankFacts,
    Bar,
    Barred,
    Blindness,
    CurtailmentFacts,
    FeederFacts,
    PoolFacts,
)
from swingbus_controller.domain.cluster.pool_status import pool_words, ready
from swingbus_controller.domain.cluster.pool_words import GpuCounts, PoolCondition, Truth
from swingctl.main import build_parser

NOW_UNIX_S = 1_800_000_000.0
ENROLLED = {"customers": {"swingbus.io/power-gate": "enabled"}}
POOL = Pool(
    name="h100-c07",
    uid="u",
    revision="1",
    generation=3,
    site="tx1",
    container="c07",
    node_selector={"gpu": "h100"},
    is_mining_enabled=True,
    miner_namespace="miners",
    miner_template="miner",
    mode=PoolMode.AUTO,
)


def make_pod(name: str = "chat", **more: Any) -> ClusterPod:
    """Return a pod that has waited for five seconds."""
    told = {"namespace": "customers", "gpu_count": 1, "made_unix_s": NOW_UNIX_S - 5.0, "is_gated": True, **more}
    return ClusterPod(name=name, uid=f"uid-{name}", revision="1", **told)


def running_pod(name: str = "chat", **more: Any) -> ClusterPod:
    """Return a pod on the node that we let go."""
    told = {"is_gated": False, "node": "n1", "lifted_unix_s": NOW_UNIX_S - 100.0, **more}
    return make_pod(name, **told)


def make_bank(node: str = "n1", **more: Any) -> BankFacts:
    """Return a bank of four GPUs in which nothing is amiss and all GPUs mine."""
    told = {
        "cluster_node": ClusterNode(name=node, uid=f"u-{node}", gpu_count=4, labels={"gpu": "h100"}),
        "gpus": GpuCounts(total=4, mining=4),
        "barred": Barred(bar=Bar.ARRIVING, words="soon"),
        **more,
    }
    return BankFacts(bank=f"{node}/gpus", agent=f"agent-{node}", node=node, device_count=4, unit_size=1, **told)


def make_facts(*banks: BankFacts, **more: Any) -> PoolFacts:
    """Return a pool's facts; one sound bank where none is given."""
    told = {"feeders": (FeederFacts(feeder="c07", limit_w=60_000.0),), "namespaces": ENROLLED, **more}
    return PoolFacts(pool=told.pop("pool", POOL), epoch=7, now_unix_s=NOW_UNIX_S, banks=banks or (make_bank(),), **told)


def demand(facts: PoolFacts) -> PoolCondition:
    """Return DemandServed as it is told when this is the only pool."""
    fits = find_fits(facts.waiting, facts.banks)
    facts = replace(facts, homeless=find_homeless(facts.waiting, [fits]))
    return demand_served(facts, waiting_here(facts, fits), fits)


def test_sound_pool_is_ready_and_nothing_is_amiss() -> None:
    """Counts, watts and seven conditions, each once."""
    waiting = (make_pod(), make_pod("big", gpu_count=2, made_unix_s=NOW_UNIX_S - 30.0))
    facts = make_facts(make_bank("n1"), make_bank("n2"), waiting=waiting, granted_w=6_849.0, reserved_w=51.0)
    words = pool_words(facts, find_fits(waiting, facts.banks))
    assert (words.generation, words.epoch, words.gpus) == (3, 7, GpuCounts(total=8, mining=8))
    assert (words.waiting_pods, words.waiting_gpus, words.oldest_unix_s) == (2, 3, NOW_UNIX_S - 30.0)
    assert (words.limit_w, words.granted_w, words.reserved_w) == (60_000, 6_800, 100)
    assert {each.type: each.truth.value for each in words.conditions} == {
        "Ready": "True",
        "WithinLimit": "True",
        "DemandServed": "False",
        "DrainBlocked": "False",
        "AgentsReporting": "True",
        "GateEnforced": "True",
        "Curtailed": "False",
    }


@pytest.mark.parametrize("watts", [6_751.0, 6_800.0, 6_849.0])
def test_watts_that_move_a_little_change_nothing(watts: float) -> None:
    """Rounded, a grant that follows its devices by a few watts is no reason to write."""
    facts = make_facts(granted_w=watts)
    assert pool_words(facts, {}) == pool_words(make_facts(granted_w=6_790.0), {})


def test_pool_without_any_limit_tells_none_rather_than_zero() -> None:
    """Missing is None: 0 W would read as a pool that may draw nothing."""
    assert pool_words(make_facts(feeders=(FeederFacts(feeder="c07", limit_w=None),)), {}).limit_w is None
    nearest = (FeederFacts(feeder="c07", limit_w=None), FeederFacts(feeder="grid", limit_w=1_000_000.0))
    assert pool_words(make_facts(feeders=nearest), {}).limit_w == 1_000_000


STRANDED: dict[str, Any] = {"is_gated": False, "aimed_at": "n1"}
READY_CASES = [
    ("AuthorityTooLow", {"below_control": "advise"}, {}, "swingctl authority set"),
    ("SiteDiffers", {}, {"frozen": "SiteDiffers: pool h100-c07 is of site tx2"}, "is of site tx2"),
    ("Advisory", {}, {"frozen": "Advisory: pool plans and changes nothing; set spec.mode to Auto"}, "spec.mode"),
    ("LockedOut", {}, {"lockout": "ada: fan swap"}, "n1/gpus by ada: fan swap"),
    ("GpusUnsupported", {}, {"blind": {Blindness.GPUS_UNSUPPORTED: "pod a/b holds MIG-1, a MIG slice"}}, "MIG slice"),
    (
        "NodeRejectsPods",
        {},
        {"rejected": Rejected(count=3, last_s=0.0, reason="UnexpectedAdmissionError: no device")},
        "n1 could not start 3 pods in a row .UnexpectedAdmissionError",
    ),
    ("MinersNotMade", {}, {"no_miners": "there is no PodTemplate miner in namespace miners: create it"}, "create it"),
    (
        "ReserveKept",
        {},
        {"pods": (make_pod("lost", lifted_unix_s=NOW_UNIX_S - 60.0, unschedulable="0/9 nodes", **STRANDED),)},
        "customers/lost .* its watts stay reserved. Delete it",
    ),
    (
        "PodUnschedulable",
        {},
        {
            "pods": (
                make_pod("late", lifted_unix_s=NOW_UNIX_S - 9.0, unschedulable="0/9 nodes", owner_uid="r", **STRANDED),
            )
        },
        "customers/late .* finds no place .0/9 nodes.",
    ),
    ("FlipsFailed", {}, {"failed_flips": ("f-1-2-0",)}, "flip f-1-2-0 failed"),
]


@pytest.mark.parametrize(("reason", "of_pool", "of_bank", "words"), READY_CASES, ids=[case[0] for case in READY_CASES])
def test_trouble_is_told_as_ready_s_reason(
    reason: str, of_pool: dict[str, Any], of_bank: dict[str, Any], words: str
) -> None:
    """One bank in trouble is enough, and the words name it; the sound one beside it is not named."""
    told = ready(make_facts(make_bank("n1", **of_bank), make_bank("n2"), **of_pool))
    assert (told.truth, told.reason) == (Truth.FALSE, reason)
    assert re.search(words, told.message), told.message
    assert "n2" not in told.message


def test_pool_that_no_bank_names_is_told_what_to_write() -> None:
    """Somebody made a pool and forgot the site file."""
    told = ready(PoolFacts(pool=POOL, epoch=1, now_unix_s=NOW_UNIX_S))
    assert (told.truth, told.reason) == (Truth.FALSE, "NoBank")
    assert 'pool = "h100-c07"' in told.message


def test_first_trouble_is_the_reason_and_the_others_are_named() -> None:
    """A frozen bank is mended first; the failed flip is not forgotten."""
    told = ready(make_facts(make_bank(frozen="NodeMissing: there is no node n1", failed_flips=("f",))))
    assert told.reason == "NodeMissing"
    assert told.message.endswith("Besides: FlipsFailed")


@pytest.mark.parametrize(
    "pod",
    [
        make_pod(lifted_unix_s=NOW_UNIX_S - 2.0, unschedulable="0/9 nodes", owner_uid="r", **STRANDED),
        make_pod(lifted_unix_s=NOW_UNIX_S - 20.0, **STRANDED),
        running_pod(unschedulable="once"),
        make_pod(lifted_unix_s=NOW_UNIX_S - 60.0, unschedulable="0/9 nodes", is_leaving=True, **STRANDED),
    ],
    ids=["just let go", "without an owner and in time", "bound", "leaving"],
)
def test_pod_on_its_way_is_no_trouble(pod: ClusterPod) -> None:
    """The scheduler finds no place for a moment whenever a miner still leaves."""
    assert ready(make_facts(make_bank(pods=(pod,)))).truth is Truth.TRUE


def test_owned_pod_that_finds_no_place_keeps_no_reserve() -> None:
    """However late it is: it is evicted, and its owner makes it again behind the gate."""
    pod = make_pod("late", lifted_unix_s=NOW_UNIX_S - 600.0, unschedulable="0/9 nodes", owner_uid="r", **STRANDED)
    assert ready(make_facts(make_bank(pods=(pod,)))).reason == "PodUnschedulable"


def test_two_rejections_are_not_yet_a_trouble() -> None:
    """A node that failed twice rests by itself."""
    assert ready(make_facts(make_bank(rejected=Rejected(count=2, last_s=0.0, reason="x")))).truth is Truth.TRUE


def test_limit_that_is_passed_names_its_feeder() -> None:
    """Whichever feeder above the banks it is."""
    feeders = (FeederFacts(feeder="c07", limit_w=60_000.0), FeederFacts(feeder="grid", limit_w=9e5, excess_w=10.0))
    told = within_limit(make_facts(feeders=feeders))
    assert (told.truth, told.reason) == (Truth.FALSE, "OverLimit")
    assert "grid (limit 900.0 kW)" in told.message and "c07" not in told.message


def test_bank_that_draws_more_than_it_was_granted_is_named() -> None:
    """It outranks a limit that is passed, for it is why."""
    over = FeederFacts(feeder="c07", limit_w=60_000.0, excess_w=10.0)
    told = within_limit(make_facts(make_bank(is_overdrawing=True), make_bank("n2"), feeders=(over,)))
    assert (told.truth, told.reason) == (Truth.FALSE, "DrawsTooMuch")
    assert "n1/gpus" in told.message and "n2/gpus" not in told.message


@pytest.mark.parametrize("condition", [within_limit, agents_reporting])
def test_pool_without_banks_says_unknown_of_what_it_cannot_know(condition: Any) -> None:
    """Neither true nor false would be true."""
    assert condition(PoolFacts(pool=POOL, epoch=1, now_unix_s=NOW_UNIX_S)).truth is Truth.UNKNOWN


DEMAND_CASES = [
    ("NoWatts", make_pod(), {"barred": Barred(bar=Bar.NO_WATTS, words="feeder c07 is full")}, "feeder c07 is full"),
    ("Dwell", make_pod(), {"barred": Barred(bar=Bar.DWELL, words="mined for less than dwellMining")}, "dwellMining"),
    ("Pinned", make_pod(), {"barred": Barred(bar=Bar.PINNED, words="pinned by ada")}, "ada"),
    ("NodeRests", make_pod(), {"is_resting": True}, "node n1"),
    ("PoolNotReady", make_pod(), {"frozen": "Advisory: x"}, "condition Ready"),
    ("GangUnsupported", make_pod(gang="JobSet starts its pods together"), {}, "JobSet"),
    ("QueueUnsupported", make_pod(queue="gold"), {}, "queue gold"),
    ("NoFit", make_pod(node_selector={"zone": "b"}), {}, "node n1 has no label zone=b"),
    ("NoFit", make_pod(gpu_count=8), {}, "asks for 8 GPUs; n1 has 4"),
    ("Full", make_pod(gpu_count=3), {}, "no node has 3 GPUs"),
    ("Overdue", make_pod(made_unix_s=NOW_UNIX_S - 61.0), {}, "swingctl plan show"),
]


@pytest.mark.parametrize(
    ("reason", "pod", "of_bank", "words"), DEMAND_CASES, ids=[f"{c[0]}-{c[1].gpu_count}" for c in DEMAND_CASES]
)
def test_pod_that_waits_is_told_why(reason: str, pod: ClusterPod, of_bank: dict[str, Any], words: str) -> None:
    """Its name, its size and the obstacle."""
    told = demand(make_facts(make_bank(**of_bank), waiting=(pod,)))
    assert (told.truth, told.reason) == (Truth.FALSE, reason)
    assert "customers/chat" in told.message and words in told.message


def test_pod_on_its_way_is_served_and_one_whose_flip_lacks_watts_is_not() -> None:
    """A flip that waits for watts is why its pod waits."""
    pod = make_pod(made_unix_s=NOW_UNIX_S - 20.0)
    coming = demand(make_facts(waiting=(pod,), arriving={pod.ref: ""}))
    assert (coming.truth, coming.reason) == (Truth.TRUE, "Arriving")
    held_up = demand(make_facts(waiting=(pod,), arriving={pod.ref: "its flip waits for watts (NoHeadroom)"}))
    assert (held_up.truth, held_up.reason) == (Truth.FALSE, "NoWatts")
    assert "NoHeadroom" in held_up.message


def test_large_pod_that_has_a_place_in_line_is_on_its_way() -> None:
    """GPUs of one node are kept for it; without that, no node has room."""
    pod = make_pod(gpu_count=3)
    assert demand(make_facts(waiting=(pod,), in_line=frozenset({pod.ref}))).reason == "Arriving"
    assert demand(make_facts(waiting=(pod,))).reason == "Full"


def test_who_should_have_come_by_now_is_told_after_who_cannot() -> None:
    """Why nobody fetches it is the least known of the two."""
    late = make_pod("late", made_unix_s=NOW_UNIX_S - 600.0)
    told = demand(make_facts(waiting=(late, make_pod("odd", node_selector={"zone": "b"}))))
    assert told.reason == "NoFit"
    assert told.message.index("customers/odd") < told.message.index("customers/late")


def test_workload_that_rests_is_why_its_pod_waits_unless_something_else_is_too() -> None:
    """Its pods did not get ready; where their node rejected them, that is what has to be mended."""
    pod = make_pod()
    resting = {pod.ref: "3 of its workload did not get ready (ImagePullBackOff)"}
    told = demand(make_facts(waiting=(pod,), resting=resting))
    assert (told.truth, told.reason) == (Truth.FALSE, "NotReady")
    assert "ImagePullBackOff" in told.message
    assert demand(make_facts(make_bank(is_resting=True), waiting=(pod,), resting=resting)).reason == "NodeRests"


def test_of_several_banks_the_obstacle_that_ends_first_is_told() -> None:
    """One node is full, the other inside its dwell: it comes when that is over."""
    banks = (
        make_bank("n1", barred=Barred(bar=Bar.FULL, words="every GPU serves")),
        make_bank("n2", barred=Barred(bar=Bar.DWELL, words="in a while")),
    )
    assert demand(make_facts(*banks, waiting=(make_pod(),))).reason == "Dwell"


def test_each_obstacle_is_told_with_its_own_pods() -> None:
    """Two pods that want what no node has do not hide the one that lacks watts."""
    lacking = Barred(bar=Bar.NO_WATTS, words="feeder c07 is full")
    odd = tuple(make_pod(name, node_selector={"zone": "b"}) for name in ("odd1", "odd2"))
    told = demand(make_facts(make_bank(barred=lacking), waiting=(*odd, make_pod())))
    assert told.reason == "NoWatts"
    first, second = told.message.split("; pods ")
    assert "customers/chat" in first and "odd" not in first
    assert "customers/odd1, customers/odd2 (2 GPUs)" in second


def test_pods_of_one_workload_cost_one_look() -> None:
    """Hundreds may wait at hundreds of banks, and the loop that looks is the one that protects."""
    waiting = [make_pod(f"chat-{number}") for number in range(50)] + [make_pod("big", gpu_count=2)]
    fits = find_fits(waiting, [make_bank(f"n{number}") for number in range(50)])
    assert len({id(fit) for fit in fits.values()}) == 2
    assert all(len(fit.banks) == 50 for fit in fits.values())


def test_nobody_waits_where_nobody_is_served() -> None:
    """Pods of namespaces that the pool does not serve, or that are not enrolled, are not its business."""
    picky = replace(POOL, namespace_needs=(LabelNeed(key="tier", operator="In", values=("gold",)),))
    for facts in (
        make_facts(pool=picky, waiting=(make_pod(),)),
        make_facts(waiting=(make_pod(namespace="strangers"),)),
        make_facts(),
    ):
        told = demand(facts)
        assert (told.truth, told.reason) == (Truth.TRUE, "Served")


def test_pod_that_fits_another_pool_is_not_this_one_s() -> None:
    """Only who fits nowhere at all is told everywhere."""
    here, there = make_bank("n1"), make_bank("n2")
    assert here.cluster_node is not None
    there = replace(there, cluster_node=replace(here.cluster_node, name="n2", labels={"zone": "b"}))
    waiting = (make_pod("theirs", node_selector={"zone": "b"}), make_pod("nobodys", node_selector={"zone": "c"}))
    fits = [find_fits(waiting, (bank,)) for bank in (here, there)]
    homeless = find_homeless(waiting, fits)
    assert homeless == {waiting[1].ref}
    counted = [
        [pod.name for pod in waiting_here(make_facts(bank, waiting=waiting, homeless=homeless), fit)]
        for bank, fit in zip((here, there), fits, strict=True)
    ]
    assert counted == [["nobodys"], ["theirs", "nobodys"]]


def test_budget_that_keeps_a_pod_is_named_with_its_counts() -> None:
    """And what an operator can change."""
    ref = PodRef(namespace="customers", name="chat-1", uid="u")
    words = "The disruption budget chat needs 3 healthy pods and has 3 currently"
    blocked = {ref: Blocked(since_s=0.0, last_s=0.0, budget="chat", detail=words)}
    told = drain_blocked(make_facts(blocked=blocked))
    assert (told.truth, told.reason) == (Truth.TRUE, "BudgetKeepsPods")
    for named in ("budget customers/chat", "needs 3 healthy pods and has 3", "customers/chat-1", "minAvailable"):
        assert named in told.message
    for_ever = {ref: replace(blocked[ref], budget="", is_for_ever=True)}
    kept = drain_blocked(make_facts(blocked=for_ever))
    assert kept.reason == "SeveralBudgets" and "at evictDeadline it is deleted" not in kept.message
    facts = make_facts(blocked=for_ever)
    deleting = replace(facts, pool=replace(facts.pool, on_blocked=OnBlocked.DELETE))
    assert "never evicted; at evictDeadline it is deleted" in drain_blocked(deleting).message


def test_pod_that_may_not_be_deleted_is_told_with_the_value_that_allows_it() -> None:
    """Only where the pool still asks for deletions; before what the budget would want."""
    ref = PodRef(namespace="customers", name="chat-1", uid="u")
    kept = Blocked(since_s=0.0, last_s=0.0, budget="chat", detail="", why_not_deleted='cannot delete resource "pods"')
    facts = make_facts(blocked={ref: kept})
    told = drain_blocked(replace(facts, pool=replace(facts.pool, on_blocked=OnBlocked.DELETE)))
    assert (told.truth, told.reason) == (Truth.TRUE, "DeleteForbidden")
    for named in (
        "customers/chat-1",
        "budget customers/chat",
        'cannot delete resource "pods"',
        "controller.mayDeletePods=true",
    ):
        assert named in told.message
    assert drain_blocked(facts).reason == "BudgetKeepsPods"


def test_agent_that_is_silent_is_named_before_a_kubelet_that_is() -> None:
    """A host whose agent is not heard says nothing of its kubelet."""
    blind = make_bank("n2", blind={Blindness.KUBELET_SILENT: "kubelet cannot be asked at /x"})
    told = agents_reporting(make_facts(make_bank("n1", is_silent=True), blind))
    assert (told.truth, told.reason) == (Truth.FALSE, "AgentSilent")
    assert "agent-n1 (node n1)" in told.message and "n2" not in told.message
    told = agents_reporting(make_facts(make_bank("n1"), blind))
    assert (told.truth, told.reason) == (Truth.FALSE, "KubeletSilent")
    assert "n2" in told.message and "cannot be asked at /x" in told.message


GATE_CASES = [
    ("UngatedPods", {"pods": (running_pod("wild", lifted_unix_s=None),)}, "customers/wild .node n1"),
    ("StaticPods", {"pods": (running_pod("static", lifted_unix_s=None, owner_kind="Node"),)}, "manifests"),
    (
        "UngatedPods",
        {"pods": (running_pod("miner-n1-0", namespace="miners", slot=0, miner_pool="other", lifted_unix_s=None),)},
        "miners/miner-n1-0",
    ),
    (
        "UnnamedProcess",
        {"unnamed": ("no pod holds it; processes on GPU-1: 2",)},
        "1 units of GPUs. Node n1: .*processes on GPU-1: 2",
    ),
]


@pytest.mark.parametrize(
    ("reason", "of_bank", "words"), GATE_CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(GATE_CASES)]
)
def test_who_runs_without_us_breaks_the_gate(reason: str, of_bank: dict[str, Any], words: str) -> None:
    """It is named with its node."""
    told = gate_enforced(make_facts(make_bank(**of_bank)))
    assert (told.truth, told.reason) == (Truth.FALSE, reason)
    assert re.search(words, told.message), told.message


@pytest.mark.parametrize(
    "pod",
    [
        running_pod(),
        running_pod(lifted_unix_s=None, flip="f-1-2-3"),
        running_pod("miner-n1-0", namespace="miners", slot=0, miner_pool=POOL.name, lifted_unix_s=None),
        make_pod("going", aimed_at="n1", is_gated=False),
    ],
    ids=["let go", "marked by a flip", "our miner", "not bound"],
)
def test_who_was_let_go_does_not(pod: ClusterPod) -> None:
    """A miner needs no gate: we make it when it is granted."""
    assert gate_enforced(make_facts(make_bank(pods=(pod,)))).truth is Truth.TRUE


@pytest.mark.parametrize(
    ("states", "truth", "reason"),
    [
        ([], Truth.FALSE, "NotCurtailed"),
        (["SCHEDULED"], Truth.FALSE, "Announced"),
        (["CURTAILED"], Truth.TRUE, "Met"),
        (["CURTAILED", "SHEDDING"], Truth.TRUE, "Shedding"),
        (["SCHEDULED", "CURTAILED"], Truth.TRUE, "Met"),
    ],
)
def test_curtailment_is_told_with_how_far_it_is(states: list[str], truth: Truth, reason: str) -> None:
    """Met only when every one that has begun is proven."""
    ordered = tuple(
        CurtailmentFacts(id=f"c-{n}", feeder="grid", limit_w=5e5, state=state, until_unix_s=NOW_UNIX_S)
        for n, state in enumerate(states)
    )
    told = curtailed(make_facts(curtailments=ordered))
    assert (told.truth, told.reason) == (truth, reason)
    assert not states or "feeder grid to 500.0 kW" in told.message


def test_words_are_as_the_definition_in_the_cluster_allows() -> None:
    """However many pods and nodes are in trouble: reasons are one word of at most 64 characters, messages at most 4,096."""
    pods = tuple(running_pod(f"wild-{'x' * 200}-{n}", lifted_unix_s=None) for n in range(200))
    waiting = tuple(make_pod(f"p-{'y' * 230}-{n}", node_selector={"z": str(n)}) for n in range(200))
    banks = tuple(make_bank(f"n{n}", pods=pods, frozen=f"Reason{n}: {'w' * 150}", is_silent=True) for n in range(200))
    facts = make_facts(*banks, waiting=waiting)
    fits = find_fits(waiting, banks)
    words = pool_words(replace(facts, homeless=find_homeless(waiting, [fits])), fits)
    for each in words.conditions:
        assert re.fullmatch(r"[A-Z][A-Za-z]{0,63}|Reason0", each.reason), each.reason
        assert len(each.message) <= 4096, (each.type, len(each.message))


def test_every_reason_is_in_the_manual_and_the_manual_knows_no_other() -> None:
    """Who looks a reason up finds it; a reason that is gone is not looked for."""
    repository = Path(__file__).parents[3]
    told = [repository / "controller" / "swingbus_controller" / path for path in _TELLING]
    words = {
        node.value.partition(":")[0]
        for path in told
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    reasons = {word for word in words if re.fullmatch(r"([A-Z][a-z]+)+", word)} - _NO_REASONS
    manual = (repository / "docs" / "kubernetes.md").read_text()
    section = manual.partition("## What a pool says")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([A-Z][A-Za-z]+)[`=]", section)) - _CONDITIONS
    assert len(reasons) > 50
    assert sorted(reasons - named - _CONDITIONS) == []
    assert sorted(named - reasons) == []


_TELLING = (
    "domain/cluster/pool_conditions.py",
    "domain/cluster/pool_status.py",
    "domain/cluster/pool_demand.py",
    "domain/cluster/pool_facts.py",
    "domain/cluster/pool_checks.py",
    "app/pool_stories.py",
)
_CONDITIONS = {"Ready", "WithinLimit", "DemandServed", "DrainBlocked", "AgentsReporting", "GateEnforced", "Curtailed"}
# Kinds and actions; and a pool that does not exist says nothing.
_NO_REASONS = {
    "Node",
    "Pod",
    "CapacityPool",
    "LiftGate",
    "Evict",
    "DeleteMiner",
    "MakeMiner",
    "Flip",
    "PoolMissing",
    "Watch",
    "Delete",
}
# Kubernetes' own words for who takes a pod away; ours are beside them.
_NO_REASONS |= {"PreemptionByScheduler", "DeletionByTaintManager", "TerminationByKubelet"}


def test_every_command_that_words_name_exists() -> None:
    """Whoever is told to run something can run it."""
    told = Path(__file__).parents[3] / "controller" / "swingbus_controller"
    texts = [
        path.read_text() for room in ("domain/cluster", "domain/flips", "app") for path in (told / room).glob("*.py")
    ]
    named = {tuple(found) for text in texts for found in re.findall(r"swingctl ([a-z]+) ([a-z-]+)", text)}
    assert len(named) >= 8
    nouns = _choices(build_parser())
    assert [each for each in sorted(named) if each[1] not in _choices(nouns[each[0]])] == []


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    choices: dict[str, argparse.ArgumentParser] = action.choices
    return choices
