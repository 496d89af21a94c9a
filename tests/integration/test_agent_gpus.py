"""GPU units under orders: limits before workloads, release before start, evidence before words. Real steward and loops' parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swingbus.clock import SystemClock
from swingbus_agent.adapters.state_store import FileStateStore
from swingbus_agent.app.gpu_bank import GpuBank, GpuHost
from swingbus_agent.app.steward import GRANTS_RECORD, ORDER_RECORD, Steward, StewardSettings
from swingbus_agent.domain import grant as grant_words
from swingbus_agent.domain.gpu import GpuProcess
from swingbus_agent.domain.orders import (
    AdoptOrder,
    AgentOrder,
    BankCounting,
    BankOrder,
    BankReport,
    Mode,
    PointOrder,
    RenewalReply,
)
from swingbus_agent.domain.readings import Condition
from swingbus_agent.domain.selection import Target
from swingbus_agent.domain.views import ExecutionTimes, Notice, Verb, Write
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
            make_workloads=lambda _: self.workloads,
        )
        self.steward = self.new_steward()

    def new_steward(self) -> Steward:
        """Return a steward as a start of the agent makes it."""
        times = ExecutionTimes(verify_s=3.0, boot_s=3.0, attempts=3, backoff_max_s=10.0)
        settings = StewardSettings(times=times, quarantine_s=5.0, writes=True, shed_kw_per_s={})
        store = self.store or FileStateStore(self.folder)
        steward = Steward(settings, clock=self.clock, store=store, boot_id="boot-1")
        steward.load()
        return steward

    async def look(self) -> None:
        """One second passes: one reading, then whatever is planned is written."""
        self.clock.now_s += 1.0
        self.gpus.boottime_ns = self.clock.boottime_ns()
        self.workloads.now_s = self.clock.now_s
        for number in range(2):
            status = (await self.workloads.observe())[f"{BANK}/{number}"]
            for gpu in self.gpus.gpus[number * 2 : number * 2 + 2]:
                if gpu.uuid not in self.strangers:
                    gpu.processes = [GpuProcess(pid=1, memory_used_bytes=None)] if status.has_process else []
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

    strangers: set[str] = field(default_factory=set)

    def check(self) -> None:
        """What must hold at every instant: the sum of limits fits the grant, no workload above its limit's order."""
        report = self.report()
        if report.grant_w and not report.is_lapsed:
            enforced_w = sum(gpu.enforced_limit_w for gpu in self.gpus.gpus) * 1.07 + 500.0
            before_w = getattr(self, "_enforced_w", enforced_w)
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


@pytest.fixture
async def rack(tmp_path: Path) -> Rack:
    """A rack that is adopted and mines."""
    rack = Rack(tmp_path)
    await rack.adopt()
    await rack.order(mine=4)
    await rack.until(lambda: len(rack.report().ready_workloads) == 2)
    await rack.until(lambda: rack.report().applied_generation == 1)
    rack.log.clear()
    return rack


async def test_first_order_lowers_limits_before_it_starts_workloads(tmp_path: Path) -> None:
    """GPUs at their default limit get the ordered one first; the workload starts only when it is read back."""
    rack = Rack(tmp_path)
    await rack.adopt()
    await rack.order(mine=4)
    await rack.until(lambda: len(rack.report().ready_workloads) == 2)
    firsts = [line.split()[0] for line in rack.log]
    assert firsts == ["set_power"] * 4 + ["start_workload"] * 2


async def test_flip_stops_releases_raises_then_starts(rack: Rack) -> None:
    """One unit from mining to inference: stop, empty by a reading, limits up and read back, then the new workload."""
    await rack.order(mine=2, serve=2)
    await rack.until(lambda: any(each.workload == "llama" for each in rack.report().ready_workloads))
    assert [line.split()[0] for line in rack.log] == ["stop_workload", "set_power", "set_power", "start_workload"]
    unit = next(each.unit for each in rack.report().ready_workloads if each.workload == "llama")
    limits = [gpu.enforced_limit_w for gpu in rack.gpus.gpus[unit * 2 : unit * 2 + 2]]
    assert limits == [600.0, 600.0]
    await rack.until(lambda: rack.report().applied_generation == 2)
    observed = {(point.point, point.count) for point in rack.report().observed}
    assert observed == {("mine", 2), ("serve", 2)}


async def test_unit_that_a_stranger_holds_is_never_released(rack: Rack) -> None:
    """A process that is not ours keeps the unit from being released: no limit rises, nothing starts."""
    rack.strangers = {gpu.uuid for gpu in rack.gpus.gpus[:2]}
    await rack.order(serve=2, rest=2)
    for _ in range(12):
        await rack.look()
    report = rack.report()
    starts = [line for line in rack.log if line.startswith("start_workload")]
    assert 0 not in report.released_units
    assert all(line.startswith("start_workload 1") for line in starts)
    assert all(gpu.enforced_limit_w <= 300.0 for gpu in rack.gpus.gpus[:2])


async def test_failed_start_is_told_and_the_watts_stay_bounded(rack: Rack) -> None:
    """A workload that cannot start is a failure with its reason; the limits hold, so the bank is applied."""
    rack.programs["llama"].starts = False
    rack.workloads.programs["llama"].starts = False
    await rack.order(mine=2, serve=2)
    await rack.until(lambda: bool(rack.report().failed_workloads))
    failed = rack.report().failed_workloads[0]
    assert failed.workload == "llama" and failed.reason
    starts = [line for line in rack.log if line.startswith("start_workload")]
    assert len(starts) == 1
    await rack.until(lambda: rack.report().applied_generation == 2)
    await rack.order(mine=4)
    await rack.until(lambda: len(rack.report().ready_workloads) == 2)


