"""What GPUs of a bank count as, and that the words of the agent are understood as the agent means them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.clock import SystemClock
from swingbus_agent.adapters.pod_workloads.kubelet import KubeletPods
from swingbus_agent.domain.answers import Unavailable
from swingbus_agent.domain.pod_holding import HeldDevice, PodTenants, find_refusal
from swingbus_controller.domain.cluster.pool_facts import Blindness, why_blind
from swingbus_controller.domain.cluster.pool_words import GpuCounts
from swingbus_controller.domain.fleet.orders import UnitHolding
from swingbus_controller.domain.flips.boot_axis import WALL
from swingbus_controller.domain.flips.flip import Flip, new_flip
from swingbus_controller.domain.flips.gpu_shares import Share, blind_words, gpu_counts, unit_shares, unnamed_units
from swingbus_controller.domain.flips.placement import BankModel, Charge, Holdings, bank_model
from swingbus_controller.domain.planning.points import DeviceKind
from swingbus_controller.domain.planning.policy import FlipTimes
from tests.fakes.pod_site import make_pod_site

TENANTS = PodTenants(
    resource="nvidia.com/gpu", miner_namespace="miners", mining_workload="miner", inference_workload="llm"
)


def make_model() -> BankModel:
    """Return the model of a bank of four GPUs that move one by one."""
    site = make_pod_site()
    declared = next(bank for bank in site.banks if bank.is_in_cluster)
    return bank_model(declared, site.classes[declared.device_class])


def make_holding(unit: int, holder: str = "", **more: object) -> UnitHolding:
    """Return a unit as an agent reports it, free where nobody is named."""
    workload = "miner" if holder.startswith("miners/") else "llm" if holder else ""
    holding = UnitHolding(
        unit=unit, holders=(holder,) if holder else (), workload=workload, has_process=bool(holder), reason=""
    )
    return replace(holding, **more)  # type: ignore[arg-type]


def make_flip(model: BankModel, unit: int, origin: str, aim: str) -> Flip:
    """Return an open flip of one unit."""
    return new_flip(
        id="f",
        bank=model.name,
        kind=DeviceKind.GPU,
        count=1,
        unit_ids=(str(unit),),
        origin=model.points[origin],
        aim=model.points[aim],
        reason="test",
        author="ada",
        now_s=0.0,
        axis=WALL,
        times=FlipTimes(),
    )


def test_each_unit_counts_once_by_who_is_seen_on_it() -> None:
    """A pod of one tenant, of the other, and nobody at all."""
    model = make_model()
    seen = [make_holding(0, "customers/chat"), make_holding(1, "miners/m"), make_holding(2), make_holding(3)]
    shares = unit_shares(model, None, (), seen)
    assert shares == [Share.INFERENCE, Share.MINING, Share.STANDBY, Share.STANDBY]
    assert gpu_counts(model, shares) == GpuCounts(total=4, inference=1, mining=1, standby=2)


def test_unit_in_a_flip_of_tenants_flips_and_in_a_flip_of_caps_does_not() -> None:
    """Another cap for the same tenant is no news for an operator who counts tenants."""
    model = make_model()
    seen = [make_holding(unit, "customers/chat") for unit in range(4)]
    flips = [make_flip(model, 0, "serve", "standby"), make_flip(model, 1, "serve", "serve-capped")]
    assert unit_shares(model, None, flips, seen)[:2] == [Share.FLIPPING, Share.INFERENCE]


def test_what_nobody_can_say_is_unknown_and_never_standby() -> None:
    """No report; a process without a pod; pods of both tenants; a silent kubelet even inside a flip; a failed flip's charge."""
    model = make_model()
    assert unit_shares(model, None, (), ()) == [Share.UNKNOWN] * 4
    silent = make_holding(3, "customers/chat", reason="kubelet cannot be asked at /x: gone; last seen there: a")
    seen = [make_holding(0, has_process=True), make_holding(1, "a/b", workload=""), make_holding(2), silent]
    charge = Charge(flip="f-9", point="standby", count=1, claim_w=700.0, units=(2,))
    holdings = Holdings(bank=model.name, placements=(), charges=(charge,))
    shares = unit_shares(model, holdings, [make_flip(model, 3, "serve", "standby")], seen)
    assert shares == [Share.UNKNOWN] * 4


def test_process_without_a_pod_is_told_unless_a_flip_waits_for_it_or_nobody_can_say() -> None:
    """With the agent's words."""
    model = make_model()
    words = "no pod holds it; processes on GPU-1: 2"
    seen = [
        make_holding(0, has_process=True, reason=words),
        make_holding(1, has_process=True, reason=words),
        make_holding(2, has_process=True, reason="kubelet cannot be asked at /x: gone"),
        make_holding(3, "miners/m"),
    ]
    assert unnamed_units(seen, [make_flip(model, 1, "mine", "serve")]) == {0: words}
    assert blind_words(seen) == {Blindness.KUBELET_SILENT: "kubelet cannot be asked at /x: gone"}


@pytest.mark.parametrize(
    "device",
    [
        HeldDevice(namespace="a", pod="b", resource="nvidia.com/mig-1g.10gb", device="MIG-1"),
        HeldDevice(namespace="a", pod="b", resource="nvidia.com/gpu.shared", device="GPU-1::0"),
        HeldDevice(namespace="a", pod="b", resource="", device="gpu-0", claim_driver="gpu.nvidia.com"),
    ],
    ids=["MIG", "time slice", "DRA"],
)
def test_agent_s_refusal_of_parts_of_gpus_is_understood(device: HeldDevice) -> None:
    """Its words cross the link as text: were they changed, this says so."""
    words = find_refusal([device], TENANTS)
    assert why_blind(words) is Blindness.GPUS_UNSUPPORTED, words


async def test_agent_s_words_on_a_kubelet_that_is_away_are_understood(tmp_path: Path) -> None:
    """As the real adapter says them."""
    lister = KubeletPods(tmp_path / "none.sock", timeout_s=1.0, clock=SystemClock())
    answer = await lister.list_held()
    await lister.aclose()
    assert isinstance(answer, Unavailable)
    assert why_blind(answer.reason) is Blindness.KUBELET_SILENT, answer.reason


@pytest.mark.parametrize(
    "words", ["", "held by customers/chat", "waits for a pod to be given these GPUs", "its workload lives"]
)
def test_agent_s_other_words_say_that_it_sees(words: str) -> None:
    """Nothing is hidden by them."""
    assert why_blind(words) is None
