"""Pods as workloads under the real steward: a pod's absence frees no GPU, a kubelet's silence starts and frees nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swingbus.clock import SystemClock
from swingbus_agent.adapters.pod_workloads.driver import PodWorkloads
from swingbus_agent.adapters.pod_workloads.kubelet import KubeletPods
from swingbus_agent.check import check_host
from swingbus_agent.domain.answers import Unavailable
from swingbus_agent.domain.gpu import GpuProcess
from swingbus_agent.domain.pod_holding import PodTenants
from swingbus_agent.running import build_banks
from swingbus_agent.settings import AgentSettings, load_settings
from tests.fakes.gpu_host import GpuHost, gpu_uuid
from tests.fakes.gpu_rack import MovedClock, Rack
from tests.fakes.kubelet import GPU, FakeKubelet, running_kubelet

TENANTS = PodTenants(resource=GPU, miner_namespace="mining", mining_workload="miner", inference_workload="llama")


class PodRack(Rack):
    """A rack whose workloads are pods: they come and go as the test says, and so do their processes."""

    kubelet: FakeKubelet
    lister: KubeletPods

    def bring(self, namespace: str, pod: str, *gpus: int) -> None:
        """Let a pod hold GPUs and work on them."""
        self.kubelet.hold(namespace, pod, *(f"GPU-{number}" for number in gpus))
        self.work(*gpus)

    def work(self, *gpus: int, is_working: bool = True) -> None:
        """Let a process live on GPUs, or end it."""
        for number in gpus:
            self.gpus.gpus[number].processes = [GpuProcess(pid=7, memory_used_bytes=None)] if is_working else []

    def starts(self) -> list[str]:
        """Return which units were told to start what."""
        return [line for line in self.log if line.startswith("start_workload")]


@asynccontextmanager
async def pod_rack(folder: Path) -> AsyncIterator[PodRack]:
    """Return a rack on a kubelet that holds nobody yet."""
    async with running_kubelet() as kubelet:
        clock = MovedClock()
        lister = KubeletPods(kubelet.pod_resources, timeout_s=5.0, clock=clock)
        rack = PodRack(
            folder,
            clock=clock,
            make_driver=lambda units: PodWorkloads(
                units=units, kubelet=lister, tenants=TENANTS, now_s=clock.boottime_s
            ),
        )
        rack.kubelet, rack.lister = kubelet, lister
        yield rack
        await lister.aclose()


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[PodRack]:
    """Return a rack with a miner on each unit, adopted and as ordered."""
    async with pod_rack(tmp_path) as rack:
        rack.bring("mining", "m-0", 0, 1)
        rack.bring("mining", "m-1", 2, 3)
        await rack.adopt()
        await rack.order(mine=4)
        await rack.until(lambda: rack.report().applied_generation == 1)
        rack.log.clear()
        yield rack


async def test_running_pods_are_taken_as_they_are(rack: PodRack) -> None:
    """Pods that were there before the agent are its ready workloads; nothing was started, no unit is free."""
    assert [(each.unit, each.workload) for each in rack.report().ready_workloads] == [(0, "miner"), (1, "miner")]
    assert rack.report().released_units == ()
    assert [(each.unit, each.holders, each.workload, each.has_process) for each in rack.report().unit_holdings] == [
        (0, ("mining/m-0",), "miner", True),
        (1, ("mining/m-1",), "miner", True),
    ]
    for _ in range(5):
        await rack.look()
    assert rack.log == []


async def test_gpu_works_for_a_tenant_only_when_a_process_of_it_is_seen(rack: PodRack) -> None:
    """Given to a pod is not yet worked on; a process that was seen before the pod came is another's."""

    def modes() -> set[str]:
        return {point.mode.name for point in rack.report().observed}

    rack.kubelet.let_go("mining", "m-0")
    rack.kubelet.hold("customers", "llm", "GPU-0", "GPU-1")
    rack.work(0, 1, is_working=False)
    await rack.look()
    assert modes() == {"MINING", "STANDBY"}, "the pod has the GPUs, nothing runs there yet"
    rack.work(0, 1)
    await rack.look()
    assert modes() == {"MINING", "INFERENCE"}


