"""Which pods hold which units: spans, shares, both tenants, pods that have ended, and devices that are no whole GPU."""

from __future__ import annotations

import pytest

from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.pod_holding import HeldDevice, PodTenants, find_refusal, hold_units, name_some
from swingbus_agent.domain.workload import GpuUnit

TENANTS = PodTenants(
    resource="nvidia.com/gpu", miner_namespace="mining", mining_workload="mining", inference_workload="inference"
)
# Two units of two.
UNITS = [
    GpuUnit(name=f"b/{n}", number=n, gpu_indices=(2 * n, 2 * n + 1), gpu_uuids=(f"GPU-{2 * n}", f"GPU-{2 * n + 1}"))
    for n in range(2)
]


def held(namespace: str, pod: str, *devices: str, resource: str = "nvidia.com/gpu") -> list[HeldDevice]:
    """Return devices of one pod."""
    return [HeldDevice(namespace=namespace, pod=pod, resource=resource, device=device) for device in devices]


def test_unit_without_pods_has_no_holder() -> None:
    """Which is all that can be said of it."""
    holding = hold_units(UNITS, [], TENANTS)["b/0"]
    assert (holding.holders, holding.workload, holding.held_count) == ((), None, 0)


def test_one_pod_on_all_of_a_unit_holds_it_and_nothing_else() -> None:
    """A tenant by its namespace; several containers of a pod are one holder."""
    holdings = hold_units(UNITS, [*held("mining", "m", "GPU-0"), *held("mining", "m", "GPU-1")], TENANTS)
    assert (holdings["b/0"].holders, holdings["b/0"].workload, holdings["b/0"].held_count) == (
        ("mining/m",),
        "mining",
        2,
    )
    assert holdings["b/0"].remark == "" and holdings["b/1"].holders == ()
    assert TENANTS.mode_of("mining") is Mode.MINING and TENANTS.mode_of("inference") is Mode.INFERENCE


def test_pod_across_two_units_holds_both_and_says_so() -> None:
    """One GPU of each: neither unit is free before the pod is gone."""
    holdings = hold_units(UNITS, held("ns", "p", "GPU-1", "GPU-2"), TENANTS)
    assert holdings["b/0"].holders == holdings["b/1"].holders == ("ns/p",)
    assert (holdings["b/0"].held_count, holdings["b/1"].held_count) == (1, 1)
    assert "also holds b/1" in holdings["b/0"].remark and "1 of its 2 GPUs" in holdings["b/0"].remark


def test_pod_with_more_gpus_than_a_unit_holds_several_whole() -> None:
    """Four GPUs in units of two: both units, both whole, free together."""
    holdings = hold_units(UNITS, held("ns", "p", "GPU-0", "GPU-1", "GPU-2", "GPU-3"), TENANTS)
    assert [each.held_count for each in holdings.values()] == [2, 2]
    assert "free together" in holdings["b/1"].remark


def test_unit_of_both_tenants_is_neither() -> None:
    """Two pods side by side, or one GPU that is listed for an ended miner and its successor."""
    beside = hold_units(UNITS, [*held("mining", "m", "GPU-0"), *held("ns", "p", "GPU-1")], TENANTS)["b/0"]
    assert beside.workload is None and beside.holders == ("mining/m", "ns/p") and "both tenants" in beside.remark
    twice = hold_units(UNITS, [*held("mining", "ended", "GPU-0"), *held("ns", "p", "GPU-0")], TENANTS)["b/0"]
    assert twice.workload is None and "GPU-0 is listed for several pods" in twice.remark
    assert twice.held_count == 1


def test_ended_pod_of_the_same_tenant_changes_nothing_but_the_remark() -> None:
    """A kubelet before 1.34 lists the ended miner beside the one that took its GPU."""
    holding = hold_units(UNITS, [*held("mining", "m-1", "GPU-0"), *held("mining", "m-2", "GPU-0", "GPU-1")], TENANTS)[
        "b/0"
    ]
    assert (holding.workload, holding.held_count) == ("mining", 2) and "1.34" in holding.remark


def test_gpus_of_no_unit_and_other_resources_are_passed_over() -> None:
    """Another bank's GPU of the same host; a device that only looks like ours."""
    devices = [*held("ns", "p", "GPU-77"), *held("ns", "q", "GPU-0", resource="vendor.example/gpu")]
    assert find_refusal(devices, TENANTS) == ""
    assert all(holding.holders == () for holding in hold_units(UNITS, devices, TENANTS).values())


@pytest.mark.parametrize(
    ("device", "resource", "word"),
    [
        ("MIG-7a", "nvidia.com/mig-1g.10gb", "MIG"),
        ("MIG-7a", "nvidia.com/gpu", "MIG"),
        ("GPU-0::3", "nvidia.com/gpu", "in time"),
        ("GPU-0::3", "nvidia.com/gpu.shared", "in time"),
        ("GPU-0", "nvidia.com/gpu.shared", "in time"),
        ("0", "nvidia.com/gpu", "no GPU's UUID"),
        ("", "nvidia.com/gpu", "without a name"),
    ],
)
def test_what_is_no_whole_gpu_is_refused_with_its_pod(device: str, resource: str, word: str) -> None:
    """MIG by either naming, time slices by either naming, and whatever else a plugin may call its devices."""
    text = find_refusal([*held("ns", "fine", "GPU-1"), *held("ns", "odd", device, resource=resource)], TENANTS)
    assert word in text and "ns/odd" in text and "whole GPUs only" in text


def test_claim_of_the_gpu_driver_is_refused_and_others_are_not() -> None:
    """Resource claims (DRA) name devices of a pool, not UUIDs."""
    claim = HeldDevice(namespace="ns", pod="p", resource="", device="gpu-0", claim_driver="gpu.nvidia.com")
    other = HeldDevice(namespace="ns", pod="p", resource="", device="nic-0", claim_driver="nic.example.com")
    assert "DRA" in find_refusal([claim], TENANTS)
    assert find_refusal([other], TENANTS) == ""


def test_many_holders_are_shortened() -> None:
    """A sentence stays one."""
    assert name_some(("a", "b")) == "a, b"
    assert name_some(tuple("abcdef")) == "a, b, c, d and 2 more"
