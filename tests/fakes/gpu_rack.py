"""Four GPUs in two units under the real steward and bank: one look is one second, and whatever is planned is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swingbus.clock import SystemClock
from swingbus_agent.adapters.state_store import FileStateStore
from swingbus_agent.app.gpu_bank import GpuBank, GpuHost
from swingbus_agent.app.steward import Steward, StewardSettings
from swingbus_agent.domain.gpu import GpuProcess
from swingbus_agent.domain.orders import (
    AdoptOrder,
    AgentOrder,
    BankCounting,
    BankOrder,
    BankReport,
    Mode,
    PointOrder,
)
from swingbus_agent.domain.views import ExecutionTimes, Notice
from swingbus_agent.domain.workload import GpuUnit
from swingbus_agent.ports.workload import WorkloadDriver
from tests.fakes.gpus import FakeGpu, FakeGpus
from tests.fakes.workloads import FakeProgram, FakeWorkloads

BANK = "h100"
MINE = PointOrder(point="mine", mode=Mode.MINING, power_w=300.0, count=0, workload="miner")
SERVE = PointOrder(point="serve", mode=Mode.INFERENCE, power_w=600.0, count=0, workload="llama")
REST = PointOrder(point="rest", mode=Mode.STANDBY, power_w=0.0, count=0)
COUNTING = BankCounting(
    bank=BANK,
    gpu_limit_ratio=1.07,
    asic_target_ratio=1.1,
    asic_boot_w=0.0,
    rest_w=214.0,
    device_ceiling_w=749.0,
    cooling_ratio=0.0,
    losses_ratio=0.0,
    fixed_w=500.0,
)


class MovedClock(SystemClock):
    """A clock that moves only when the test moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def boottime_s(self) -> float:
        return self.now_s

    def boottime_ns(self) -> int:
        return round(self.now_s * 1e9)

    def monotonic_s(self) -> float:
        return self.now_s


