"""Scenario files: what is refused, and how clearly."""

from __future__ import annotations

from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, NotFound
from swingbus_sim.scenario_file import SCENARIO_FOLDER, event_from_mapping, load_scenario, scenario_names

_SMALL = (SCENARIO_FOLDER / "small.toml").read_text(encoding="utf-8")


def _load(folder: Path, text: str) -> None:
    path = folder / "made.toml"
    path.write_text(text, encoding="utf-8")
    load_scenario(path)


def test_shipped_scenarios_load() -> None:
    """Every scenario that ships is valid."""
    assert set(scenario_names()) >= {"demo", "small"}
    for name in scenario_names():
        assert load_scenario(name).name == name


def test_unknown_key_is_refused_with_line_and_suggestion(tmp_path: Path) -> None:
    """A typo names file, line and the key that was meant."""
    text = _SMALL.replace("start_mining = 4", "start_minning = 4")
    line = next(i for i, row in enumerate(text.splitlines(), start=1) if row.startswith("start_minning"))

    with pytest.raises(
        InvalidInput, match=rf"made\.toml:{line}: miners\[0\]\.start_minning: unknown key .*'start_mining'"
    ):
        _load(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'parent = "grid"\nlimit_w = 44000',
            'parent = "grit"\nlimit_w = 44000',
            "is not a node above this one .did you mean 'grid'",
        ),
        ("limit_w = 38000", 'limit_w = "38 kW"', "limit_w: wants a number"),
        ("limit_w = 38000", "limit_w = -1", "must lie in"),
        ('first_address = "127.11.2.1"', 'first_address = "10.0.0.1"', "not a loopback address"),
        ('first_address = "127.11.2.1"', 'first_address = "127.11.1.3"', "share the address 127.11.1.3"),
        ('class = "s19k-pro-luxos"', 'class = "s19k-pro"', "choose one of"),
        ('address = "127.21.0.2"', 'address = "127.21.0.1"', "share 127.21.0.1:5020"),
        ("points = [[0, 40]]", "points = [[0, 40], [0, 50]]", "seconds must rise"),
        ("points = [[0, 40]]", "points = []", "no points"),
        ("format = 1", "format = 2", "reads format 1"),
        ("seed = 7", "", "'seed' is missing"),
        ("format = 1", "format = ", "not valid TOML"),
    ],
)
def test_bad_value_is_refused_in_plain_words(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Each kind of mistake says what is wrong."""
    assert old in _SMALL
    with pytest.raises(InvalidInput, match=message):
        _load(tmp_path, _SMALL.replace(old, new, 1))


def test_event_for_an_unknown_target_is_refused() -> None:
    """A fault for a machine that is not there names the nearest that is."""
    scenario = load_scenario("small")

    with pytest.raises(InvalidInput, match=r"no 'lux-01' .*did you mean 'lux-001'"):
        event_from_mapping({"kind": "hung_socket", "targets": ["lux-01"]}, scenario, now_s=1.0)
    with pytest.raises(InvalidInput, match="does not take this"):
        event_from_mapping({"kind": "hung_socket", "targets": ["lux-001"], "ratio": 2.0}, scenario, now_s=1.0)
    with pytest.raises(InvalidInput, match="needs 'ratio'"):
        event_from_mapping({"kind": "draws_more", "targets": ["lux-001"]}, scenario, now_s=1.0)


def test_missing_scenario_lists_what_there_is() -> None:
    """An unknown name is answered with the known ones."""
    with pytest.raises(NotFound, match="demo"):
        load_scenario("nosuch")


def test_shift_moves_every_address() -> None:
    """Two runs side by side share no address."""
    plain, shifted = load_scenario("small"), load_scenario("small", shift=5)

    assert set(plain.addresses().values()).isdisjoint(shifted.addresses().values())
    assert shifted.addresses()["lux-001"] == "127.16.1.1"
    assert {m.address for m in plain.meters}.isdisjoint({m.address for m in shifted.meters})
