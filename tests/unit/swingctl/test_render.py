"""Tables that fit, JSON that is stable."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus.capacity.v1alpha import capacity_pb2 as capacity
from swingbus.fleet.v1alpha import fleet_pb2 as fleet
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_pb
from swingbus.link.v1alpha import link_pb2 as link
from swingctl.render import Column, enum_word, moment, render_facts, render_table, short_name, shorten, span, to_json
from tests.fakes.site_services import at

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
COLUMNS = (
    Column(title="NAME", shortens=True),
    Column(title="WATTS", right=True),
    Column(title="STATE"),
    Column(title="EXTRA", droppable=True),
    Column(title="WHY", wraps=True),
)
ROWS = [
    [
        "edge-1/s19j-pro-in-the-north-hall",
        "148 kW",
        "HELD",
        "something",
        "mining earns 62 USD/MWh at the strike, power costs 71",
    ],
    ["edge-2/m30s", "9.5 kW", "DARK", "", "unreachable since 11:52"],
]


def test_wide_table_is_one_line_a_row() -> None:
    """No idle blanks at the ends; numbers on the right."""
    lines = render_table(COLUMNS, ROWS, None).splitlines()
    assert len(lines) == 3
    assert all(line == line.rstrip() for line in lines)
    assert lines[1].index("148 kW") + 6 == lines[2].index("9.5 kW") + 6


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120])
def test_table_fits_the_terminal_and_loses_no_word_of_prose(width: int) -> None:
    """Prose wraps, ids lose their middle, a droppable column goes at last and is named."""
    text = render_table(COLUMNS, ROWS, width)
    body = [line for line in text.splitlines() if not line.startswith("(too narrow")]
    assert max(map(len, body)) <= width
    assert "HELD" in text and "148 kW" in text
    words = " ".join(text.split())
    assert all(word in words for word in ("strike,", "71", "unreachable"))
    if "something" not in text:
        assert "(too narrow for EXTRA" in text


@given(
    st.lists(st.tuples(*[st.text(alphabet="abc -", max_size=60)] * 5), min_size=1, max_size=4),
    st.integers(min_value=40, max_value=200),
)
@settings(max_examples=80)
def test_any_table_with_short_fixed_columns_fits(cells: list[tuple[str, ...]], width: int) -> None:
    """Whatever the flexible columns hold."""
    rows = [[row[0], row[1][:6], row[2][:6], row[3][:6], row[4]] for row in cells]
    text = render_table(COLUMNS, rows, width)
    body = [line for line in text.splitlines() if not line.startswith("(too narrow")]
    assert max(map(len, body)) <= width


def test_empty_table_prints_nothing() -> None:
    """The caller says what is missing."""
    assert render_table(COLUMNS, [], 80) == ""


def test_facts_hang_under_their_name_and_empty_ones_are_left_out() -> None:
    """Long values wrap beside, not under, the names."""
    text = render_facts([("name", "x"), ("pin", ""), ("why", "word " * 30)], 40)
    lines = text.splitlines()
    assert lines[0] == "name  x" and "pin" not in text
    assert all(len(line) <= 40 for line in lines) and lines[2].startswith("      word")


def test_shortened_text_keeps_both_ends() -> None:
    """Ids differ at their ends."""
    assert shorten("GPU-5f3a-9c01", 9) == "GPU-…9c01"
    assert shorten("short", 9) == "short"


def test_short_name_keeps_the_last_ids() -> None:
    """And shows device ids as they are."""
    assert short_name("sites/n/agents/edge-1/banks/s19j", 2) == "edge-1/s19j"
    assert short_name("sites/n/agents/e/banks/b/devices/GPU-1%2F2") == "GPU-1/2"


def test_json_holds_every_field_also_when_it_is_empty() -> None:
    """Scripts never have to ask whether a key is there; absent readings are null, not 0."""
    table = to_json(fleet.Site(name="sites/n", authority=fleet.AUTHORITY_OBSERVE))
    assert set(table) == {field.name for field in fleet.Site.DESCRIPTOR.fields}
    assert table["authority"] == "OBSERVE"
    assert table["metered_power_w"] is None and table["limit_w"] == 0.0
    assert table["changed_settings"] == []


def test_json_speaks_canonical_units_and_plain_numbers() -> None:
    """Seconds under _s, 64-bit integers as numbers, times as RFC 3339, maps as objects."""
    order = capacity.Curtailment(start_time=at(0.25), evidence=[capacity.Evidence(group="g")])
    order.ramp.FromNanoseconds(1_500_000_000)
    table = to_json(order)
    assert table["ramp_s"] == 1.5 and table["window_s"] is None
    assert table["start_time"] == "2026-11-23T12:00:00.250Z" and table["end_time"] is None
    assert table["evidence"][0]["group"] == "g"
    agent = to_json(fleet.Agent(acked_sequence=2**60, host_values={"b": 1.0, "a": math.nan}))
    assert agent["acked_sequence"] == 2**60
    assert json.dumps(agent["host_values"], allow_nan=False) == '{"a": null, "b": 1.0}'


def test_unknown_enum_number_is_said_not_guessed() -> None:
    """A newer controller may know more modes."""
    device = fleet.Device()
    device.MergeFromString(b"\x20\x63")  # field 4 (mode), number 99
    assert enum_word(device, "mode") == "UNRECOGNIZED_99"
    assert to_json(device)["mode"] == "UNRECOGNIZED_99"
    assert enum_word(fleet.Device(mode=link.MODE_MINING), "mode") == "MINING"


def test_every_response_of_the_fleet_service_becomes_json() -> None:
    """No field type is forgotten."""
    for name, descriptor in fleet_pb.DESCRIPTOR.message_types_by_name.items():
        json.dumps(to_json(getattr(fleet_pb, name)()), allow_nan=False)
        assert descriptor.full_name


def test_times_show_their_date_only_on_other_days() -> None:
    """And absence is a dash."""
    event = fleet.Event(event_time=at(-60))
    assert moment(event, "event_time", NOW) == "11:59:00Z"
    assert moment(fleet.Event(event_time=at(-86_400)), "event_time", NOW) == "2026-11-22 12:00Z"
    assert moment(fleet.Event(), "event_time", NOW) == "-"
    assert span(fleet.Limit(), "window") == "-"
