"""Writes to a GPU unit: asked once, then looked at."""

from __future__ import annotations

import pytest

from swingbus_agent.domain.execution import BankExecution
from swingbus_agent.domain.orders import BankCounting, Mode
from swingbus_agent.domain.readings import BankSpec, Condition, DeviceSpec, Kind, PointSpec
from swingbus_agent.domain.selection import Target
from swingbus_agent.domain.views import DeviceView, ExecutionTimes, UnitView, Verb
from swingbus_agent.domain.workload import WorkloadPhase

MINE = Target(point="mine", mode=Mode.MINING, power_w=500.0, workload="miner")
SERVE = Target(point="serve", mode=Mode.INFERENCE, power_w=700.0, workload="llm")


def free_unit() -> BankExecution:
    """Return a bank of one GPU that is free, at its limit, and told to serve."""
    spec = BankSpec(
        bank="gpus", kind=Kind.GPU, device_class="h100", unit_size=1, value_fields=(), counter_fields=(), meter="",
        devices=(DeviceSpec(device="g0", model="", firmware="", serial_number="", address="", unsupported_fields=(), unit=0),),
        points=(PointSpec(point="serve", mode=Mode.INFERENCE, power_w=700.0),), workloads=("llm",),
    )  # fmt: skip
    execution = BankExecution(spec, ExecutionTimes(verify_s=3.0, boot_s=10.0, attempts=3, backoff_max_s=6.0))
    execution.aim({"g0": SERVE})
    look(execution, 1.0)
    return execution


def look(execution: BankExecution, now_s: float) -> None:
    """Show the bank that its unit is idle and its limit in force."""
    view = DeviceView(
        device="g0", unit=0, condition=Condition.OK, mode=Mode.STANDBY, enforced_w=700.0, read_started_s=now_s,
        process_count=0, processes_read_s=now_s,
    )  # fmt: skip
    execution.observe([view], [UnitView(unit=0)], now_s)


def test_start_that_was_answered_is_not_asked_again_before_a_look() -> None:
    """Between two readings nothing new is known: asking again would only spin. After one that shows nothing it is asked again."""
    counting = BankCounting(
        bank="gpus", gpu_limit_ratio=1.05, asic_target_ratio=1.05, asic_boot_w=0.0, rest_w=0.0, device_ceiling_w=735.0,
        cooling_ratio=0.0, losses_ratio=0.0, fixed_w=0.0,
    )  # fmt: skip
    execution = free_unit()
    (write,) = execution.plan(counting, 1.1)
    assert write.verb is Verb.START_WORKLOAD
    execution.note_sent(write)
    execution.note_answered(write, was_taken=True, now_s=1.2)
    assert execution.plan(counting, 1.3) == ()
    assert not execution.is_released(0)
    look(execution, 2.0)
    assert [each.verb for each in execution.plan(counting, 2.1)] == [Verb.START_WORKLOAD]


COUNTING = BankCounting(
    bank="gpus", gpu_limit_ratio=1.05, asic_target_ratio=1.05, asic_boot_w=0.0, rest_w=0.0, device_ceiling_w=735.0,
    cooling_ratio=0.0, losses_ratio=0.0, fixed_w=0.0,
)  # fmt: skip


def hold(
    execution: BankExecution,
    now_s: float,
    *,
    limit_w: float,
    holders: tuple[str, ...] | None,
    mode: Mode = Mode.INFERENCE,
    phase: WorkloadPhase = WorkloadPhase.READY,
) -> None:
    """Show the bank that somebody works on its unit, a pod where it has holders, at a limit."""
    view = DeviceView(
        device="g0", unit=0, condition=Condition.OK, mode=mode, enforced_w=limit_w, read_started_s=now_s,
        process_count=1, processes_read_s=now_s,
    )  # fmt: skip
    workload = "miner" if mode is Mode.MINING else "llm"
    unit = UnitView(unit=0, workload=workload, mode=mode, phase=phase, has_process=True, holders=holders, since_s=0.5)
    execution.observe([view], [unit], now_s)


@pytest.mark.parametrize("phase", [WorkloadPhase.READY, WorkloadPhase.STOPPING])
def test_the_limit_under_a_strangers_pod_is_what_was_ordered_up_as_well_as_down(phase: WorkloadPhase) -> None:
    """A customer's pod is on a unit that shall mine: its limit is set and read back all the same, and that is all."""
    for before_w in (200.0, 735.0):
        execution = free_unit()
        execution.aim({"g0": MINE})
        hold(execution, 2.0, limit_w=before_w, holders=("strangers/p",), phase=phase)
        assert execution.is_in_progress(2.1)
        (write,) = (each for each in execution.plan(COUNTING, 2.1) if each.verb is Verb.SET_POWER)
        assert write.is_raise == (before_w < MINE.power_w)
        execution.note_sent(write)
        execution.note_answered(write, was_taken=True, now_s=2.2)
        hold(execution, 3.0, limit_w=MINE.power_w, holders=("strangers/p",), phase=phase)
        assert not execution.is_in_progress(3.1)
        assert not execution.is_released(0) and not execution.is_held("g0")


@pytest.mark.parametrize("holders", [None, ("mining/m-0",)])
def test_the_limit_under_a_miner_is_raised_only_for_who_comes_after_it(holders: tuple[str, ...] | None) -> None:
    """A process of our own, or a miner's pod: told to go first, it never works with the watts of its successor."""
    execution = free_unit()
    hold(execution, 2.0, limit_w=200.0, holders=holders, mode=Mode.MINING)
    assert [each.verb for each in execution.plan(COUNTING, 2.1)] == [Verb.STOP_WORKLOAD]
