"""Real nodes: what KWOK can't show. Processes that run and end, names and services, a kubelet that dies while its pods live."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swingbus.faults import WrongState
from swingbus_sim.cluster import node
from swingbus_sim.cluster.outside import publish
from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.cluster.up import Cluster
from tests.cluster.leftovers import find_command, listening
from tests.cluster.pods import (
    exists,
    is_gated,
    is_running,
    lift,
    make_namespace,
    make_pod,
    make_probe_spec,
    wait_gone,
    wait_pod,
)

pytestmark = pytest.mark.nodes
_NAMESPACE = "probes"
_PODS = f"/api/v1/namespaces/{_NAMESPACE}/pods"
_SLEEP = "import sys, time; time.sleep(600)"
_ANSWER = (
    "import http.server, os\n"
    "class Answer(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(os.environ['HOSTNAME'].encode())\n"
    "http.server.ThreadingHTTPServer(('', 8080), Answer).serve_forever()\n"
)
_ASK = "import urllib.request, sys\nfor _ in range(20): print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
_ASK_API = (
    "import json, ssl, urllib.request\n"
    "home = '/var/run/secrets/kubernetes.io/serviceaccount/'\n"
    "request = urllib.request.Request('https://kubernetes.default.svc/version',"
    " headers={'Authorization': 'Bearer ' + open(home + 'token').read()})\n"
    "context = ssl.create_default_context(cafile=home + 'ca.crt')\n"
    "print(json.load(urllib.request.urlopen(request, timeout=5, context=context))['gitVersion'])\n"
)


@pytest.fixture(scope="module", autouse=True)
def _namespace(real_cluster: Cluster) -> Iterator[None]:
    make_namespace(real_cluster.api, _NAMESPACE)
    yield
    real_cluster.api.delete(f"/api/v1/namespaces/{_NAMESPACE}")


def _start_probe(cluster: Cluster, name: str, node: str, *command: str, label: str = "") -> str:
    """Start a probe, wait until it runs, and return its path."""
    cluster.api.create(_PODS, make_pod(name, make_probe_spec(node, *command), labels={"app": label or name}))
    wait_pod(cluster.api, f"{_PODS}/{name}", is_running, what="running")
    return f"{_PODS}/{name}"


def _ask(cluster: Cluster, name: str, *command: str) -> str:
    return cluster.kubectl("exec", f"--namespace={_NAMESPACE}", name, "--", "python3", "-c", *command)


def test_control_plane_goes_first(real_cluster: Cluster) -> None:
    """By its session's niceness where the kernel weighs sessions, else by its own."""
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        pid = real_cluster.processes.must_run(name).pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == -10
        session = Path(f"/proc/{pid}/autogroup")
        assert not session.exists() or session.read_text().split()[-1] == "-10", session.read_text()


def test_host_sees_one_port_and_no_kubelet(real_cluster: Cluster) -> None:
    """Of all that runs only the relay is in the host's network, on loopback."""
    processes = real_cluster.processes
    by_name = {name: listening([processes.must_run(name).pid]) for name in processes.names()}

    open_ones = {name: found for name, found in by_name.items() if found}

    assert list(open_ones) == ["api-relay"]
    assert {address for address, _ in open_ones["api-relay"]} == {"127.0.0.1"}


def test_gate_lifted_starts_a_process_and_delete_ends_it(real_cluster: Cluster) -> None:
    """Gate, lift, a living process on the node that was named; after the delete there is no process."""
    api, marker = real_cluster.api, "swingbus-probe-gated"
    spec = make_probe_spec("real-1", "python3", "-c", _SLEEP, marker)
    del spec["nodeSelector"]
    api.create(_PODS, make_pod("gated", {**spec, "schedulingGates": [{"name": "swingbus.io/power"}]}))
    wait_pod(api, f"{_PODS}/gated", is_gated, what="gated")
    assert find_command(marker) == ()

    api.patch(f"{_PODS}/gated", lift("real-2"))
    wait_pod(api, f"{_PODS}/gated", is_running, what="running")

    assert len(find_command(marker)) == 1
    assert api.get(f"{_PODS}/gated")["spec"]["nodeName"] == "real-2"
    api.delete(f"{_PODS}/gated")
    wait_gone(api, f"{_PODS}/gated")
    assert find_command(marker) == ()


def test_pods_find_each_other_and_the_api_by_name(real_cluster: Cluster) -> None:
    """A service's name leads to its pods on both nodes; the API answers at its own with a certificate for that name."""
    api = real_cluster.api
    for name in ("real-1", "real-2"):
        _start_probe(real_cluster, f"answer-{name}", name, "python3", "-c", _ANSWER, label="answer")
    port = {"port": 80, "targetPort": 8080}
    api.create(
        f"/api/v1/namespaces/{_NAMESPACE}/services",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "answer"},
            "spec": {"selector": {"app": "answer"}, "ports": [port]},
        },
    )
    _start_probe(real_cluster, "asker", "real-2", "python3", "-c", _SLEEP)
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{_NAMESPACE}/endpointslices?labelSelector=kubernetes.io/service-name%3Danswer"
    wait_until(
        lambda: sum(len(found["endpoints"]) for found in api.get(slices)["items"]) == 2,
        what="two endpoints",
        timeout_s=10,
    )
    time.sleep(1.0)  # kube-proxy writes its rules at most once a second

    answers = _ask(real_cluster, "asker", _ASK, f"http://answer.{_NAMESPACE}.svc.cluster.local").split()
    by_address = _ask(
        real_cluster,
        "asker",
        _ASK,
        f"http://{api.get(f'/api/v1/namespaces/{_NAMESPACE}/services/answer')['spec']['clusterIP']}",
    ).split()

    assert set(answers) | set(by_address) == {"answer-real-1", "answer-real-2"}
    assert _ask(real_cluster, "asker", _ASK_API).strip() == "v1.37.2"


