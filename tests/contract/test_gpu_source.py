"""What every `GpuSource` and `GpuActuator` must do: the fake, and the real NVML adapter on the driver stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from swingbus.faults import Forbidden, InvalidInput, NotFound, Unreachable
from swingbus_agent.adapters.nvml.source import NvmlGpus, NvmlTimings
from swingbus_agent.adapters.privileged.limits import KeptLimits
from swingbus_agent.adapters.privileged.link import KeeperLink, start_keeper
from swingbus_agent.adapters.privileged.words import Rules
from swingbus_agent.domain.fields import GPU_FIELDS
from swingbus_agent.domain.gpu import GpuInventory, GpuRound
from swingbus_agent.domain.readings import Condition
from swingbus_agent.ports.gpu import GpuActuator, GpuSource
from swingbus_sim.ports import GpuHealth
from tests.fakes.gpu_host import GpuHost
from tests.fakes.gpus import FakeGpu, FakeGpus

GPU_COUNT = 3


class Rig(Protocol):
    """A source with three GPUs and a hand on them."""

    source: GpuSource
    actuator: GpuActuator
    read_only: GpuActuator

    def break_gpu(self, index: int, condition: Condition) -> None: ...
    def heal(self, index: int) -> None: ...
    def raise_xid(self, index: int, xid: int) -> None: ...
    def carry_out_limits(self) -> None: ...


class FakeRig:
    """The fake."""

    def __init__(self) -> None:
        self._fake = FakeGpus([FakeGpu(uuid=f"GPU-{index}") for index in range(GPU_COUNT)])
        self.source: GpuSource = self._fake
        self.actuator: GpuActuator = self._fake
        self.read_only: GpuActuator = FakeGpus([FakeGpu(uuid="GPU-0")], writes=False)

    def break_gpu(self, index: int, condition: Condition) -> None:
        self._fake.gpus[index].condition = condition

    def heal(self, index: int) -> None:
        self._fake.gpus[index].condition = Condition.OK

    def raise_xid(self, index: int, xid: int) -> None:
        self._fake.gpus[index].xids.append(xid)

    def carry_out_limits(self) -> None:
        """The fake obeys at once."""


class NvmlRig:
    """The real adapter, its real child, the real binding; only the driver's library is a stand-in."""

    def __init__(self, directory: Path) -> None:
        self.host = GpuHost(directory / "shelf", GPU_COUNT)
        self.timings = NvmlTimings(call_deadline_s=0.8, first_probe_s=0.05, lost_reopen_s=0.1)
        nvml = NvmlGpus(writes=True, timings=self.timings, environment=self.host.environment)
        self.links: list[KeeperLink] = []
        self.source: GpuSource = nvml
        self.actuator: GpuActuator = nvml
        self.read_only: GpuActuator = NvmlGpus(environment=self.host.environment)

    def break_gpu(self, index: int, condition: Condition) -> None:
        self.host.change(index, health={Condition.LOST: GpuHealth.LOST, Condition.HUNG: GpuHealth.HUNG}[condition])

    def heal(self, index: int) -> None:
        self.host.change(index, health=GpuHealth.OK)

    def raise_xid(self, index: int, xid: int) -> None:
        self.host.change(index, xid=xid)

    def carry_out_limits(self) -> None:
        for index, limit_w in enumerate(self.host.shelf.requested_limits_w()):
            if limit_w is not None:
                self.host.change(index, enforced_limit_w=limit_w, requested_limit_w=limit_w)


class KeptRig(NvmlRig):
    """The real adapter for readings; limits through the real privileged child, and one whose rules allow none."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        environment = self.host.environment
        self.source = NvmlGpus(timings=self.timings, environment=environment)
        rules = [Rules(may_limit=may_limit, gpus=(), kubelet_socket="") for may_limit in (True, False)]
        self.links = [start_keeper(each, environment=environment) for each in rules]
        self.actuator, self.read_only = (KeptLimits(self.source, link) for link in self.links)


@pytest.fixture(params=["fake", "nvml", "kept"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """Return a rig and close it."""
    if request.param == "fake":
        yield FakeRig()
        return
    made = NvmlRig(tmp_path) if request.param == "nvml" else KeptRig(tmp_path)
    yield made
    await made.source.aclose()
    for link in made.links:
        link.close()
    made.host.close()


async def round_of(source: GpuSource) -> GpuRound:
    """Return one round that succeeded."""
    answer = await source.sample()
    assert isinstance(answer, GpuRound), answer
    return answer


async def uuids_of(source: GpuSource) -> list[str]:
    """Return the GPUs' names."""
    answer = await source.inventory()
    assert isinstance(answer, GpuInventory), answer
    return [gpu.uuid for gpu in answer.gpus]


