"""An image registry on a cluster's own bridge, for whoever wants nodes to pull images as they do anywhere; and a `skopeo` that reaches it.

Plain HTTP, within the cluster's namespaces alone: nothing on the host listens, and no other registry is ever asked.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from swingbus_sim.cluster import network
from swingbus_sim.cluster.layout import REGISTRY_ADDRESS
from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.cluster.requirements import find_command
from swingbus_sim.cluster.up import Cluster

# Command and the Debian package that has it.
COMMANDS = {"docker-registry": "docker-registry", "skopeo": "skopeo"}
_REGISTRY = "registry"
_START_TIMEOUT_S = 20.0


def start_registry(cluster: Cluster) -> str:
    """Start it and return its host:port, which nodes take images from."""
    config = cluster.layout.run / "registry.json"  # JSON is YAML
    settings = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(cluster.layout.run / "registry")}},
        "http": {"addr": REGISTRY_ADDRESS},
    }
    config.write_text(json.dumps(settings))
    command = (str(find_command("docker-registry")), "serve", str(config))
    enter = _enter(cluster)
    cluster.processes.start(_REGISTRY, command, enter=enter)
    cluster.processes.wait_ready(_REGISTRY, lambda: _listens(cluster), timeout_s=_START_TIMEOUT_S)
    return REGISTRY_ADDRESS


def end_registry(cluster: Cluster) -> None:
    """End it; nodes keep what they pulled."""
    cluster.processes.end(_REGISTRY)
    wait_until(lambda: not _listens(cluster), what="the registry is gone", timeout_s=_START_TIMEOUT_S)


def write_skopeo(cluster: Cluster, folder: Path) -> None:
    """Write a command `skopeo` into a folder that is the machine's own, run where the registry is, and content with its plain HTTP."""
    settings = folder / "registries.conf"
    settings.write_text(f'[[registry]]\nlocation = "{REGISTRY_ADDRESS}"\ninsecure = true\n')
    words = (*_enter(cluster), str(find_command("skopeo")), "--registries-conf", str(settings))
    script = folder / "skopeo"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o755)


def _enter(cluster: Cluster) -> tuple[str, ...]:
    return network.control_entry(cluster.processes.must_run(network.CONTROL_NETWORK).pid)


def _listens(cluster: Cluster) -> bool:
    """Whether somebody listens at its port in the control plane's namespace."""
    holder = cluster.processes.must_run(network.CONTROL_NETWORK).pid
    port = f":{int(REGISTRY_ADDRESS.rpartition(':')[2]):04X}"
    lines = (Path(f"/proc/{holder}/net") / "tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(port) and line.split()[3] == "0A" for line in lines)
