"""What a driver must do whose workloads are pods, against a kubelet's socket: what every driver promises, and what only pods can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from swingbus.faults import WrongState
from swingbus_agent.domain.answers import Hung, Unavailable
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.workload import WorkloadPhase, WorkloadStatus
from tests.fakes.kubelet import running_kubelet
from tests.fakes.workload_rigs import PROMISES, UNITS, PodRig, Promise, name_of, until


@pytest.fixture
async def rig() -> AsyncIterator[PodRig]:
    """Return a rig with a kubelet that answers."""
    async with running_kubelet() as kubelet:
        rig = PodRig(kubelet)
        yield rig
        await rig.lister.aclose()


async def look(rig: PodRig, unit: str = UNITS[0]) -> WorkloadStatus:
    """A second passes; look at one unit."""
    rig.clock.now_s += 1.0
    return (await rig.driver.observe())[unit]


@pytest.mark.parametrize("promise", PROMISES, ids=name_of)
async def test_driver_keeps_what_every_driver_promises(rig: PodRig, promise: Promise) -> None:
    """What holds whoever starts and ends the workloads."""
    await promise(rig)


async def test_pod_that_nobody_asked_for_is_seen_as_it_is(rig: PodRig) -> None:
    """An agent that starts beside running pods knows them at the first look: miners by their namespace, all others infer."""
    rig.kubelet.hold("mining", "m-1", "GPU-0")
    rig.kubelet.hold("customers", "llm-1", "GPU-1")
    first, second = await look(rig, UNITS[0]), await look(rig, UNITS[1])
    assert (first.phase, first.workload, first.mode) == (WorkloadPhase.READY, "miner", Mode.MINING)
    assert (second.phase, second.workload, second.mode) == (WorkloadPhase.READY, "server", Mode.INFERENCE)
    assert (first.holders, second.holders) == (("mining/m-1",), ("customers/llm-1",))


async def test_before_the_first_answer_nothing_is_free(rig: PodRig) -> None:
    """Not asked is not known: nothing may be started on such a unit."""
    with pytest.raises(WrongState):
        await rig.driver.start(UNITS[0], "server")
    assert (await look(rig)).phase is WorkloadPhase.IDLE
    await rig.driver.start(UNITS[0], "server")


async def test_kubelet_that_is_gone_is_unknown_and_back_within_seconds(rig: PodRig) -> None:
    """Pods go on without their kubelet: units are held and unknown, free ones too; what was there is told."""
    rig.kubelet.hold("mining", "m-1", "GPU-0")
    assert (await look(rig)).phase is WorkloadPhase.READY
    await rig.kubelet.stop()
    for unit in UNITS:
        status = await look(rig, unit)
        assert status.phase is WorkloadPhase.UNKNOWN and status.has_process
    status = await look(rig)
    assert "is kubelet running" in status.reason and "mining/m-1" in status.reason and status.workload == "miner"
    with pytest.raises(WrongState):
        await rig.driver.start(UNITS[1], "server")
    await rig.kubelet.start()
    assert (await until(rig.driver, UNITS[0], WorkloadPhase.READY)).holders == ("mining/m-1",)


async def test_unit_that_is_known_again_is_idle_from_then_on(rig: PodRig) -> None:
    """Who held it meanwhile is not known, so a process list read before the answer is no evidence."""
    idle = await look(rig)
    assert idle.since_boottime_s == rig.clock.now_s
    assert (await look(rig)).since_boottime_s == idle.since_boottime_s
    rig.kubelet.refuses = True
    await look(rig)
    rig.kubelet.refuses = False
    assert (await look(rig)).since_boottime_s == rig.clock.now_s


async def test_hung_kubelet_costs_its_deadline_now_and_then(rig: PodRig) -> None:
    """Late is unknown, since the first late answer; it is not asked at every look, and known again when it answers."""
    await rig.lister.aclose()
    rig = PodRig(rig.kubelet, timeout_s=0.2)
    rig.kubelet.may_answer.clear()
    async with asyncio.timeout(2.0):
        status = await look(rig)
    assert (
        status.phase is WorkloadPhase.UNKNOWN and status.has_process and "does not answer within 0.2 s" in status.reason
    )
    began = rig.clock.boottime_ns()
    asked = rig.kubelet.list_count
    for _ in range(3):
        assert (await look(rig)).phase is WorkloadPhase.UNKNOWN
    assert rig.kubelet.list_count == asked
    answer = await rig.lister.list_held()
    assert isinstance(answer, Hung) and answer.since_boottime_ns == began
    rig.kubelet.may_answer.set()
    rig.clock.now_s += 10.0
    assert (await look(rig)).phase is WorkloadPhase.IDLE
    await rig.lister.aclose()


async def test_refused_call_is_unavailable_with_kubelets_words(rig: PodRig) -> None:
    """A kubelet answers only so many calls a second: an error is not an empty list."""
    rig.kubelet.refuses = True
    answer = await rig.lister.list_held()
    assert isinstance(answer, Unavailable) and "rejected by rate limit" in answer.reason


async def test_burst_of_other_callers_is_waited_out(rig: PodRig) -> None:
    """A monitor that asks too often at the same moment makes no unit unknown."""
    rig.kubelet.hold("mining", "m-1", "GPU-0")
    rig.kubelet.refusals_left = 2
    assert (await look(rig)).phase is WorkloadPhase.READY
    assert rig.kubelet.list_count == 3


async def test_pod_that_vanishes_is_idle_from_the_look_that_missed_it(rig: PodRig) -> None:
    """Idle, not free: that it has no process takes a reading after this moment."""
    rig.kubelet.hold("mining", "m-1", "GPU-0")
    before = await look(rig)
    rig.kubelet.let_go("mining", "m-1")
    status = await look(rig)
    assert status.phase is WorkloadPhase.IDLE and not status.has_process
    assert status.since_boottime_s == rig.clock.now_s > before.since_boottime_s


async def test_other_pod_on_the_unit_begins_anew(rig: PodRig) -> None:
    """One miner goes and another comes between two looks: the phase is as old as the holder."""
    rig.kubelet.hold("mining", "m-1", "GPU-0")
    await look(rig)
    rig.kubelet.let_go("mining", "m-1")
    rig.kubelet.hold("mining", "m-2", "GPU-0")
    status = await look(rig)
    assert status.phase is WorkloadPhase.READY and status.since_boottime_s == rig.clock.now_s


async def test_noted_stop_runs_out_where_the_pod_stays(rig: PodRig) -> None:
    """The order may have turned meanwhile: what is there is shown again, and may be told again."""
    rig.kubelet.hold("mining", "m-1", "GPU-0")
    await look(rig)
    await rig.driver.stop(UNITS[0])
    assert (await look(rig)).phase is WorkloadPhase.STOPPING
    rig.clock.now_s += 30.0
    assert (await look(rig)).phase is WorkloadPhase.READY
    await rig.driver.start(UNITS[0], "miner")
    await rig.driver.stop(UNITS[0], grace_s=2.0)
    await rig.driver.stop(UNITS[0], grace_s=50.0)
    assert (await look(rig)).phase is WorkloadPhase.STOPPING
    rig.clock.now_s += 2.0
    assert (await look(rig)).phase is WorkloadPhase.READY


async def test_wish_is_kept_while_pods_come_and_go(rig: PodRig) -> None:
    """A pod that was evicted leaves its unit waiting for the next; only a stop ends the wish."""
    await look(rig)
    await rig.driver.start(UNITS[0], "miner")
    rig.kubelet.hold("mining", "m-1", "GPU-0")
    assert (await look(rig)).phase is WorkloadPhase.READY
    rig.kubelet.let_go("mining", "m-1")
    status = await look(rig)
    assert (status.phase, status.workload, status.has_process) == (WorkloadPhase.STARTING, "miner", False)
    await rig.driver.stop(UNITS[0])
    assert (await look(rig)).phase is WorkloadPhase.IDLE


async def test_slice_on_the_node_makes_every_unit_unknown(rig: PodRig) -> None:
    """Whose GPU a slice lies on is not told; the words name the pod and the way out; without it all is as before."""
    rig.kubelet.hold("mining", "m-1", "GPU-0")
    rig.kubelet.hold("customers", "sliced", "MIG-7a", resource="nvidia.com/mig-1g.10gb")
    for unit in UNITS:
        status = await look(rig, unit)
        assert status.phase is WorkloadPhase.UNKNOWN and status.has_process
        assert "customers/sliced" in status.reason and "whole GPUs only" in status.reason
    rig.kubelet.let_go("customers", "sliced")
    assert (await look(rig)).phase is WorkloadPhase.READY
    assert (await look(rig, UNITS[1])).phase is WorkloadPhase.IDLE


async def test_claim_is_refused_and_a_foreign_resource_is_not(rig: PodRig) -> None:
    """A GPU by resource claim is refused; a network card, by either way, is nobody's business here."""
    rig.kubelet.hold("customers", "nic", "nic-1", resource="vendor.example/nic", claim_driver="nic.vendor.example")
    assert (await look(rig)).phase is WorkloadPhase.IDLE
    rig.kubelet.hold("customers", "claimant", claim_driver="gpu.nvidia.com")
    status = await look(rig)
    assert status.phase is WorkloadPhase.UNKNOWN and "DRA" in status.reason
