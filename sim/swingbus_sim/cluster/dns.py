"""CoreDNS beside the control plane: names of services and pods for the real nodes' pods, and nothing of the world outside."""

from __future__ import annotations

from swingbus_sim.cluster.control_plane import ControlPlane
from swingbus_sim.cluster.layout import DOMAIN
from swingbus_sim.cluster.rights import DNS_USER


def start(control: ControlPlane) -> None:
    """Start it on the bridge, port 53; it answers once it has seen the services."""
    file = control.layout.run / "Corefile"
    kubeconfig = control.kubeconfig("coredns", user=DNS_USER)
    file.write_text(
        f"""\
.:53 {{
    bind {control.address}
    errors
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods verified
        ttl 5
    }}
}}
"""
    )
    control.processes.start("coredns", (str(control.tools.path("coredns")), "-conf", str(file)), enter=control.enter)
