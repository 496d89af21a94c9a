"""Put images on the real nodes of a cluster that stands: there is no registry, so each node's containerd is given the archive itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from swingbus.faults import WrongState
from swingbus_sim.cluster import node
from swingbus_sim.cluster.oci_reading import ArchivedImage
from swingbus_sim.cluster.up import Cluster


def load_images(cluster: Cluster, archives: Iterable[Path]) -> tuple[str, ...]:
    """Import OCI archives on every real node and return the names by which pods ask for them (`imagePullPolicy: Never`).

    Loading one again is fine: pods that start from then on get it as it is now.
    """
    if not cluster.real_nodes:
        raise WrongState(
            f"cluster {cluster.layout.name!r} has no real nodes: KWOK's run no image; bring it up with --real-nodes"
        )
    names: list[str] = []
    for archive in archives:
        name = ArchivedImage(archive).name
        if name is None:
            raise WrongState(f"{archive} gives its image no name; write it anew (`make images`)")
        for plan in cluster.real_nodes:
            node.import_image(cluster.processes, cluster.tools, plan, archive)
        names.append(name)
    return tuple(names)
