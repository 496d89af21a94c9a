"""`swingbus-controller gate` on a real API server: who waits, and the way out when no controller runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from swingbus_controller.main import main
from swingbus_sim.cluster.up import Cluster
from tests.cluster.pods import is_gated, make_namespace, make_pod, make_pod_spec, wait_pod

pytestmark = pytest.mark.cluster
_NAMESPACE = "by-hand"
_PODS = f"/api/v1/namespaces/{_NAMESPACE}/pods"


@pytest.fixture(scope="module", autouse=True)
def _namespace(cluster: Cluster) -> Iterator[None]:
    make_namespace(cluster.api, _NAMESPACE)
    yield
    cluster.api.delete(f"/api/v1/namespaces/{_NAMESPACE}")


def _gate(cluster: Cluster, *words: str) -> int:
    return main(["gate", words[0], "--kubeconfig", str(cluster.kubeconfig), *words[1:]])


def _make(cluster: Cluster, *names: str) -> None:
    for name in names:
        cluster.api.create(_PODS, make_pod(name, make_pod_spec(gated=True, gpu_count=2)))
        wait_pod(cluster.api, f"{_PODS}/{name}", is_gated, what="gated")


def test_named_pod_is_lifted_alone_and_says_why(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Listed with its GPUs and its wait; lifted it runs, and carries the reason; its neighbour waits on."""
    _make(cluster, "first", "second")
    assert _gate(cluster, "list", "--output", "json") == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["namespace"] == _NAMESPACE]
    assert [(row["pod"], row["gpus"], row["other_gates"]) for row in rows] == [("first", 2, ""), ("second", 2, "")]
    assert all(0 <= row["waits_s"] < 60 for row in rows)

    assert _gate(cluster, "lift", f"{_NAMESPACE}/first", "--reason", "ticket 4711") == 0

    assert capsys.readouterr().out == f"lifted {_NAMESPACE}/first\n"
    wait_pod(cluster.api, f"{_PODS}/first", lambda pod: "nodeName" in pod["spec"], what="bound")
    marks = cluster.api.get(f"{_PODS}/first")["metadata"]["annotations"]
    assert marks["swingbus.io/lifted-because"] == "ticket 4711" and marks["swingbus.io/lifted-by-hand"]
    assert is_gated(cluster.api.get(f"{_PODS}/second"))


def test_all_that_wait_are_lifted_before_an_uninstall(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is left behind; then there is nobody to list."""
    _make(cluster, "third")
    assert _gate(cluster, "lift", "--all", "--reason", "uninstalling") == 0
    assert f"lifted {_NAMESPACE}/third\n" in capsys.readouterr().out
    assert _gate(cluster, "list") == 0
    assert capsys.readouterr().out == "nobody waits behind swingbus.io/power\n"


def test_wrong_names_lift_nobody(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """A pod that does not wait stops the whole call; naming none, or some and all, is refused before anything is asked."""
    _make(cluster, "fourth")
    assert _gate(cluster, "lift", f"{_NAMESPACE}/fourth", f"{_NAMESPACE}/nobody", "--reason", "x") == 1
    assert "by-hand/nobody waits behind" in capsys.readouterr().err
    assert is_gated(cluster.api.get(f"{_PODS}/fourth"))
    assert _gate(cluster, "lift", "--reason", "x") == 2
    assert _gate(cluster, "lift", f"{_NAMESPACE}/fourth", "--all", "--reason", "x") == 2
    assert _gate(cluster, "lift", f"{_NAMESPACE}/fourth", "--as-group", "swingbus:break-glass", "--reason", "x") == 2
    assert is_gated(cluster.api.get(f"{_PODS}/fourth"))