async def test_limit_that_is_ignored_is_named_and_counts_as_it_is(rack: Rack) -> None:
    """A GPU that takes a lower limit and does not enforce it counts at what is enforced and is named."""
    rack.gpus.gpus[0].obeys = False
    await rack.order(rest=4)
    await rack.until(lambda: any(notice.kind == "write_ignored" for notice in rack.notices))
    assert {notice.device for notice in rack.notices if notice.kind == "write_ignored"} == {"GPU-0"}
    report = rack.report()
    assert report.counted_power_w == pytest.approx((300.0 + 3 * 200.0) * 1.07 + 500.0)
    assert report.applied_generation == 0  # it does not fit its grant


async def test_lost_gpu_counts_at_its_ceiling(rack: Rack) -> None:
    """A GPU that its driver lost is unheld at its ceiling and its unit is not released."""
    rack.gpus.gpus[3].condition = Condition.LOST
    await rack.look()
    report = rack.report()
    assert report.counted_power_w == pytest.approx(3 * 300.0 * 1.07 + 749.0 + 500.0)
    assert [(each.device, each.reason) for each in report.stragglers] == [("GPU-3", "unreachable")]


async def test_grant_over_rests_mining_first_and_caps_inference(rack: Rack) -> None:
    """When nobody renews, mining stops before inference is capped, inference is never stopped, and nothing rises."""
    await rack.order(mine=2, serve=2)
    await rack.until(lambda: len(rack.report().ready_workloads) == 2 and rack.report().applied_generation == 2)
    rack.log.clear()
    rack.clock.now_s += 200.0  # the ttl is over
    await rack.until(lambda: rack.report().is_lapsed and not rack.report().has_in_flight)
    for _ in range(6):
        await rack.look()
    assert "stop_workload" in {line.split()[0] for line in rack.log}
    assert [each.workload for each in rack.report().ready_workloads] == ["llama"]
    assert all(gpu.enforced_limit_w == 200.0 for gpu in rack.gpus.gpus)
    reply = RenewalReply(sent_boottime_ns=0, epoch=1, ttl_s=100.0, marker=9, ticket=rack.steward.issue_ticket())
    await rack.steward.take_renewal(reply)
    for _ in range(5):
        await rack.look()
    assert all(gpu.enforced_limit_w == 200.0 for gpu in rack.gpus.gpus)


async def test_restarted_steward_finds_workloads_and_writes_nothing(rack: Rack) -> None:
    """A new run of the agent holds what the old one ordered without touching a device."""
    rack.steward = rack.new_steward()
    for _ in range(8):
        await rack.look()
    assert rack.log == []
    assert rack.report().applied_generation == 1
    assert not any(write.verb is Verb.START_WORKLOAD for write in rack.steward.plan(BANK))


class HeldOrders(FileStateStore):
    """A store that takes orders onto its disk only once it is let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_keep = asyncio.Event()
        self.may_keep.set()

    async def save(self, name: str, record: bytes) -> None:
        if name == ORDER_RECORD:
            await self.may_keep.wait()
        await super().save(name, record)


async def test_state_of_an_order_never_lands_on_a_later_one(tmp_path: Path) -> None:
    """A write begins while a slow disk keeps an order: what is stored last is the newer state, with both in it."""
    store = HeldOrders(tmp_path)
    rack = Rack(tmp_path, store=store)
    await rack.adopt()
    await rack.order(mine=4)
    await rack.until(lambda: rack.report().applied_generation == 1)
    await rack.steward.refresh()
    before = _stored(store)
    assert not before.grants[BANK].writes_open
    store.may_keep.clear()
    ordering = asyncio.create_task(rack.order(mine=2, rest=2))
    await asyncio.sleep(0)
    target = Target(point="mine", mode=Mode.MINING, power_w=300.0, workload="miner")
    write = Write(verb=Verb.SET_POWER, device="GPU-0", unit=0, target=target, is_raise=True, counted_w=321.0)
    assert await rack.steward.begin_write(BANK, write)
    store.may_keep.set()
    await ordering
    after = _stored(store)
    assert after.revision == before.revision + 2
    assert (after.grants[BANK].generation, after.grants[BANK].writes_open) == (2, True)


def _stored(store: FileStateStore) -> grant_words.DurableState:
    record = store.load(GRANTS_RECORD)
    assert record is not None
    return grant_words.from_record(record)


async def test_locked_gpu_unit_is_never_touched(rack: Rack) -> None:
    """Hands are inside unit 0: it keeps what it has, the other unit takes the orders."""
    await rack.order(mine=2, serve=2)
    await rack.until(lambda: rack.report().applied_generation == 2)
    rack.log.clear()
    order = rack.steward._kept.order
    assert order is not None
    locked = tuple(gpu.uuid for gpu in rack.gpus.gpus[:2])
    bank = order.banks[0]
    changed = BankOrder(
        bank=BANK,
        generation=bank.generation,
        grant_w=bank.grant_w,
        device_budget_w=bank.device_budget_w,
        points=(PointOrder(point="rest", mode=Mode.STANDBY, power_w=0.0, count=4),),
        locked_devices=locked,
        for_instance=bank.for_instance,
    )
    await rack.steward.take_order(
        AgentOrder(
            epoch=1,
            controller_instance="ctl",
            generation=order.generation + 1,
            hash="locked",
            banks=(changed,),
            marker=3,
            ttl_s=100.0,
            ticket=rack.steward.issue_ticket(),
        )
    )
    for _ in range(8):
        await rack.look()
    assert rack.log and not any(uuid in line for line in rack.log for uuid in locked)
    assert not any(line.startswith("stop_workload 0") for line in rack.log)
