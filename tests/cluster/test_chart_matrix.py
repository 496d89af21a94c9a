"""Whole installations of the chart (charts/swingbus/ci): rendered as they were, taken by a real API server, nothing where it may not be."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from swingbus.faults import SwingbusError
from swingbus_sim.cluster.processes import run, wait_until
from swingbus_sim.cluster.up import Cluster
from tests.cluster.pods import exists

pytestmark = pytest.mark.cluster
CHART = Path(__file__).parents[2] / "charts" / "swingbus"
GOLDEN = Path(__file__).parents[1] / "golden" / "chart"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
FILES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
INSTALLATIONS = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
RELEASE_NAMESPACE = "swingbus-system"
# Of the Prometheus operator, whose definitions this cluster does not have; nobody here can say whether they are right.
NOT_ON_THIS_SERVER = {"ServiceMonitor", "PrometheusRule"}
# Kubernetes' own words by key; each may hold what a later Kubernetes adds. `global` is helm's.
OPEN_LEVELS = {"resources", "nodeSelector", "affinity", "annotations", "labels"}
OPEN_LISTS = {
    "tolerations", "extraEnv", "extraVolumes", "extraVolumeMounts", "linkFrom", "metricsFrom", "controllerEgress", "agentEgress",
}  # fmt: skip

_OPERATOR = ("--api-versions", "monitoring.coreos.com/v1")
# The definition depends on no value of theirs: one golden file that holds it is enough.
_WITH_DEFINITION = "gate-only"

Helm = Callable[..., str]


@pytest.fixture(scope="module")
def helm(cluster: Cluster) -> Helm:
    """Return a way to run helm; its refusal is raised."""
    return lambda *words: run((str(cluster.tools.path("helm")), *words))


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> Mapping[str, list[dict[str, Any]]]:
    """Return the objects of each installation."""
    return {
        name: list(
            filter(
                None,
                yaml.safe_load_all(
                    helm("template", "swingbus", str(CHART), "-n", RELEASE_NAMESPACE, *_OPERATOR, "-f", str(path))
                ),
            )
        )
        for name, path in FILES.items()
    }


def miners_namespace(name: str) -> str:
    """Return where an installation makes its miners."""
    found: str = INSTALLATIONS[name].get("miners", VALUES["miners"]).get("namespace", VALUES["miners"]["namespace"])
    return found


def things(value: Any) -> Iterator[tuple[str, Any]]:
    """Return every key with its value, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from things(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from things(inner)


def ordered(objects: list[dict[str, Any]]) -> str:
    """Return objects as one text that depends on what they say alone."""
    objects = sorted(
        objects, key=lambda each: (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
    )
    text: str = yaml.safe_dump_all(objects, width=140)
    return text


@pytest.mark.parametrize("name", FILES)
def test_linter_has_nothing_to_say(helm: Helm, name: str) -> None:
    """Neither an error nor a warning; what it calls an info (no icon) is our own business."""
    said = helm("lint", "--strict", str(CHART), "-n", RELEASE_NAMESPACE, "-f", str(FILES[name]))
    assert not re.findall(r"^\[(?!INFO).*", said, re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_installation_is_rendered_as_it_was(rendered: Mapping[str, list[dict[str, Any]]], name: str) -> None:
    """Compared object by object, so comments and order don't count; UPDATE_GOLDEN=1 writes the file instead."""
    path = GOLDEN / f"{name}.yaml"
    text = ordered([o for o in rendered[name] if name == _WITH_DEFINITION or o["kind"] != "CustomResourceDefinition"])
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden = ordered(list(yaml.safe_load_all(path.read_text(encoding="utf-8")))) if path.exists() else ""
    assert text == golden, f"{path.name} changed: look, then UPDATE_GOLDEN=1"


def test_no_golden_file_is_left_over() -> None:
    """Each belongs to an installation that is still there."""
    assert {path.stem for path in GOLDEN.iterdir()} == set(FILES)


@pytest.fixture(scope="module")
def kinds(cluster: Cluster) -> Mapping[str, bool]:
    """Return the kinds that the API server knows; true where they live in namespaces."""
    lines = cluster.kubectl("api-resources", "--no-headers").splitlines()
    return {words[-1]: words[-2] == "true" for words in (line.split() for line in lines)}


@pytest.fixture(scope="module")
def namespaces(cluster: Cluster) -> Iterator[None]:
    """Make the namespaces of all installations; gone at the end, for the chart makes some of them elsewhere in this run."""
    names = sorted({RELEASE_NAMESPACE, *map(miners_namespace, FILES)})
    made = [name for name in names if not exists(cluster.api, f"/api/v1/namespaces/{name}")]
    for name in made:
        cluster.kubectl("create", "namespace", name)
    yield
    cluster.kubectl("delete", "namespace", *made, "--wait=false")
    wait_until(
        lambda: not any(exists(cluster.api, f"/api/v1/namespaces/{name}") for name in made),
        what="no namespace is left",
        timeout_s=60,
    )


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("name", FILES)
def test_api_server_takes_every_object(
    cluster: Cluster, rendered: Mapping[str, list[dict[str, Any]]], kinds: Mapping[str, bool], name: str
) -> None:
    """Under strict validation, with all policies compiled; but for kinds that are named above and really not there."""
    assert not NOT_ON_THIS_SERVER & set(kinds)
    shown = [each for each in rendered[name] if each["kind"] not in NOT_ON_THIS_SERVER]
    text = "\n---\n".join(map(json.dumps, shown))
    words = ("apply", "--dry-run=server", "--validate=strict", "-o", "name", "-f", "-")
    taken = cluster.kubectl(*words, input_text=text).splitlines()
    assert len(taken) == len(shown) >= 10


@pytest.mark.parametrize("name", FILES)
def test_objects_are_in_the_two_namespaces_or_in_none(
    rendered: Mapping[str, list[dict[str, Any]]], kinds: Mapping[str, bool], name: str
) -> None:
    """Which the chart's README names: the release's own and the miners'. Each object says its namespace itself."""
    ours = {RELEASE_NAMESPACE, miners_namespace(name)}
    for each in rendered[name]:
        where = each["metadata"].get("namespace")
        assert where in ours if kinds.get(each["kind"], True) else where is None, (
            f"{each['kind']} {each['metadata']['name']}"
        )


@pytest.mark.parametrize("name", FILES)
def test_images_are_named_exactly_and_nothing_is_kept_in_a_pod(
    rendered: Mapping[str, list[dict[str, Any]]], name: str
) -> None:
    """A tag or a digest, never `latest`; what a program writes outlives its pod: no emptyDir, but memory."""
    found = list(things(rendered[name]))
    images = [value for key, value in found if key == "image"]
    programs = [key for key in ("controller", "agent") if INSTALLATIONS[name].get(key, {}).get("enabled")]
    assert bool(images) == bool(programs)
    assert not [image for image in images if not re.search(r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", image)]
    assert all(value["medium"] == "Memory" for key, value in found if key == "emptyDir")


def levels(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the path of each map in the values, the top one included, down to what is Kubernetes' own."""
    yield path
    for key, value in values.items():
        if isinstance(value, dict):
            yield from [(*path, key)] if key in OPEN_LEVELS else levels(value, (*path, key))


LEVELS = list(levels(VALUES))
OPEN = [path for path in LEVELS if path and path[-1] in OPEN_LEVELS]


def with_value(path: tuple[str, ...], value: Any) -> str:
    """Return helm's option for a value at a path."""
    for key in reversed(path):
        value = {key: value}
    first, inner = next(iter(value.items()))
    return f"{first}={json.dumps(inner)}"


@pytest.mark.parametrize("path", [path for path in LEVELS if path not in OPEN], ids=".".join)
def test_unknown_key_is_refused_at_every_level(helm: Helm, path: tuple[str, ...]) -> None:
    """With the place and the key: a misspelt one that is passed over would be a limit that nobody set."""
    words = re.escape(f"at '{''.join(f'/{key}' for key in path)}': additional properties 'misspelt' not allowed")
    with pytest.raises(SwingbusError, match=words):
        helm("template", "swingbus", str(CHART), "--set-json", with_value((*path, "misspelt"), 1))


@pytest.mark.parametrize("path", [("global",), *OPEN], ids=".".join)
def test_levels_that_are_not_ours_are_open(helm: Helm, path: tuple[str, ...]) -> None:
    """Exceptions are no more than what is needed: each of them takes a word that is not known yet."""
    assert helm("template", "swingbus", str(CHART), "--set-json", with_value((*path, "newer"), "x"))


@pytest.mark.parametrize("key", sorted(OPEN_LISTS))
def test_lists_of_kubernetes_objects_are_open(helm: Helm, key: str) -> None:
    """The same of what stands in lists."""
    places = [(program, key) for program in VALUES if key in VALUES[program]]
    assert places
    for place in places:
        assert helm("template", "swingbus", str(CHART), "--set-json", with_value(place, [{"newer": "x"}]))
