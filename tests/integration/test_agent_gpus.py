"""GPU units under orders: limits before workloads, release before start, evidence before words. Real steward and loops' parts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from swingbus_agent.adapters.state_store import FileStateStore
from swingbus_agent.app.steward import GRANTS_RECORD, ORDER_RECORD
from swingbus_agent.domain import grant as grant_words
from swingbus_agent.domain.orders import AgentOrder, BankOrder, Mode, PointOrder, RenewalReply
from swingbus_agent.domain.readings import Condition
from swingbus_agent.domain.selection import Target
from swingbus_agent.domain.views import Verb, Write
from tests.fakes.gpu_rack import BANK, Rack


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


async def test_restart_after_the_grant_ran_out_leaves_time_for_a_controller(rack: Rack) -> None:
    """A dead agent's tenant worked on: it is not stopped before a controller could be heard, and is if none is; nothing rises."""
    rack.clock.now_s += 200.0  # nobody renewed
    rack.steward = rack.new_steward()
    rack.log.clear()
    for _ in range(4):
        await rack.look()
        assert rack.report().is_lapsed
    assert rack.log == []
    await rack.until(lambda: "stop_workload" in {line.split()[0] for line in rack.log})
    assert all(gpu.enforced_limit_w <= 300.0 for gpu in rack.gpus.gpus)


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
