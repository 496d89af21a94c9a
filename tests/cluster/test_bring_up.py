"""Bringing a cluster up and taking it down: nothing is open to others, nothing is left, also after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swingbus.faults import Forbidden, InvalidInput, Unreachable, WrongState
from swingbus_sim.cluster.api import Api
from swingbus_sim.cluster.certificates import Pair
from swingbus_sim.cluster.layout import layout
from swingbus_sim.cluster.processes import Processes, wait_until
from swingbus_sim.cluster.requirements import free_watchers
from swingbus_sim.cluster.up import Cluster, bring_up, find_cluster, take_down
from tests.cluster.etcd import Etcd
from tests.cluster.leftovers import listening, processes_below

pytestmark = pytest.mark.cluster


def api_as(cluster: Cluster, program: str) -> Api:
    """Return the way to the API server of one of the cluster's own programs."""
    certificates = cluster.layout.certificates
    user = Pair(certificates / f"{program}.crt", certificates / f"{program}.key")
    port = next(port for _, port in listening([cluster.processes.must_run("kube-apiserver").pid]))
    return Api(host="127.0.0.1", port=port, authority=certificates / "cluster.crt", user=user)


def test_everything_listens_on_loopback_alone(cluster: Cluster) -> None:
    """No other machine can reach any part of it."""
    ids = [cluster.processes.must_run(name).pid for name in cluster.processes.names()]

    addresses = listening(ids)

    assert addresses, "the API server at least listens"
    assert {address for address, _ in addresses} == {"127.0.0.1"}


def test_strangers_are_refused(cluster: Cluster) -> None:
    """etcd takes the API server's certificate alone, and a user whom no role names may read nothing."""
    etcd_ports = {port for _, port in listening([cluster.processes.must_run("etcd").pid])}
    certificates = cluster.layout.certificates
    admin = Pair(certificates / "admin.crt", certificates / "admin.key")
    for port in etcd_ports:
        with pytest.raises(Unreachable):
            Api(host="127.0.0.1", port=port, authority=certificates / "etcd-authority.crt", user=admin).get("/health")
    assert Etcd(cluster).revision() > 0, "with the API server's it answers, so it was the certificate that was refused"

    with pytest.raises(Forbidden, match="kwok"):
        api_as(cluster, "kwok").get("/api/v1/secrets")


def test_second_bring_up_is_refused_and_the_first_is_found(cluster: Cluster, say: Callable[[str], None]) -> None:
    """A cluster that stands is never trampled; another program can use it."""
    with pytest.raises(WrongState, match="stands already"):
        bring_up(cluster.layout, say=say)

    assert find_cluster(cluster.layout).api.is_ready()
    assert "kwok-001" in find_cluster(cluster.layout).kubectl("get", "nodes")


def test_api_server_killed_and_back_serves_the_same_objects(cluster: Cluster) -> None:
    """An outage of the control plane can be played: killed, unreachable, restarted on the same port with the same data."""
    before = cluster.api.get("/api/v1/nodes/kwok-001")["metadata"]["uid"]

    cluster.processes.end("kube-apiserver")
    with pytest.raises(Unreachable):
        cluster.api.get("/api/v1/nodes")
    cluster.processes.restart("kube-apiserver")
    cluster.processes.wait_ready("kube-apiserver", cluster.api.is_ready, timeout_s=60)

    assert cluster.api.get("/api/v1/nodes/kwok-001")["metadata"]["uid"] == before


def test_killed_bring_up_is_cleared_by_the_next_down(cluster: Cluster, say: Callable[[str], None]) -> None:
    """A bring-up that dies by SIGKILL half way leaves processes; whoever comes next ends them by their ids."""
    place = layout(f"{cluster.layout.name}-crash")
    take_down(place, say=say)
    command = [sys.executable, "-m", "swingbus_sim.cluster", "--name", place.name, "up", "--real-nodes", "0"]
    crashing = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: Processes(place.run).find("kube-apiserver") is not None, what="an API server", timeout_s=30)
    crashing.send_signal(signal.SIGKILL)
    crashing.wait()
    assert processes_below(place.run)

    take_down(place, say=say)

    assert processes_below(place.run) == ()
    assert not place.run.exists()


def test_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    """A record whose pid belongs to somebody else by now (another start time) is forgotten, its new owner untouched."""
    processes = Processes(tmp_path)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        time.sleep(0.05)  # start times are counted in hundredths of a second
        mine = processes.start("mine", ("sleep", "60"))
        true = (tmp_path / "records" / "mine").read_text()
        (tmp_path / "records" / "mine").write_text(true.replace(str(mine.pid), str(stranger.pid), 1))

        assert processes.end_all() == 0

        assert stranger.poll() is None
        os.kill(mine.pid, signal.SIGKILL)
    finally:
        stranger.kill()
        stranger.wait()


def test_program_that_dies_at_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    """Waiting for it stops at once and shows the end of its log."""
    processes = Processes(tmp_path)
    processes.start("brief", ("sh", "-c", "echo no such flag; exit 3"))

    with pytest.raises(WrongState, match="no such flag"):
        processes.wait_ready("brief", lambda: False, timeout_s=10)


@pytest.mark.parametrize("name", ["", "../up", "Upper", "a" * 40])
def test_name_that_is_no_name_is_refused(name: str) -> None:
    """A cluster's name becomes part of paths."""
    with pytest.raises(InvalidInput):
        layout(name)


def test_machine_without_inotify_instances_is_told_what_to_set(tmp_path: Path) -> None:
    """kube-proxy would end by itself with `too many open files`, long after the start: counted before. Here few files may be open."""
    ask = (
        "import pathlib, resource, sys\n"
        "from swingbus_sim.cluster.requirements import missing_for_nodes\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
        "print(*missing_for_nodes(pathlib.Path(sys.argv[1])), sep='\\n')"
    )
    told = subprocess.run([sys.executable, "-c", ask, str(tmp_path)], capture_output=True, text=True, check=True).stdout

    assert "of 40 inotify instances only" in told
    assert "fs.inotify.max_user_instances=1024" in told


def test_inotify_instances_are_given_back_after_they_were_counted() -> None:
    """Counting twice finds as many."""
    assert [free_watchers(5), free_watchers(5)] == [5, 5]
