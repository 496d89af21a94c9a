"""GPUs in memory: a host whose GPUs can be lost, hang, be refused, and remember what was asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from swingbus.faults import Forbidden, InvalidInput, NotFound, SwingbusError, Unreachable
from swingbus_agent.domain.answers import Hung, Unavailable, Unsupported
from swingbus_agent.domain.fields import GPU_FIELDS
from swingbus_agent.domain.gpu import GpuIdentity, GpuInventory, GpuProcess, GpuRound, GpuSample
from swingbus_agent.domain.readings import Condition


@dataclass(slots=True, kw_only=True)
class FakeGpu:
    """One GPU's whole state; change it and the next round says so."""

    uuid: str
    condition: Condition = Condition.OK
    power_w: float = 100.0
    enforced_limit_w: float = 700.0
    requested_limit_w: float = 700.0
    obeys: bool = True  # False: takes a limit and ignores it
    unsupported: frozenset[str] = frozenset()
    processes: list[GpuProcess] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)
    told_xid_count: int = 0
    since_boottime_ns: int | None = None


class FakeGpus:
    """Implements `GpuSource` and `GpuActuator`; time stands still unless the test moves `boottime_ns`."""

    def __init__(self, gpus: Sequence[FakeGpu], *, writes: bool = True) -> None:
        self.gpus = list(gpus)
        self.writes = writes
        self.boottime_ns = 1_000_000_000
        self.whole_host: Unsupported | Unavailable | Hung | None = None
        self.asked_limits: list[tuple[str, float]] = []
        self.is_closed = False
        self._next_failure: SwingbusError | None = None

    def fail_next(self, error: SwingbusError) -> None:
        """Make the next `set_power_limit` raise this."""
        self._next_failure = error

    async def inventory(self) -> GpuInventory | Unsupported | Unavailable | Hung:
        """Return the GPUs."""
        if self.whole_host is not None:
            return self.whole_host
        gpus = tuple(
            GpuIdentity(
                uuid=gpu.uuid,
                index=index,
                model="Fake GPU",
                bus_id=f"00000000:{index + 1:02X}:00.0",
                serial_number=None,
                vbios=None,
                default_limit_w=700.0,
                min_limit_w=200.0,
                max_limit_w=700.0,
                memory_total_bytes=80 << 30,
                is_mig_enabled=False,
                unsupported_fields=gpu.unsupported,
            )
            for index, gpu in enumerate(self.gpus)
        )
        return GpuInventory(revision=1, driver_version="580.95.05", gpus=gpus)

    async def sample(self) -> GpuRound | Unsupported | Unavailable | Hung:
        """Return one round of the state as it is."""
        if self.whole_host is not None:
            return self.whole_host
        return GpuRound(inventory_revision=1, gpus=tuple(self._sample(gpu) for gpu in self.gpus))

    async def set_power_limit(self, uuid: str, power_w: float) -> None:
        """Take a limit; it is in force at once unless the GPU does not obey."""
        if not self.writes:
            raise Forbidden("writing is off")
        if self._next_failure is not None:
            failure, self._next_failure = self._next_failure, None
            raise failure
        gpu = next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)
        if gpu is None:
            raise NotFound(f"no GPU {uuid}")
        if not 200.0 <= power_w <= 700.0:
            raise InvalidInput(f"{power_w} W is outside 200 to 700 W")
        if gpu.condition is not Condition.OK:
            raise Unreachable(f"GPU {uuid} is {gpu.condition.name}")
        self.asked_limits.append((uuid, power_w))
        gpu.requested_limit_w = power_w
        if gpu.obeys:
            gpu.enforced_limit_w = power_w
            gpu.power_w = min(gpu.power_w, power_w)

    async def aclose(self) -> None:
        """Remember that it was closed."""
        self.is_closed = True

    def _sample(self, gpu: FakeGpu) -> GpuSample:
        if gpu.condition is not Condition.OK:
            gpu.since_boottime_ns = gpu.since_boottime_ns or self.boottime_ns
            return GpuSample(
                uuid=gpu.uuid,
                condition=gpu.condition,
                started_boottime_ns=self.boottime_ns,
                finished_boottime_ns=self.boottime_ns,
                reason=f"made {gpu.condition.name} by the test",
                since_boottime_ns=gpu.since_boottime_ns,
                unsupported=gpu.unsupported,
            )
        gpu.since_boottime_ns = None
        known = {
            "power_w": gpu.power_w,
            "power_instant_w": gpu.power_w,
            "power_limit_enforced_w": gpu.enforced_limit_w,
            "power_limit_requested_w": gpu.requested_limit_w,
            "power_limit_default_w": 700.0,
            "power_limit_min_w": 200.0,
            "power_limit_max_w": 700.0,
            "temperature_c": 50.0,
            "memory_total_bytes": float(80 << 30),
            "process_count": float(len(gpu.processes)),
            "xid": float(gpu.xids[-1] if gpu.xids else 0),
            "xid_count": float(len(gpu.xids)),
        }
        new_xids = tuple(gpu.xids[gpu.told_xid_count :])
        gpu.told_xid_count = len(gpu.xids)
        values = {each.name: known.get(each.name, 0.0) for each in GPU_FIELDS if each.name not in gpu.unsupported}
        return GpuSample(
            uuid=gpu.uuid,
            condition=Condition.OK,
            started_boottime_ns=self.boottime_ns,
            finished_boottime_ns=self.boottime_ns + 1000,
            values=values,
            unsupported=gpu.unsupported,
            processes=tuple(gpu.processes),
            new_xids=new_xids,
        )
