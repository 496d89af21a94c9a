"""Resource names."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus.faults import InvalidInput
from swingbus.names import (
    AgentName,
    BankName,
    CurtailmentName,
    DeviceName,
    FeederName,
    FlipName,
    PlanName,
    ReservationName,
    ResourceName,
    SiteName,
    escape_device,
    parse_id,
    parse_name,
)

EVERY_KIND: list[tuple[ResourceName, str]] = [
    (SiteName("north"), "sites/north"),
    (FeederName("north", "grid"), "sites/north/feeders/grid"),
    (AgentName("north", "edge-1"), "sites/north/agents/edge-1"),
    (BankName("north", "edge-1", "s19j"), "sites/north/agents/edge-1/banks/s19j"),
    (DeviceName("north", "edge-1", "s19j", "m07"), "sites/north/agents/edge-1/banks/s19j/devices/m07"),
    (FlipName("north", "fl-1"), "sites/north/flips/fl-1"),
    (CurtailmentName("north", "ct-1"), "sites/north/curtailments/ct-1"),
    (ReservationName("north", "acme-1"), "sites/north/reservations/acme-1"),
    (PlanName("north", 17), "sites/north/plans/17"),
]


@pytest.mark.parametrize(("name", "text"), EVERY_KIND, ids=lambda v: v if isinstance(v, str) else "")
def test_every_kind_is_written_and_read_back(name: ResourceName, text: str) -> None:
    """By its own parser and by the one that finds the kind out."""
    assert str(name) == text
    assert type(name).parse(text) == name
    assert parse_name(text) == name


@given(device=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=40))
@settings(max_examples=100)
def test_any_device_id_survives_its_name(device: str) -> None:
    """Slashes, percent signs and letters of any script are escaped and come back."""
    name = DeviceName("north", "edge-1", "s19j", device)
    text = str(name)
    assert text.count("/") == 7 and text.isascii()
    assert DeviceName.parse(text) == name


def test_gpu_uuid_and_mac_address_stay_readable() -> None:
    """Hardware ids keep their letters."""
    assert escape_device("GPU-5f3a9C") == "GPU-5f3a9C"
    assert escape_device("c2:af:01") == "c2:af:01"
    assert escape_device("rack 1/m07") == "rack%201%2Fm07"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("a/b", "slash"),
        ("Edge-1", "try 'edge-1'"),
        ("x" * 64, "64 characters"),
        ("-x", "starts with a letter"),
        ("a b", "may hold"),
        ("ä", "may hold"),
        ("a\n", "may hold"),
    ],
)
def test_bad_id_is_refused_with_what_is_wrong(text: str, problem: str) -> None:
    """The message names the problem, not only the rule."""
    with pytest.raises(InvalidInput, match=problem) as refused:
        parse_id(text, "agent")
    assert refused.value.metadata["field"] == "agent"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sites",
        "sites/",
        "north",
        "sites/north/",
        "sites/north/agents",
        "sites/north/agents/e/banks",
        "sites//agents/e",
        "sites/north/wrong/x",
        "sites/north/plans/x",
        "sites/north/plans/-1",
        "sites/north/agents/e/banks/b/devices/m%2",
        "sites/north/agents/e/banks/b/devices/",
        "sites/north/agents/e/banks/b/devices/a%00b",
        "/sites/north",
    ],
)
def test_bad_name_is_refused(text: str) -> None:
    """Nothing malformed becomes a name."""
    with pytest.raises(InvalidInput):
        parse_name(text)


def test_wrong_kind_says_the_form_that_was_wanted() -> None:
    """The next step is in the message."""
    with pytest.raises(InvalidInput, match=r"sites/\{site\}/agents/\{agent\}/banks/\{bank\}"):
        BankName.parse("sites/north/agents/edge-1")


@given(st.text(max_size=80))
@settings(max_examples=100)
def test_no_text_crashes_the_parser(text: str) -> None:
    """Whatever comes in is a name that reads back, or InvalidInput."""
    try:
        name = parse_name(text)
    except InvalidInput:
        return
    assert parse_name(str(name)) == name
