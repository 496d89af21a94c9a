"""Who holds a unit, as an agent says it: read whole or refused, never cut to another pod's name."""

from __future__ import annotations

import pytest

from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import link_pb2
from swingbus_controller.api.report_reader import ReportReader
from swingbus_controller.api.wire_checks import MAX_HOLDERS, MAX_TEXT
from swingbus_controller.domain.fleet.orders import BankReport, UnitHolding


def read(*holdings: link_pb2.UnitHolding) -> BankReport:
    """Return the bank of a report with these holdings."""
    bank = link_pb2.BankEffective(bank="h100", unit_holdings=holdings)
    return ReportReader("a").read(link_pb2.EffectiveState(boot_id="b", boottime_ns=1, banks=[bank])).banks[0]


def test_holdings_are_read_as_they_were_said() -> None:
    """Holders, workload, process and reason of each unit; a long reason is cut, for it is only for a person."""
    told = read(
        link_pb2.UnitHolding(
            unit=0, holders=["mining/m-0", "x/y.z"], workload="w", has_process=True, reason="r" * MAX_TEXT * 2
        ),
        link_pb2.UnitHolding(unit=3),
    )
    assert told.unit_holdings == (
        UnitHolding(unit=0, holders=("mining/m-0", "x/y.z"), workload="w", has_process=True, reason="r" * MAX_TEXT),
        UnitHolding(unit=3, holders=(), workload="", has_process=False, reason=""),
    )
    assert read().unit_holdings == ()


@pytest.mark.parametrize(
    "holdings",
    [
        [link_pb2.UnitHolding(unit=-1)],
        [link_pb2.UnitHolding(unit=1), link_pb2.UnitHolding(unit=1)],
        [link_pb2.UnitHolding(holders=["m-0"])],
        [link_pb2.UnitHolding(holders=["mining/"])],
        [link_pb2.UnitHolding(holders=["mining/m-0/x"])],
        [link_pb2.UnitHolding(holders=["mining/" + "m" * 254])],
        [link_pb2.UnitHolding(holders=["mining/m\n"])],
        [link_pb2.UnitHolding(holders=["a/b"] * (MAX_HOLDERS + 1))],
    ],
)
def test_holdings_that_cannot_be_are_refused(holdings: list[link_pb2.UnitHolding]) -> None:
    """A unit twice or below 0, a holder that is no pod, more holders than a node has: refused, never cut short."""
    with pytest.raises(InvalidInput):
        read(*holdings)


def test_what_was_read_before_changes_nothing_that_is_read() -> None:
    """A reader of many reports says of each what a new one says of it; a bank that says the same again is the same object."""
    held = link_pb2.UnitHolding(unit=0, holders=["mining/m-0"], workload="w", has_process=True)
    free = link_pb2.UnitHolding(unit=0)
    told = [
        link_pb2.EffectiveState(
            boot_id="b",
            boottime_ns=number,
            banks=[link_pb2.BankEffective(bank=name, unit_holdings=[holding]) for name, holding in banks],
        )
        for number, banks in enumerate(
            [
                [("h100", held), ("l40s", free)],
                [("h100", held), ("l40s", held)],
                [("l40s", held)],
                [("l40s", held), ("h100", free)],
                [("h100", free)],
            ]
        )
    ]
    reader = ReportReader("a")
    read = [reader.read(message) for message in told]
    assert read == [ReportReader("a").read(message) for message in told]
    assert read[1].banks[0] is read[0].banks[0] and read[1].banks[1] is not read[0].banks[1]
    with pytest.raises(InvalidInput, match="twice"):
        reader.read(link_pb2.EffectiveState(banks=[link_pb2.BankEffective(bank="h100")] * 2))
    assert reader.read(told[4]) == read[4], "what was refused left nothing behind"
