"""A service's name for a program that is no pod: one that runs beside the control plane, as a controller under development does.

The program must be started with the cluster's `enter` command (it then is in the control plane's namespace) and listen on every address
there; pods reach it as NAME.NAMESPACE.svc. Programs on the host itself can't be reached by pods, on purpose.
"""

from __future__ import annotations

from swingbus.faults import WrongState
from swingbus_sim.cluster.layout import CONTROL_ADDRESS
from swingbus_sim.cluster.up import Cluster


def publish(cluster: Cluster, *, namespace: str, name: str, port: int) -> str:
    """Make a service for such a program and return the name that pods call it by; a repeat changes nothing.

    Refused in a cluster without real nodes: no pod there could call.
    """
    if not cluster.enter:
        raise WrongState(f"cluster {cluster.layout.name!r} has no real nodes, so nothing in it can call {name}")
    cluster.api.ensure(
        f"/api/v1/namespaces/{namespace}/services",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"ports": [{"name": "main", "port": port}]},
        },
    )
    cluster.api.ensure(
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-outside", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "main", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [CONTROL_ADDRESS], "conditions": {"ready": True}}],
        },
    )
    return f"{name}.{namespace}.svc"
