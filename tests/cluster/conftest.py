"""Real clusters for tests: one of a control plane with KWOK nodes, one with real nodes besides, each brought up once a session.

Where one can't run, its tests are skipped and the end of the run says so, with the reason; under CI=true that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from swingbus.faults import NotFound, OverBudget
from swingbus_sim.cluster.layout import Layout, layout
from swingbus_sim.cluster.requirements import install_packages, missing_for_nodes
from swingbus_sim.cluster.tools import CONTROL, NODES, ToolSet, ensure_tools
from swingbus_sim.cluster.up import Cluster, bring_up, take_down

KWOK_NODES = 3
REAL_NODES = 2
_BUILD_TIMEOUT_S = 1800
_skipped: dict[str, str] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test time for a build: it is the one that waits for it."""
    ours = [item for item in items if item.get_closest_marker("cluster") or item.get_closest_marker("nodes")]
    for item in ours[:1]:
        item.add_marker(pytest.mark.timeout(_BUILD_TIMEOUT_S))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what did not run."""
    for what, why in _skipped.items():
        terminalreporter.section(f"NOT TESTED: {what}", red=True, bold=True)
        terminalreporter.line(why)


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return what prints progress past pytest's capture."""
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")

    def tell(words: str) -> None:
        if isinstance(reporter, pytest.TerminalReporter):
            reporter.write_line(f"cluster: {words}")

    return tell


@pytest.fixture(scope="session")
def cluster(say: Callable[[str], None]) -> Iterator[Cluster]:
    """Return a control plane with KWOK nodes, all on loopback; needs no root."""
    place = layout("tests")
    _build_or_skip("a real control plane", place, (CONTROL,), say)
    take_down(place, say=say)
    try:
        yield bring_up(place, kwok_node_count=KWOK_NODES, say=say)
    finally:
        take_down(place, say=say)


@pytest.fixture(scope="session")
def real_cluster(say: Callable[[str], None]) -> Iterator[Cluster]:
    """Return a control plane with real nodes and KWOK's beside them; needs root."""
    place = layout("tests-real")
    install_packages(say)
    if lacks := missing_for_nodes(place.home):
        _skip("real nodes (kubelets)", "; ".join(lacks))
    _build_or_skip("real nodes (kubelets)", place, (CONTROL, NODES), say)
    take_down(place, say=say)
    try:
        yield bring_up(place, real_node_count=REAL_NODES, kwok_node_count=KWOK_NODES, say=say)
    finally:
        take_down(place, say=say)


def _build_or_skip(what: str, place: Layout, sets: tuple[ToolSet, ...], say: Callable[[str], None]) -> None:
    try:
        ensure_tools(place.tools, sets, say=say)
    except (NotFound, OverBudget) as lack:
        _skip(what, str(lack))


def _skip(what: str, why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must test {what}: {why}")
    _skipped[what] = why
    pytest.skip(f"{what}: {why}")
