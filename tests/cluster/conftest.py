"""Real clusters for tests: one of a control plane with KWOK nodes, one with real nodes besides, each brought up once a session.

Where one can't run, its tests are skipped and the end of the run says so, with the reason; under CI=true that is a failure.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from swingbus.faults import NotFound, OverBudget
from swingbus_sim.cluster.layout import Layout, layout
from swingbus_sim.cluster.processes import run
from swingbus_sim.cluster.requirements import missing_for_nodes, prepare_for_nodes
from swingbus_sim.cluster.tools import CONTROL, NODES, ToolSet, ensure_tools
from swingbus_sim.cluster.up import Cluster, bring_up, take_down
from tools.images.build import DEFAULT_FOLDER, Built, build_images

_CHART = Path(__file__).parents[2] / "charts" / "swingbus"
KWOK_NODES = 3
REAL_NODES = 2
# The account of the chart's certificates job, in the namespace where charts are tried on real nodes.
CHARTED = "charted"
CERTIFICATES_USER = f"system:serviceaccount:{CHARTED}:swingbus-certificates"
_BUILD_TIMEOUT_S = 1800
_PLACES = 8  # runs of these tests side by side on one machine
_skipped: dict[str, str] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test of each file time for a build: a worker that begins with that file waits for it there."""
    ours = [item for item in items if item.get_closest_marker("cluster") or item.get_closest_marker("nodes")]
    for item in {item.path: item for item in reversed(ours)}.values():
        item.add_marker(pytest.mark.timeout(_BUILD_TIMEOUT_S), append=False)


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
    with _own_place("tests", say) as place:
        _build_or_skip("a real control plane", place, (CONTROL,), say)
        try:
            yield bring_up(place, kwok_node_count=KWOK_NODES, say=say)
        finally:
            take_down(place, say=say)


@pytest.fixture(scope="module")
def cluster_to_break(say: Callable[[str], None]) -> Iterator[Cluster]:
    """Return a control plane for tests that end parts of it: what they leave behind is nobody else's."""
    with _own_place("tests-breaks", say) as place:
        _build_or_skip("a real control plane", place, (CONTROL,), say)
        try:
            yield bring_up(place, kwok_node_count=1, say=say)
        finally:
            take_down(place, say=say)


@pytest.fixture(scope="session")
def real_cluster(say: Callable[[str], None]) -> Iterator[Cluster]:
    """Return a control plane with real nodes and KWOK's beside them; needs root."""
    with _own_place("tests-real", say) as place:
        prepare_for_nodes(say)
        if lacks := missing_for_nodes(place.home):
            _skip("real nodes (kubelets)", "; ".join(lacks))
        _build_or_skip("real nodes (kubelets)", place, (CONTROL, NODES), say)
        try:
            audited = (CERTIFICATES_USER,)
            yield bring_up(
                place, real_node_count=REAL_NODES, kwok_node_count=KWOK_NODES, audited_users=audited, say=say
            )
        finally:
            take_down(place, say=say)


@pytest.fixture(scope="session")
def images(say: Callable[[str], None]) -> Mapping[str, Built]:
    """Return our images by name, built where anything in them is newer than the last time."""
    return {built.recipe.name: built for built in build_images((), DEFAULT_FOLDER, say=say)}


@pytest.fixture(scope="module")
def cluster_with_pools(cluster: Cluster) -> Iterator[Cluster]:
    """Return the cluster with our definition, taken from the chart."""
    helm = str(cluster.tools.path("helm"))
    definition = run((helm, "template", "x", str(_CHART), "--show-only", "templates/crd-capacitypools.yaml"))
    cluster.kubectl("apply", "-f", "-", input_text=definition)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/capacitypools.swingbus.io")
    yield cluster
    cluster.kubectl("delete", "crd", "capacitypools.swingbus.io")


@contextmanager
def _own_place(prefix: str, say: Callable[[str], None]) -> Iterator[Layout]:
    """Hold a cluster name that no other run of the tests uses now, and end what runs that died left under it.

    The name is ours while we hold its lock; the kernel drops the lock of a run that dies, however it dies.
    """
    runs = layout(prefix).run.parent
    runs.mkdir(parents=True, exist_ok=True)
    for number in range(1, _PLACES + 1):
        name = f"{prefix}-{number}"
        with (runs / f"{name}.owner").open("w") as owner:
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for left in sorted(
                path for path in runs.glob(f"{name}*") if path.is_dir() and not path.name.endswith("-logs")
            ):
                take_down(layout(left.name), say=say)
            yield layout(name)
            return
    pytest.fail(f"{_PLACES} runs of these tests hold {runs / prefix}-*; wait for one to end")


def _build_or_skip(what: str, place: Layout, sets: tuple[ToolSet, ...], say: Callable[[str], None]) -> None:
    try:
        ensure_tools(place.tools, sets, say=say)
    except (NotFound, OverBudget) as lack:
        _skip(what, str(lack))


def skip_nodes(why: str) -> None:
    """Skip, loudly, a test that needs real nodes."""
    _skip("real nodes (kubelets)", why)


def _skip(what: str, why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must test {what}: {why}")
    _skipped[what] = why
    pytest.skip(f"{what}: {why}")
