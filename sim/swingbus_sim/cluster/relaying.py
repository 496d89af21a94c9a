"""Start a relay (`relay.py`): a port of the host's loopback that leads to one address inside a cluster."""

from __future__ import annotations

from pathlib import Path

from swingbus_sim.cluster import network, node
from swingbus_sim.cluster.processes import Processes

_TIMEOUT_S = 10.0


def start_relay(processes: Processes, name: str, *, host: str, port: int, port_file: Path, own_port: int = 0) -> int:
    """Start one among a cluster's processes and return the port that it listens at.

    Args:
        host: an address that the control plane's namespace reaches; a service's, once a real node's kube-proxy knows it.
        port_file: where it tells its port, on the cluster's disk.
        own_port: where it listens; 0: at any that is free.
    """
    holder = processes.must_run(network.CONTROL_NETWORK)
    words = (f"/proc/{holder.pid}/ns/net", host, str(port), str(port_file), str(own_port))
    processes.start(name, node.python(Path(__file__).with_name("relay.py"), *words))
    processes.wait_ready(name, port_file.exists, timeout_s=_TIMEOUT_S)
    return int(port_file.read_text())
