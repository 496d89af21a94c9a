"""After a cluster with real nodes is down the machine is as before: looked at, not believed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from swingbus_sim.cluster import network, node
from swingbus_sim.cluster.layout import Layout, layout
from swingbus_sim.cluster.processes import Processes, read_id, wait_until
from swingbus_sim.cluster.up import Cluster, bring_up, take_down
from tests.cluster.leftovers import Traces, find_command, inhabitants, look, processes_below
from tests.cluster.pods import is_running, make_namespace, make_pod, make_probe_spec, wait_pod

pytestmark = pytest.mark.nodes
_MARKER = "swingbus-probe-left"


@pytest.fixture
def place(real_cluster: Cluster, say: Callable[[str], None]) -> Iterator[Layout]:
    """Return where a cluster of this test's own goes (real nodes can run here, or the session's cluster would not stand)."""
    own = layout(f"{real_cluster.layout.name}-gone")
    take_down(own, say=say)
    yield own
    take_down(own, say=say)


def _bring_up_with_a_pod(place: Layout, say: Callable[[str], None]) -> Cluster:
    cluster = bring_up(place, real_node_count=1, say=say)
    make_namespace(cluster.api, "left")
    spec = make_probe_spec("real-1", "python3", "-c", "import time; time.sleep(600)", _MARKER)
    cluster.api.create("/api/v1/namespaces/left/pods", make_pod("left", spec))
    wait_pod(cluster.api, "/api/v1/namespaces/left/pods/left", is_running, what="running")
    return cluster


def _everyone(cluster: Cluster) -> tuple[int, ...]:
    """Return every process of a cluster, those in its namespaces included."""
    processes = cluster.processes
    inits = [int(node.entry(processes, plan)[1].removeprefix("--target=")) for plan in cluster.real_nodes]
    holders = [processes.must_run(network.CONTROL_NETWORK).pid, *inits]
    return tuple({pid for holder in holders for pid in inhabitants(holder)})


def _assert_as_before(before: Traces, place: Layout) -> None:
    assert look(place.tag) == before
    assert processes_below(place.run) == ()
    assert find_command(_MARKER) == ()
    assert not place.run.exists()


def test_down_leaves_the_machine_as_it_was(place: Layout, say: Callable[[str], None]) -> None:
    """Processes, mounts, links, cgroups, kernel settings and folders: none more than before, with a pod still running at the time."""
    before = look(place.tag)
    cluster = _bring_up_with_a_pod(place, say)
    everyone = _everyone(cluster)
    assert len(everyone) > 10
    assert len(look(place.tag).cgroups) > len(before.cgroups)

    take_down(place, say=say)

    _assert_as_before(before, place)
    assert [pid for pid in everyone if read_id(pid) is not None] == []


def test_down_after_everything_was_killed_removes_what_is_left(place: Layout, say: Callable[[str], None]) -> None:
    """A node whose first process was killed is gone with its pods at once; its cgroups and disk go with the next down."""
    before = look(place.tag)
    cluster = _bring_up_with_a_pod(place, say)
    everyone = _everyone(cluster)

    for pid in everyone:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: find_command(_MARKER) == (), what="the pod ends with its node", timeout_s=10)
    take_down(place, say=say)

    _assert_as_before(before, place)


@pytest.mark.parametrize("stage", ["control-network", "init-real-1", "containerd-real-1", "kubelet-real-1"])
def test_bring_up_killed_at_any_stage_is_cleared(stage: str, place: Layout, say: Callable[[str], None]) -> None:
    """SIGKILL as soon as a certain process is there; the next bring-up would begin with the same clearing."""
    before = look(place.tag)
    command = [sys.executable, "-m", "swingbus_sim.cluster", "--name", place.name, "up", "--real-nodes", "1"]
    crashing = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: Processes(place.run).find(stage) is not None, what=stage, timeout_s=60)
    crashing.kill()
    crashing.wait()

    take_down(place, say=say)

    _assert_as_before(before, place)
