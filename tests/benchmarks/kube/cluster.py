"""A fresh cluster for one run: control plane, KWOK nodes with labels, and quick ways to write many objects."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException, HTTPSConnection
from threading import Barrier, local
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
def fresh_cluster(say: Callable[[str], None], *, audited_users: tuple[str, ...] = ()) -> Iterator[Cluster]:
    """Bring a cluster without nodes up, and take it down. Raises WrongState where another run of the bench is under way."""
    place = layout("bench-kube")
    place.run.parent.mkdir(parents=True, exist_ok=True)
    with place.run.with_name("bench-kube.owner").open("w") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongState("another run of this bench is under way; two would measure each other") from None
        take_down(place, say=say)  # what a run that was killed left
        try:
            yield bring_up(place, audited_users=audited_users, say=say)
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
        self._connections: list[HTTPSConnection] = []
        self._pool = ThreadPoolExecutor(max_workers=_WRITERS, thread_name_prefix="writer")
        self.warm()

    def warm(self) -> None:
        """See that every thread's connection stands: a handshake is no part of anybody's latency."""
        everybody = Barrier(_WRITERS)

        def look(_: int) -> None:
            everybody.wait(timeout=60.0)  # so that no thread looks twice and another never
            self.send("GET", "/version", None)

        list(self._pool.map(look, range(_WRITERS)))

    def close(self) -> None:
        """End the threads and close their connections."""
        self._pool.shutdown()
        for connection in self._connections:
            connection.close()

    def create_all(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Create objects, about as many at a time as there are connections; raise for the first that is refused."""
        return list(self._pool.map(lambda body: self.send("POST", path, body), bodies))

    def each(self, action: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Call something for each item on the writers' threads."""
        return list(self._pool.map(action, items))

    def send(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send one request and return the answer; where the connection breaks, once again.

        A create that was sent twice may have been done the first time: then what is there is the answer.
        """
        try:
            status, answer = self._send(method, path, body)
        except (OSError, HTTPException):
            try:
                status, answer = self._send(method, path, body)
            except (OSError, HTTPException) as error:
                raise Unreachable(f"{method} {path}: {error}") from error
            if status == 409 and method == "POST" and body is not None:
                status, answer = self._send("GET", f"{path}/{body['metadata']['name']}", None)
        if status >= 300 and not (status == 404 and method == "DELETE"):
            raise WrongState(f"{method} {path}: {status}: {answer[:500]!r}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._address.connect()
            self._connections.append(connection)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, HTTPException):
            connection.close()
            self._local.connection = None
            raise