@dataclass
class Rack:
    """Four GPUs in two units of two, with everything that acts on them."""

    folder: Path
    clock: MovedClock = field(default_factory=MovedClock)
    gpus: FakeGpus = field(default_factory=lambda: FakeGpus([FakeGpu(uuid=f"GPU-{n}") for n in range(4)]))
    programs: dict[str, FakeProgram] = field(
        default_factory=lambda: {"miner": FakeProgram(mode=Mode.MINING), "llama": FakeProgram(mode=Mode.INFERENCE)}
    )
    log: list[str] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    generation: int = 0
    store: FileStateStore | None = None
    # Another driver than programs in memory; then the test says which processes live on which GPU.
    make_driver: Callable[[Sequence[GpuUnit]], WorkloadDriver] | None = None
    strangers: set[str] = field(default_factory=set)
    boot_id: str = "boot-1"
    _enforced_w: float | None = None

    def __post_init__(self) -> None:
        self.workloads = FakeWorkloads([f"{BANK}/0", f"{BANK}/1"], self.programs)
        self.bank = GpuBank(
            name=BANK,
            device_class="h100",
            unit_size=2,
            meter="",
            gpus=(),
            points=(),
            workload_names=("miner", "llama"),
            host=GpuHost(self.gpus, self.clock, fresh_s=0.0),
            clock=self.clock,
            period_s=1.0,
            actuator=self.gpus,
            make_workloads=self.make_driver or (lambda _: self.workloads),
        )
        self.steward = self.new_steward()

    def new_steward(self) -> Steward:
        """Return a steward as a start of the agent makes it."""
        times = ExecutionTimes(verify_s=3.0, boot_s=3.0, attempts=3, backoff_max_s=10.0)
        settings = StewardSettings(times=times, quarantine_s=5.0, writes=True, shed_kw_per_s={})
        store = self.store or FileStateStore(self.folder)
        steward = Steward(settings, clock=self.clock, store=store, boot_id=self.boot_id)
        steward.load()
        return steward

    def reboot(self) -> None:
        """The host starts anew: no process lives, limits are at their defaults, the agent starts with what is on its disk."""
        self.boot_id += "+"
        for gpu in self.gpus.gpus:
            gpu.processes = []
            gpu.enforced_limit_w = gpu.requested_limit_w = 700.0
        self.log.clear()
        self._enforced_w = None  # the only rise that nobody granted
        self.steward = self.new_steward()

    async def look(self) -> None:
        """One second passes: one reading, then whatever is planned is written."""
        self.clock.now_s += 1.0
        self.gpus.boottime_ns = self.clock.boottime_ns()
        if self.make_driver is None:
            await self._let_programs_live()
        reading = await self.bank.read()
        assert reading is not None
        self.notices += self.steward.observe(reading, floor_w=self.bank.floor_w)
        for write in self.steward.plan(BANK):
            if not await self.steward.begin_write(BANK, write):
                continue
            answer = await self.bank.write(write)
            self.log.append(f"{write.verb.value} {write.device or write.unit} {write.target.point}")
            self.notices += self.steward.end_write(BANK, write, answer)
        self.check()

    async def _let_programs_live(self) -> None:
        self.workloads.now_s = self.clock.now_s
        for number in range(2):
            status = (await self.workloads.observe())[f"{BANK}/{number}"]
            for gpu in self.gpus.gpus[number * 2 : number * 2 + 2]:
                if gpu.uuid not in self.strangers:
                    gpu.processes = [GpuProcess(pid=1, memory_used_bytes=None)] if status.has_process else []

    def check(self) -> None:
        """What must hold at every instant: the sum of limits fits the grant, no workload above its limit's order."""
        report = self.report()
        if report.grant_w and not report.is_lapsed:
            enforced_w = sum(gpu.enforced_limit_w for gpu in self.gpus.gpus) * 1.07 + 500.0
            before_w = enforced_w if self._enforced_w is None else self._enforced_w
            assert enforced_w <= max(report.grant_w, before_w) + 1e-6, "limits rose above the grant"
            self._enforced_w = enforced_w

    def report(self) -> BankReport:
        """Return the bank's report."""
        return self.steward.report().banks[0]

    async def adopt(self) -> None:
        """Adopt and wait out the quarantine of a first start."""
        await self.look()
        ticket = self.steward.issue_ticket()
        await self.steward.take_adopt(
            AdoptOrder(epoch=1, controller_instance="ctl", marker=1, counting=(COUNTING,), ticket=ticket)
        )
        for _ in range(8):
            await self.look()

    async def order(self, mine: int = 0, serve: int = 0, rest: int = 0, **changes: object) -> None:
        """Order so many GPUs to each point, with a grant that fits exactly."""
        self.generation += 1
        counts = ((MINE, mine), (SERVE, serve), (REST, rest))
        watts = (mine * 300.0 + serve * 600.0 + rest * 200.0) * 1.07 + 500.0
        points = tuple(
            PointOrder(point=p.point, mode=p.mode, power_w=p.power_w, count=count, workload=p.workload)
            for p, count in counts
            if count
        )
        bank = BankOrder(
            bank=BANK,
            generation=self.generation,
            grant_w=watts,
            device_budget_w=watts - 500.0,
            points=points,
            for_instance=self.steward.instance_uid,
        )
        order = AgentOrder(
            epoch=1,
            controller_instance="ctl",
            generation=self.generation,
            hash=f"h{self.generation}",
            banks=(bank,),
            marker=2,
            ttl_s=100.0,
            ticket=self.steward.issue_ticket(),
        )
        await self.steward.take_order(order)
        assert self.steward.report().refusal == ""

    async def until(self, is_met: Callable[[], bool], looks: int = 40) -> None:
        """Look until `is_met`."""
        for _ in range(looks):
            if is_met():
                return
            await self.look()
        raise AssertionError(f"not within {looks} looks; {self.log[-12:]}; {self.report()}")
