"""Which pods may come where, and with which moves: nobody is demand twice, nobody is split, nobody is overtaken by who asks for less."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod, LabelNeed, Pool
from swingbus_controller.domain.cluster.placing import BankRoom, place_pods

NAMESPACES = {"customers": {"tier": "gold"}, "others": {"tier": "tin"}}


def a_pool(*, serves: str = "") -> Pool:
    """Return a pool that serves namespaces of one tier, or all."""
    needs = (LabelNeed(key="tier", operator="In", values=(serves,)),) if serves else ()
    return Pool(
        name="pool",
        uid="u",
        revision="1",
        generation=1,
        site="north",
        container="c",
        node_selector=MappingProxyType({}),
        namespace_needs=needs,
    )


def a_pod(
    name: str, *, gpu_count: int = 1, priority: int = 0, namespace: str = "customers", **more: object
) -> ClusterPod:
    """Return a pod that waits behind our gate."""
    return ClusterPod(
        namespace=namespace,
        name=name,
        uid=f"uid-{name}",
        revision="1",
        gpu_count=gpu_count,
        priority=priority,
        is_gated=True,
        **more,  # type: ignore[arg-type]
    )


def a_room(
    bank: str, *, used: int = 0, free: int = 4, idle: int = 0, inference_class: str = "h100", serves: str = ""
) -> BankRoom:
    """Return a bank of four GPUs in units of one."""
    return BankRoom(
        bank=bank,
        inference_class=inference_class,
        unit_size=1,
        device_count=4,
        node=ClusterNode(name=bank, uid=bank, gpu_count=4),
        pool=a_pool(serves=serves),
        used_count=used,
        free_count=free,
        idle_count=idle,
    )


@st.composite
def rooms(draw: st.DrawFn) -> list[BankRoom]:
    """Return banks with any room left."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        used = draw(st.integers(0, 4))
        free = draw(st.integers(0, 4 - used))
        found.append(
            a_room(
                f"b{number}",
                used=used,
                free=free,
                idle=draw(st.integers(0, free)),
                inference_class=draw(st.sampled_from(["h100", "h200"])),
                serves=draw(st.sampled_from(["", "gold"])),
            )
        )
    return found


pods = st.lists(
    st.builds(
        lambda gpus, priority, namespace: (gpus, priority, namespace),
        st.sampled_from([1, 1, 1, 2, 4, 5]),
        st.integers(0, 2),
        st.sampled_from(["customers", "others", "unknown"]),
    ),
    max_size=12,
).map(lambda drawn: [a_pod(f"p{n}", gpu_count=g, priority=p, namespace=s) for n, (g, p, s) in enumerate(drawn)])


@settings(max_examples=400)
@given(pods, rooms())
def test_a_pod_is_demand_once_or_is_told_why_it_fits_nowhere(waiting: list[ClusterPod], banks: list[BankRoom]) -> None:
    """Demand is what is used and what fits; the rest has a reason; a bank is asked for no more than it has."""
    placing = place_pods(waiting, banks, NAMESPACES)
    fitting = [pod for pod in waiting if pod.ref not in placing.unfit]
    used = sum(bank.used_count for bank in banks)
    assert sum(placing.demand.values()) == used + sum(pod.gpu_count for pod in fitting)
    assert all(why for why in placing.unfit.values())
    assert {pod.ref for pod in waiting if pod.namespace == "unknown" or pod.gpu_count > 4} <= placing.unfit.keys()
    for bank in banks:
        assert bank.used_count <= placing.at_most[bank.bank] <= bank.used_count + bank.free_count
        line = placing.line[bank.bank]
        assert line == sorted(line, key=lambda pod: pod.rank)
        assert not {pod.ref for pod in line} & placing.unfit.keys()
        assert all(bank.pool.serves(NAMESPACES[pod.namespace]) for pod in line)


@settings(max_examples=400)
@given(pods, rooms())
def test_a_pod_is_in_line_for_one_class_and_a_big_one_for_one_bank(
    waiting: list[ClusterPod], banks: list[BankRoom]
) -> None:
    """Who asks for several units has one bank kept for it, and what is kept fits there."""
    placing = place_pods(waiting, banks, NAMESPACES)
    classes: dict[str, set[str]] = {}
    banks_of: Counter[str] = Counter()
    for bank in banks:
        kept = 0
        for pod in placing.line[bank.bank]:
            classes.setdefault(pod.name, set()).add(bank.inference_class)
            banks_of[pod.name] += 1
            kept += pod.gpu_count if pod.gpu_count > 1 else 0
        assert kept <= bank.free_count
    assert all(len(each) == 1 for each in classes.values())
    assert all(banks_of[pod.name] <= 1 for pod in waiting if pod.gpu_count > 1)


@settings(max_examples=200)
@given(pods, rooms(), st.randoms())
def test_the_order_of_what_is_told_never_matters(
    waiting: list[ClusterPod], banks: list[BankRoom], chance: object
) -> None:
    """The same pods and banks in another order give the same answer."""
    other_pods, other_banks = list(waiting), list(banks)
    chance.shuffle(other_pods)  # type: ignore[attr-defined]
    chance.shuffle(other_banks)  # type: ignore[attr-defined]
    assert place_pods(waiting, banks, NAMESPACES) == place_pods(other_pods, other_banks, NAMESPACES)


def test_gangs_queues_and_cordons_are_told_as_such() -> None:
    """Each pod that is left behind the gate says what stands in its way."""
    waiting = [a_pod("gang", gang="LeaderWorkerSet starts its pods together"), a_pod("kueue", queue="q")]
    waiting.append(a_pod("picky", node_selector={"zone": "z"}))
    why = place_pods(waiting, [a_room("b")], NAMESPACES).unfit
    assert why[waiting[0].ref].startswith("GangUnsupported")
    assert why[waiting[1].ref].startswith("QueueUnsupported")
    assert why[waiting[2].ref] == "node b has no label zone=z"


def test_a_big_pod_is_sent_where_most_is_idle() -> None:
    """Two banks have room for it, in one miners would have to leave: it is kept a place in the other."""
    big = a_pod("big", gpu_count=4)
    placing = place_pods([big], [a_room("b0", idle=1), a_room("b1", idle=4)], NAMESPACES)
    assert (placing.line["b0"], placing.line["b1"]) == ([], [big])
