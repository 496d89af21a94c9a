"""Rounds, inventories and orders over the wire and back."""

from __future__ import annotations

import math

import pytest

from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import link_pb2
from swingbus_agent.codec import ProtoRoundCodec, desired_hash, order_from_proto, report_to_proto, round_to_proto
from swingbus_agent.domain import order_record
from swingbus_agent.domain.fields import ASIC_FIELDS, GPU_FIELDS, counter_fields, value_fields
from swingbus_agent.domain.orders import (
    AgentReport,
    BankCounting,
    BankReport,
    HoldingReport,
    Mode,
    PointOrder,
    SafeShareStep,
    StragglerReport,
    UnitWorkload,
    Urgency,
)
from swingbus_agent.domain.readings import (
    AgentEvent,
    BankRound,
    BankSpec,
    Condition,
    DeviceSpec,
    Inventory,
    Kind,
    MeterRound,
    MeterSpec,
    PointSpec,
    Round,
)
from swingbus_agent.domain.windows import WindowDating, date_window

CODEC = ProtoRoundCodec()
ROUND = Round(
    sample_unix_s=1_700_000_000.25,
    sample_boottime_ns=123_456_789,
    boot_id="boot",
    banks=(
        BankRound(
            bank_index=0,
            values=(0.0, None, 2.5, None),
            counters=(1e12 + 0.5, None),
            conditions=(Condition.OK, Condition.HUNG),
            modes=(Mode.MINING, Mode.UNKNOWN),
            read_boottime_ns=(1, 2),
        ),
    ),
    meters=(
        MeterRound(
            meter_index=0,
            window_start_boottime_ns=1,
            window_end_boottime_ns=2,
            marker=3,
            measurement_count=0,
            power_w=0.0,
        ),
        MeterRound(meter_index=1, window_start_boottime_ns=1, window_end_boottime_ns=2, marker=0, fault="silent"),
    ),
    host_values=(None, 1.0),
    events=(AgentEvent(kind="k", message="m", at_unix_s=5.5, bank="b", device="d"),),
)
INVENTORY = Inventory(
    version="1",
    hostname="h",
    banks=(
        BankSpec(
            bank="b",
            kind=Kind.GPU,
            device_class="c",
            unit_size=4,
            devices=(DeviceSpec(device="d", model="m", unsupported_fields=("energy_j",), unit=1),),
            value_fields=("power_w",),
            counter_fields=(),
            points=(PointSpec(point="p", mode=Mode.INFERENCE, power_w=1.0, throughput_ratio=0.0),),
            workloads=("w",),
            meter="m1",
        ),
    ),
    meters=(MeterSpec(meter="m1", feeder="f", window_s=0.2, lag_s=1.25, error_ratio=0.005, quantum_w=1.0),),
    host_fields=("a", "b"),
    unsupported=("snmp: no",),
    writes_enabled=True,
)


def test_round_survives_the_wire_and_zero_is_not_missing() -> None:
    """What is absent stays absent, what is 0 stays 0."""
    assert CODEC.decode_round(CODEC.encode_round(ROUND, 7, 7)) == ROUND
    message = round_to_proto(ROUND, 7, 7)
    assert message.sequence == 7
    assert message.banks[0].values[0] == 0.0 and math.isnan(message.banks[0].values[1])
    assert message.meters[0].HasField("power_w") and not message.meters[1].HasField("power_w")


def test_inventory_survives_the_wire() -> None:
    """Names, units and optional outputs come back as they were."""
    assert CODEC.decode_inventory(CODEC.encode_inventory(INVENTORY)) == INVENTORY


def test_bytes_that_are_no_batch_are_refused() -> None:
    """Never a half-read round."""
    with pytest.raises(InvalidInput):
        CODEC.decode_round(b"\xff\xff\xff")


def desired(**changes: object) -> link_pb2.DesiredState:
    """Return a good order, with changes to its bank, hashed."""
    point = link_pb2.PointCount(point="p", mode=link_pb2.MODE_MINING, power_w=10.0, count=2, units=[1])
    fields: dict[str, object] = {"bank": "b", "generation": 3, "grant_w": 100.0, "points": [point], **changes}
    bank = link_pb2.BankDesired(**fields)  # type: ignore[arg-type]
    bank.safe_shares.add(power_w=5.0)
    state = link_pb2.DesiredState(epoch=2, controller_instance="c", generation=4, banks=[bank], marker=9, ticket="t")
    state.ttl.FromNanoseconds(1_500_000_000)
    state.hash = desired_hash(state.banks)
    return state


def test_order_is_read_with_its_hash_checked() -> None:
    """Urgency that was never sent is planned; a safe share without a time is from now."""
    order = order_from_proto(desired())
    assert (order.epoch, order.generation, order.ttl_s, order.ticket) == (2, 4, 1.5, "t")
    assert order.banks[0].urgency is Urgency.PLANNED
    assert order.banks[0].safe_shares == (SafeShareStep(start_unix_s=None, power_w=5.0),)
    assert order.banks[0].points == (PointOrder(point="p", mode=Mode.MINING, power_w=10.0, count=2, units=(1,)),)