def test_pods_reach_a_program_beside_the_control_plane_by_name(real_cluster: Cluster) -> None:
    """A controller under development is a process, not a pod; pods call it by a service's name all the same."""
    _start_probe(real_cluster, "caller", "real-1", "python3", "-c", _SLEEP)
    name = publish(real_cluster, namespace=_NAMESPACE, name="controller", port=8080)
    real_cluster.processes.start(
        "controller", (sys.executable, "-c", _ANSWER), enter=real_cluster.enter, environment={"HOSTNAME": "beside"}
    )

    def answers() -> bool:
        try:
            return set(_ask(real_cluster, "caller", _ASK, f"http://{name}:8080").split()) == {"beside"}
        except WrongState:
            return False

    try:
        wait_until(answers, what=f"{name} answers in a pod", timeout_s=20, poll_s=0.5)
    finally:
        real_cluster.processes.end("controller")


def test_pod_without_a_selector_stays_off_kwok(real_cluster: Cluster) -> None:
    """KWOK's nodes beside real ones take only who tolerates them: anything else would seem to run and do nothing."""
    spec = make_probe_spec("any", "python3", "-c", _SLEEP)
    del spec["nodeSelector"]
    real_cluster.api.create(_PODS, make_pod("anywhere", spec))

    wait_pod(real_cluster.api, f"{_PODS}/anywhere", is_running, what="running")

    assert real_cluster.api.get(f"{_PODS}/anywhere")["spec"]["nodeName"].startswith("real-")


def test_dead_kubelet_leaves_pods_alive_until_it_is_back(real_cluster: Cluster) -> None:
    """With its kubelet dead a pod lives on, even one that was force-deleted: gone in the API is no evidence that it ended."""
    api, processes = real_cluster.api, real_cluster.processes
    kept = _start_probe(real_cluster, "kept", "real-1", "python3", "-c", _SLEEP, "swingbus-probe-kept")
    dropped = _start_probe(real_cluster, "dropped", "real-1", "python3", "-c", _SLEEP, "swingbus-probe-dropped")

    processes.end("kubelet-real-1")
    api.delete(dropped, grace_s=0)
    wait_gone(api, dropped)
    time.sleep(2.0)

    assert len(find_command("swingbus-probe-kept")) == 1
    assert len(find_command("swingbus-probe-dropped")) == 1, "force-deleted, and its process still runs"
    first = find_command("swingbus-probe-kept")
    processes.restart("kubelet-real-1")
    wait_until(lambda: find_command("swingbus-probe-dropped") == (), what="the orphan ends", timeout_s=60, poll_s=0.2)
    assert find_command("swingbus-probe-kept") == first, "a restart of the kubelet restarts no pod"
    assert exists(api, kept)


def test_containerd_killed_and_back_keeps_pods(real_cluster: Cluster) -> None:
    """Pods hang on their shims, not on containerd; back again, it knows them."""
    path = _start_probe(real_cluster, "survivor", "real-2", "python3", "-c", _SLEEP, "swingbus-probe-survivor")
    first = find_command("swingbus-probe-survivor")

    real_cluster.processes.end("containerd-real-2")
    time.sleep(1.0)
    assert find_command("swingbus-probe-survivor") == first
    real_cluster.processes.restart("containerd-real-2")
    real_cluster.api.delete(path)

    wait_gone(real_cluster.api, path, timeout_s=60)
    assert find_command("swingbus-probe-survivor") == ()


def test_node_that_boots_again_starts_its_pods_without_asking(real_cluster: Cluster) -> None:
    """Power gone, all processes are; after the boot a bound pod starts again in place: no gate, no scheduler, same object."""
    path = _start_probe(real_cluster, "bound", "real-2", "python3", "-c", _SLEEP, "swingbus-probe-bound")
    uid, first = real_cluster.api.get(path)["metadata"]["uid"], find_command("swingbus-probe-bound")
    plan = real_cluster.real_nodes[1]

    node.cut_power(real_cluster.processes, real_cluster.layout, plan)
    assert find_command("swingbus-probe-bound") == ()
    node.boot(real_cluster.processes, real_cluster.layout, plan, real_cluster.real_nodes)

    wait_until(
        lambda: len(find_command("swingbus-probe-bound")) == 1, what="the pod runs again", timeout_s=90, poll_s=0.2
    )
    assert find_command("swingbus-probe-bound") != first
    assert real_cluster.api.get(path)["metadata"]["uid"] == uid
    wait_pod(real_cluster.api, path, is_running, what="running again", timeout_s=60)