async def test_healthy_host_tells_every_field_or_marks_it(rig: Rig) -> None:
    """The first round holds every field of the list for every GPU, or says by name that it is unsupported."""
    uuids = await uuids_of(rig.source)
    answer = await round_of(rig.source)
    assert [gpu.uuid for gpu in answer.gpus] == uuids and len(uuids) == GPU_COUNT
    names = {field.name for field in GPU_FIELDS}
    for gpu in answer.gpus:
        assert gpu.condition is Condition.OK and gpu.since_boottime_ns is None
        assert set(gpu.values) | gpu.unsupported == names
        assert not set(gpu.values) & gpu.unsupported
        assert gpu.finished_boottime_ns >= gpu.started_boottime_ns > 0


@pytest.mark.parametrize("condition", [Condition.LOST, Condition.HUNG])
async def test_one_bad_gpu_leaves_the_others_whole(rig: Rig, condition: Condition) -> None:
    """A lost or hung GPU is told as what it is, without readings, since a time that stays; the others answer."""
    await round_of(rig.source)
    rig.break_gpu(1, condition)
    first = await round_of(rig.source)
    second = await round_of(rig.source)
    for answer in (first, second):
        assert [gpu.condition for gpu in answer.gpus] == [Condition.OK, condition, Condition.OK]
        assert dict(answer.gpus[1].values) == {} and answer.gpus[1].reason
        assert answer.gpus[0].values["power_w"] > 0 and answer.gpus[2].values["power_w"] > 0
    assert first.gpus[1].since_boottime_ns == second.gpus[1].since_boottime_ns is not None


@pytest.mark.parametrize("condition", [Condition.LOST, Condition.HUNG])
async def test_healed_gpu_comes_back_without_a_restart(rig: Rig, condition: Condition) -> None:
    """A GPU that answers again is read again under the same name."""
    uuids = await uuids_of(rig.source)
    rig.break_gpu(2, condition)
    assert (await round_of(rig.source)).gpus[2].condition is condition
    rig.heal(2)
    for _ in range(400):
        answer = await round_of(rig.source)
        if answer.gpus[2].condition is Condition.OK:
            break
    assert answer.gpus[2].condition is Condition.OK
    assert [gpu.uuid for gpu in answer.gpus] == uuids


async def test_xid_error_is_told_once_and_counted(rig: Rig) -> None:
    """An XID error is new in one round, and stays in the counter and as the newest number."""
    await round_of(rig.source)
    rig.raise_xid(0, 79)
    told = [(await round_of(rig.source)).gpus[0] for _ in range(2)]
    assert [gpu.new_xids for gpu in told] == [(79,), ()]
    assert [gpu.values["xid_count"] for gpu in told] == [1, 1]
    assert told[1].values["xid"] == 79


async def test_limit_is_seen_in_force_by_reading_back(rig: Rig) -> None:
    """A limit that was set shows as requested and, once the GPU obeys, as enforced; the neighbours keep theirs."""
    uuids = await uuids_of(rig.source)
    await rig.actuator.set_power_limit(uuids[1], 350.0)
    rig.carry_out_limits()
    answer = await round_of(rig.source)
    assert [gpu.values["power_limit_enforced_w"] for gpu in answer.gpus] == [700.0, 350.0, 700.0]
    assert answer.gpus[1].values["power_limit_requested_w"] == 350.0


async def test_bad_limits_are_refused_by_kind(rig: Rig) -> None:
    """Out of range, unknown, lost and switched off are different refusals."""
    uuids = await uuids_of(rig.source)
    with pytest.raises(InvalidInput):
        await rig.actuator.set_power_limit(uuids[0], 50.0)
    with pytest.raises(NotFound):
        await rig.actuator.set_power_limit("GPU-nowhere", 300.0)
    with pytest.raises(Forbidden):
        await rig.read_only.set_power_limit(uuids[0], 300.0)
    rig.break_gpu(0, Condition.LOST)
    with pytest.raises(Unreachable):
        await rig.actuator.set_power_limit(uuids[0], 300.0)