def test_order_with_a_wrong_hash_is_refused() -> None:
    """One changed watt is noticed."""
    state = desired()
    state.banks[0].grant_w = 101.0
    with pytest.raises(InvalidInput, match="hash"):
        order_from_proto(state)


@pytest.mark.parametrize(
    "changes",
    [
        {"grant_w": -1.0},
        {"grant_w": math.nan},
        {"device_budget_w": math.inf},
        {"points": [link_pb2.PointCount(point="p", mode=9, count=1)]},  # type: ignore[arg-type]
        {"points": [link_pb2.PointCount(point="p", mode=link_pb2.MODE_MINING, count=-1)]},
    ],
)
def test_order_with_numbers_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    """Negative, endless, not a number, an unknown mode: refused, never guessed."""
    with pytest.raises(InvalidInput):
        order_from_proto(desired(**changes))


def test_report_says_absent_where_nothing_is_known() -> None:
    """`reported_w` is unset before the agent knows; units and failures have their text forms."""
    bank = BankReport(
        bank="b",
        epoch=1,
        generation=2,
        grant_w=3.0,
        allowed_w=4.0,
        stragglers=(StragglerReport(device="d", reason="ignored", attempt_count=3),),
        ready_workloads=(UnitWorkload(unit=1, workload="w"),),
        failed_workloads=(UnitWorkload(unit=2, workload="w", reason="died: 9"),),
    )
    report = AgentReport(epoch=1, generation=2, hash="h", banks=(bank,), marker=5, boottime_s=1.5, boot_id="b")
    message = report_to_proto(report)
    assert not message.banks[0].HasField("reported_w")
    assert list(message.banks[0].ready_workloads) == ["1:w"]
    assert list(message.banks[0].failed_workloads) == ["2:w:died: 9"]
    assert message.boottime_ns == 1_500_000_000


def bank_of(*holdings: HoldingReport) -> BankReport:
    """Return a report of a bank with these holdings."""
    return BankReport(bank="b", epoch=1, generation=2, grant_w=3.0, allowed_w=4.0, unit_holdings=holdings)


def over_the_wire(bank: BankReport) -> link_pb2.BankEffective:
    """Return a bank's report as the controller gets it."""
    report = AgentReport(epoch=1, generation=2, hash="h", banks=(bank,), marker=5, boottime_s=1.5, boot_id="b")
    return link_pb2.EffectiveState.FromString(report_to_proto(report).SerializeToString()).banks[0]


def test_report_says_who_holds_each_unit() -> None:
    """Every field of a holding arrives; a bank without pods sends none."""
    held = HoldingReport(unit=1, holders=("a/p-0", "b/q"), workload="w", has_process=True, reason="held by a/p-0")
    free = HoldingReport(unit=2, holders=(), workload="", has_process=False, reason="")
    first, second = over_the_wire(bank_of(held, free)).unit_holdings
    assert (first.unit, list(first.holders), first.workload, first.has_process, first.reason) == (
        1,
        ["a/p-0", "b/q"],
        "w",
        True,
        "held by a/p-0",
    )
    assert (second.unit, list(second.holders), second.workload, second.has_process) == (2, [], "", False)
    assert not over_the_wire(bank_of()).unit_holdings


def test_kept_order_survives_the_disk_and_a_torn_one_is_refused() -> None:
    """The record is whole or refused."""
    counting = BankCounting(
        bank="b",
        gpu_limit_ratio=1.07,
        asic_target_ratio=1.1,
        asic_boot_w=1.0,
        rest_w=2.0,
        device_ceiling_w=3.0,
        cooling_ratio=0.1,
        losses_ratio=0.2,
        fixed_w=4.0,
    )
    kept = order_record.KeptOrder(order=order_from_proto(desired()), counting=(counting,))
    record = order_record.to_record(kept)
    assert order_record.from_record(record) == kept
    for cut in (record[:-10], b"", b"x" + record, record.replace(b'"epoch": 2', b'"epoch": 3')):
        with pytest.raises(InvalidInput):
            order_record.from_record(cut)


def test_window_never_begins_after_it_did_and_never_moves_back() -> None:
    """For any schedule of polls the dated start is at or before the true one."""
    window_s, lag_s = 1.0, 0.7
    dating = WindowDating()
    last_s = -math.inf
    for tick in range(200):
        asked_s = 100.0 + tick * 0.37
        count = int(asked_s - lag_s)  # a window ends at every whole second and shows 0.7 s later
        true_start_s = count - window_s
        window, dating = date_window(dating, count=count, asked_s=asked_s, window_s=window_s, lag_s=lag_s)
        assert window.start_s <= true_start_s + 1e-9
        assert window.start_s >= last_s
        last_s = window.start_s
    assert last_s > true_start_s - 2.5  # and not hopelessly early


def test_field_list_has_units_and_no_name_twice() -> None:
    """The golden list: every field has a meaning, names are unique, both kinds begin with power."""
    for fields, kind in ((GPU_FIELDS, Kind.GPU), (ASIC_FIELDS, Kind.ASIC)):
        names = [field.name for field in fields]
        assert len(names) == len(set(names)) and names[0] == "power_w"
        assert all(field.meaning for field in fields)
        assert value_fields(kind) + counter_fields(kind) == tuple(
            field.name for field in sorted(fields, key=lambda field: field.is_counter)
        )
