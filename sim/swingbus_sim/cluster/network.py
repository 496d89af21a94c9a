"""Namespaces and wires: one network namespace for the control plane, with a bridge, and one for each real node, joined by a veth pair.

Everything hangs on processes (no name under /run/netns, no link on the host): when they end, the kernel takes namespaces, bridge and
wires with them, so a crash leaves nothing to find. Addresses inside are the same for every cluster and unknown outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from swingbus_sim.cluster.layout import BRIDGE_PREFIX_BITS, CONTROL_ADDRESS, SERVICE_RANGE, NodePlan
from swingbus_sim.cluster.processes import Processes, run, wait_until

CONTROL_NETWORK = "control-network"
_BRIDGE = "nodes"
_TIMEOUT_S = 10.0


def start_control_network(processes: Processes) -> tuple[str, ...]:
    """Make the control plane's namespace and bridge; return the command that enters it."""
    # unshare becomes sleep, so the recorded id is the namespace's holder.
    holder = processes.start(CONTROL_NETWORK, ("unshare", "--net", "sleep", "infinity"))
    wait_for_namespace(holder.pid, "net")
    enter = control_entry(holder.pid)
    run((*enter, "ip", "link", "set", "lo", "up"))
    run((*enter, "ip", "link", "add", _BRIDGE, "type", "bridge"))
    run((*enter, "ip", "address", "add", f"{CONTROL_ADDRESS}/{BRIDGE_PREFIX_BITS}", "dev", _BRIDGE))
    run((*enter, "ip", "link", "set", _BRIDGE, "up"))
    return enter


def control_entry(holder_pid: int) -> tuple[str, ...]:
    """Return the command that runs another one in the control plane's namespace."""
    return ("nsenter", f"--target={holder_pid}", "--net")


def join(node: NodePlan, *, node_pid: int, control_pid: int, others: Iterable[NodePlan]) -> None:
    """Wire a node to the bridge and give it its address and its routes to the other nodes' pods."""
    control, inside = control_entry(control_pid), ("nsenter", f"--target={node_pid}", "--net")
    port = f"node{node.number}"
    run((*control, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(node_pid)))
    run((*control, "ip", "link", "set", port, "master", _BRIDGE, "up"))
    run((*inside, "ip", "link", "set", "lo", "up"))
    run((*inside, "ip", "address", "add", f"{node.address}/{BRIDGE_PREFIX_BITS}", "dev", "eth0"))
    run((*inside, "ip", "link", "set", "eth0", "up"))
    # kube-proxy picks up only what is routed: a service's address needs some route before it is translated.
    run((*inside, "ip", "route", "add", "default", "via", CONTROL_ADDRESS))
    for other in others:
        if other != node:
            run((*inside, "ip", "route", "add", other.pod_range, "via", other.address))
    run((*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
    # Replaced, not added: a node that comes back finds the routes of its former life.
    run((*control, "ip", "route", "replace", node.pod_range, "via", node.address))
    if node.number == 1:
        # The API server calls webhooks by their service's address: the first node's kube-proxy translates for it.
        run((*control, "ip", "route", "replace", SERVICE_RANGE, "via", node.address))


def wait_for_namespace(pid: int, kind: str) -> None:
    """Wait until a started process has left our namespace: the record is written before it does."""
    own = os.readlink(f"/proc/self/ns/{kind}")
    there = Path(f"/proc/{pid}/ns/{kind}")
    wait_until(lambda: os.readlink(there) != own, what=f"{there} is still ours", timeout_s=_TIMEOUT_S)
