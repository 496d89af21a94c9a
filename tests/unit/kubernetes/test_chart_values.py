"""The chart's values: its schema says the same keys, and the installations in ci/ are whole ones, with files that our programs read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from swingbus_agent.settings import load_settings
from swingbus_controller.settings import load_configuration

CHART = Path(__file__).parents[3] / "charts" / "swingbus"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
INSTALLATIONS = {
    path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((CHART / "ci").glob("*-values.yaml"))
}
HELM_OWN = {"global"}  # any chart takes it; ours reads nothing from it


def described(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Return the dotted keys of a schema, down to where Kubernetes' own words begin."""
    for key, inner in schema["properties"].items():
        if "properties" in inner:
            yield from described(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def leaves(values: Mapping[str, Any], ends: set[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Return dotted keys and values; `ends` are keys below which nothing is ours."""
    for key, value in values.items():
        if isinstance(value, dict) and value and f"{path}{key}" not in ends:
            yield from leaves(value, ends, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


DESCRIBED = set(described(SCHEMA))
DEFAULTS = dict(leaves(VALUES, DESCRIBED))


def test_values_and_schema_have_the_same_keys() -> None:
    """A value that the schema forgot could not be set; one that has no default would be missing in the README."""
    assert set(DEFAULTS) == DESCRIBED - HELM_OWN


def test_every_switch_is_seen_both_ways_by_some_installation() -> None:
    """What is in no installation is rendered by nobody before a user does it."""
    seen: dict[str, set[bool]] = {path: {value} for path, value in DEFAULTS.items() if isinstance(value, bool)}
    for values in INSTALLATIONS.values():
        for path, value in leaves(values, DESCRIBED):
            if path in seen:
                seen[path].add(value)
    assert len(seen) >= 10
    assert not [path for path, values in seen.items() if len(values) == 1]


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_installation_says_whose_it_is(name: str) -> None:
    """In one or two lines at the top, for who looks for the nearest one."""
    lines = (CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8").splitlines()
    comment = [line for line in lines[:3] if line.startswith("# ")]
    assert lines[: len(comment)] == comment and 1 <= len(comment) <= 2


@pytest.mark.parametrize(
    "name", [name for name, each in INSTALLATIONS.items() if each.get("controller", {}).get("site")]
)
def test_site_file_of_an_installation_is_a_right_one(name: str, tmp_path: Path) -> None:
    """Read as the controller reads it."""
    path = tmp_path / "site.toml"
    path.write_text(INSTALLATIONS[name]["controller"]["site"], encoding="utf-8")
    assert load_configuration(path, environment={}).site.name


@pytest.mark.parametrize("name", [name for name, each in INSTALLATIONS.items() if each.get("agent", {}).get("enabled")])
def test_agent_files_of_an_installation_are_right_ones(name: str, tmp_path: Path) -> None:
    """Read as each node's agent reads them, under the two keys that the chart writes."""
    agent = INSTALLATIONS[name]["agent"]
    for node in agent["nodes"]:
        path = tmp_path / "agent.toml"
        head = f'name = "{node["name"]}"\nwrites = {str(agent.get("writes", False)).lower()}\n'
        path.write_text(head + node.get("config", agent["config"]), encoding="utf-8")
        assert [bank.name for bank in load_settings(path, {}).banks]