async def test_report_tells_a_pod_that_is_gone_from_a_unit_that_is_free(rack: PodRack) -> None:
    """No holder and a living process is not free, and the report says which of the two it is; both tenants are neither."""
    rack.kubelet.let_go("mining", "m-0")
    await rack.look()
    gone, _ = rack.report().unit_holdings
    assert (gone.holders, gone.workload, gone.has_process) == ((), "", True)
    assert gone.reason == "no pod holds it; processes on GPU-0: 1"
    rack.work(0, 1, is_working=False)
    rack.kubelet.hold("customers", "llm", "GPU-3")
    await rack.look()
    free, both = rack.report().unit_holdings
    assert (free.holders, free.has_process, free.reason) == ((), False, "")
    assert (both.holders, both.workload) == (("customers/llm", "mining/m-1"), "")
    assert "both tenants" in both.reason


async def test_report_of_a_silent_kubelet_keeps_the_last_holders_and_frees_nothing(rack: PodRack) -> None:
    """Who cannot be asked says nothing new: the unit counts as held, with why and who was seen there last."""
    await rack.kubelet.stop()
    await rack.look()
    held, _ = rack.report().unit_holdings
    assert (held.holders, held.has_process) == (("mining/m-0",), True)
    assert "kubelet cannot be asked" in held.reason and "last seen there: mining/m-0" in held.reason


async def test_vanished_pod_whose_process_lives_releases_nothing(rack: PodRack) -> None:
    """Force-deleted, gone from the kubelet's list, still drawing: the unit is not released, no limit rises, nothing starts."""
    await rack.order(mine=2, serve=2)
    await rack.until(lambda: any(line.startswith("stop_workload") for line in rack.log))
    unit = int(rack.log[-1].split()[1])
    rack.kubelet.let_go("mining", f"m-{unit}")
    for _ in range(10):
        await rack.look()
        assert rack.report().released_units == ()
    assert rack.starts() == []
    assert all(gpu.enforced_limit_w <= 300.0 for gpu in rack.gpus.gpus)

    rack.work(2 * unit, is_working=False)  # one of two processes ended: not enough
    for _ in range(3):
        await rack.look()
    assert rack.report().released_units == () and rack.starts() == []

    rack.work(2 * unit + 1, is_working=False)
    await rack.until(lambda: bool(rack.starts()))
    assert rack.starts() == [f"start_workload {unit} serve"]
    assert [gpu.enforced_limit_w for gpu in rack.gpus.gpus[2 * unit : 2 * unit + 2]] == [600.0, 600.0]


async def test_flip_waits_for_the_pod_and_is_there_when_it_came(rack: PodRack) -> None:
    """Released, raised, noted: the unit waits; the pod that Kubernetes then brings makes it ready under the other name."""
    await rack.order(mine=2, serve=2)
    await rack.until(lambda: any(line.startswith("stop_workload") for line in rack.log))
    unit = int(rack.log[-1].split()[1])
    rack.kubelet.let_go("mining", f"m-{unit}")
    rack.work(2 * unit, 2 * unit + 1, is_working=False)
    await rack.until(lambda: bool(rack.starts()))
    assert not any(each.workload == "llama" for each in rack.report().ready_workloads)
    rack.bring("customers", "llm", 2 * unit, 2 * unit + 1)
    await rack.until(lambda: any(each.workload == "llama" for each in rack.report().ready_workloads))
    await rack.until(lambda: rack.report().applied_generation == 2)
    assert len([line for line in rack.log if line.startswith("stop_workload")]) == 1


async def test_pod_in_another_place_than_meant_is_taken_as_soon_as_the_order_follows(rack: PodRack) -> None:
    """Kubelet chose the other unit: its pod was noted to go. With the roles swapped it stays, at once and not after the note's 30 s."""
    await rack.order(mine=2, rest=2)
    await rack.until(lambda: any(line.startswith("stop_workload") for line in rack.log))
    unit = int(next(line for line in rack.log if line.startswith("stop_workload")).split()[1])
    rack.kubelet.let_go("mining", f"m-{1 - unit}")
    rack.work(2 - 2 * unit, 3 - 2 * unit, is_working=False)
    await rack.look()
    await rack.order(mine=4)
    await rack.until(lambda: rack.report().generation == 3)
    began_s = rack.clock.boottime_s()
    await rack.until(lambda: [each.unit for each in rack.report().ready_workloads] == [unit])
    assert rack.clock.boottime_s() - began_s < 5.0


async def test_silent_kubelet_releases_and_starts_nothing(rack: PodRack) -> None:
    """With the kubelet gone even an empty GPU is not free: somebody may be about to be put there."""
    await rack.order(mine=2, serve=2)
    await rack.until(lambda: any(line.startswith("stop_workload") for line in rack.log))
    unit = int(rack.log[-1].split()[1])
    await rack.kubelet.stop()
    rack.kubelet.let_go("mining", f"m-{unit}")
    rack.work(2 * unit, 2 * unit + 1, is_working=False)
    for _ in range(8):
        await rack.look()
    assert rack.report().released_units == () and rack.starts() == []
    assert rack.report().ready_workloads == ()
    await rack.kubelet.start()
    async with asyncio.timeout(10):  # the rack's seconds are none, a new connection's are
        while isinstance(await rack.lister.list_held(), Unavailable):
            await asyncio.sleep(0.05)
    await rack.until(lambda: bool(rack.starts()))


