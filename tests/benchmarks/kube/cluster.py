"""A fresh cluster for one run: control plane, KWOK nodes with labels, and quick ways to write many objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import local
from typing import Any

from swingbus.faults import Unreachable, WrongState
from swingbus_sim.cluster import kwok
from swingbus_sim.cluster.layout import layout
from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.cluster.up import Cluster, bring_up, take_down
from swingbus_sim.kwok_site.plan import SitePlan
from swingbus_sim.kwok_site.watching import ApiAddress

PRODUCT_LABEL, PRODUCT = "nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3"
CONTAINER_LABEL, CONTAINER = "swingbus.io/container", "grid"
GRACE_S = 2
IMAGE = "swingbus.invalid/work:1"
_WRITERS = 8
_NODES_TIMEOUT_S = 300.0


@contextmanager
def fresh_cluster(say: Callable[[str], None]) -> Iterator[Cluster]:
    """Bring a cluster without nodes up, and take it down."""
    place = layout("bench-kube")
    take_down(place, say=say)  # what a run that was killed left
    try:
        yield bring_up(place, say=say)
    finally:
        take_down(place, say=say)


def add_nodes(cluster: Cluster, writer: Writer, plan: SitePlan, labels: Mapping[str, Mapping[str, str]]) -> None:
    """Create the plan's nodes and return when all are ready.

    Args:
        labels: further ones, by node.
    """
    usual = {PRODUCT_LABEL: PRODUCT, CONTAINER_LABEL: CONTAINER}
    bodies = [
        kwok.node(name, gpu_count=plan.gpus_per_node, labels={**usual, **labels.get(name, {})}) for name in plan.nodes
    ]
    writer.create_all("/api/v1/nodes", bodies)

    def all_ready() -> bool:
        items = cluster.api.get("/api/v1/nodes")["items"]
        conditions = [item.get("status", {}).get("conditions", []) for item in items]
        ready = [any(c["type"] == "Ready" and c["status"] == "True" for c in each) for each in conditions]
        return sum(ready) == plan.node_count

    wait_until(all_ready, what="the nodes are ready", timeout_s=_NODES_TIMEOUT_S, poll_s=0.5)


def make_namespace(cluster: Cluster, name: str, labels: Mapping[str, str] | None = None) -> None:
    """Create a namespace unless it is there, and wait for its default service account: an earlier pod is refused."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}}
    cluster.api.ensure("/api/v1/namespaces", body)
    accounts = f"/api/v1/namespaces/{name}/serviceaccounts"
    wait_until(
        lambda: any(item["metadata"]["name"] == "default" for item in cluster.api.get(accounts)["items"]),
        what=f"the service account of {name}",
        timeout_s=30,
    )


def pod_spec(**more: object) -> dict[str, Any]:
    """Return the spec of a pod with one GPU: the same image, grace and resources for both tenants and all contenders."""
    resources = {"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}
    return {
        "containers": [{"name": "work", "image": IMAGE, "resources": resources}],
        "terminationGracePeriodSeconds": GRACE_S,
        **more,
    }


class Writer:
    """Writes objects over connections that are kept, many at a time: the clock of a burst is not to be our own handshakes."""

    def __init__(self, cluster: Cluster) -> None:
        self._address = ApiAddress(cluster.kubeconfig)
        self._local = local()
        self._pool = ThreadPoolExecutor(max_workers=_WRITERS, thread_name_prefix="writer")
        # Handshakes now, not in the burst.
        list(self._pool.map(lambda _: self.send("GET", "/version", None), range(_WRITERS)))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def create_all(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Create objects, about as many at a time as there are connections; raise for the first that is refused."""
        return list(self._pool.map(lambda body: self.send("POST", path, body), bodies))

    def each(self, action: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Call something for each item on the writers' threads."""
        return list(self._pool.map(action, items))

    def send(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send one request and return the answer; a kept connection that the server has closed is opened once again."""
        for attempt in (1, 2):
            connection = getattr(self._local, "connection", None) or self._address.connect()
            self._local.connection = connection
            try:
                payload = None if body is None else json.dumps(body)
                connection.request(method, path, payload, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = response.read()
            except OSError as error:
                connection.close()
                self._local.connection = None
                if attempt == 2 or method == "POST":
                    raise Unreachable(f"{method} {path}: {error}") from error
                continue
            if response.status >= 300 and response.status != 404:
                raise WrongState(f"{method} {path}: {response.status}: {answer[:500]!r}")
            result: dict[str, Any] = json.loads(answer)
            return result
        raise AssertionError("unreachable")