async def test_silence_and_slices_are_told_once_with_why(rack: PodRack) -> None:
    """What nobody can say is an event with its reason, and so is its end; a round that changes nothing tells nothing."""

    async def told() -> list[tuple[str, str]]:
        reading = await rack.bank.read()
        assert reading is not None
        return [(kind, message) for kind, _, message in reading.events]

    assert await told() == []
    rack.kubelet.hold("customers", "sliced", "GPU-0::1")
    ((kind, message),) = await told()
    assert kind == "workloads_unknown" and "customers/sliced" in message and "whole GPUs only" in message
    assert await told() == []
    rack.kubelet.let_go("customers", "sliced")
    assert [kind for kind, _ in await told()] == ["workloads_known"]
    assert await told() == []


async def test_first_reading_of_a_new_agent_releases_no_unit_that_a_pod_holds(rack: PodRack) -> None:
    """A pod that was just given its GPUs has no process yet; an agent that starts then must not see a free unit."""
    rack.work(0, 1, 2, 3, is_working=False)
    fresh = PodRack(rack.folder / "fresh", clock=rack.clock, gpus=rack.gpus, make_driver=rack.make_driver)
    fresh.folder.mkdir()
    await fresh.look()
    assert fresh.report().released_units == ()


MANUAL = Path(__file__).parents[2] / "docs" / "agent.md"


def settings_of_the_manual(folder: Path, kubelet: FakeKubelet) -> AgentSettings:
    """Return the manual's example of a bank that runs pods, on this kubelet."""
    example = MANUAL.read_text(encoding="utf-8").split("## Pods as workloads")[1].split("```toml\n")[1].split("```")[0]
    example = example.replace("[pods]\n", f'[pods]\nsocket = "{kubelet.pod_resources}"\n')
    path = folder / "agent.toml"
    path.write_text(f'name = "a"\nstate_dir = "{folder / "state"}"\n{example}', encoding="utf-8")
    return load_settings(path)


async def test_agent_that_may_not_write_sees_who_holds_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put together as `run` does it, from the manual's example: real driver stand-in, real socket, no write path needed."""
    host = GpuHost(tmp_path / "shelf", 2)
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    async with running_kubelet() as kubelet:
        kubelet.hold("mining", "m-1", gpu_uuid(1))
        settings = settings_of_the_manual(tmp_path, kubelet)
        assert not settings.writes
        _, _, (bank,), closers = build_banks(settings, SystemClock())
        reading = await bank.read()
        assert reading is not None and reading.spec.workloads == ("mining", "inference")
        assert [(unit.workload, unit.phase.value, unit.has_process) for unit in reading.units] == [
            ("", "idle", False),
            ("mining", "ready", True),
        ]
        for close in closers:
            await close()
    host.close()


async def pods_found(settings: AgentSettings) -> list[str]:
    """Return what `check` says of pods."""
    return [each.line() for each in await check_host(settings) if each.what == "pods"]


async def test_check_says_who_holds_what_in_plain_words(tmp_path: Path) -> None:
    """The tenants and their GPUs; nobody; a slice; silence."""
    async with running_kubelet() as kubelet:
        settings = settings_of_the_manual(tmp_path, kubelet)
        assert (await pods_found(settings))[1] == "ok  pods       no pod holds a GPU (nvidia.com/gpu)"
        kubelet.hold("mining", "m-1", "GPU-1", "GPU-2")
        kubelet.hold("customers", "llm", "GPU-3")
        first, *others = await pods_found(settings)
        assert first.startswith("ok  pods") and "pods of namespace mining mine as 'mining'" in first
        assert others == [
            "ok  pods       customers/llm (inference) holds GPU-3",
            "ok  pods       mining/m-1 (mining) holds GPU-1, GPU-2",
        ]
        kubelet.hold("customers", "sliced", "GPU-4::0")
        (line,) = await pods_found(settings)
        assert line.startswith("!!  pods") and "customers/sliced" in line
        await kubelet.stop()
        (line,) = await pods_found(settings)
        assert line.startswith("!!  pods") and "no unit of h100 counts as free" in line
