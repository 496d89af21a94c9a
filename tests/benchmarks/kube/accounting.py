"""What a stretch cost: writes that the API server took, CPU and memory of every process."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from swingbus.faults import NotFound
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.kwok_site.watching import ApiAddress
from tests.benchmarks.kube.rows import Used
from tests.benchmarks.procs import cpu_s, memory, tree

_WRITES = ("POST", "PUT", "PATCH", "DELETE", "APPLY")
_LINE = re.compile(r"^apiserver_request_total\{(?P<labels>[^}]*)\} (?P<count>[0-9.e+]+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class ApiWrites:
    """Writes taken by the API server since this was made, by verb and resource, of everybody, refused ones left out."""

    def __init__(self, cluster: Cluster) -> None:
        self._address = ApiAddress(cluster.kubeconfig)
        self._before = self._read()

    def since(self) -> dict[str, int]:
        """Return what came since, largest first."""
        counts = self._read() - self._before
        return dict(counts.most_common())

    def _read(self) -> Counter[str]:
        connection = self._address.connect()
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        counts: Counter[str] = Counter()
        for line in text.splitlines():
            found = _LINE.match(line)
            if found is None:
                continue
            labels = dict(_LABEL.findall(found["labels"]))
            if labels["verb"] in _WRITES and labels["code"].startswith("2"):
                parts = [labels["resource"], labels.get("subresource", "")]
                counts[f"{labels['verb']} {'/'.join(p for p in parts if p)}"] += round(float(found["count"]))
        return counts


class Usage:
    """CPU of processes since this was made, their children included, and memory now."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {name: _cpu_s(pid) for name, pid in self._pids.items()}

    def since(self) -> dict[str, Used]:
        """Return what each has used; one that has ended is a wrong result."""
        return {
            name: Used(
                cpu_s=round(_cpu_s(pid) - self._before[name], 2),
                rss_mb=round(sum(_rss_bytes(child) for child in tree(pid)) / 1e6, 1),
            )
            for name, pid in self._pids.items()
        }


def control_plane_pids(cluster: Cluster) -> dict[str, int]:
    """Return the processes of a cluster by name."""
    found = {name: cluster.processes.find(name) for name in cluster.processes.names()}
    if lost := [name for name, identity in found.items() if identity is None]:
        raise NotFound(f"{', '.join(lost)} ended by itself")
    return {name: identity.pid for name, identity in found.items() if identity is not None}


def _cpu_s(pid: int) -> float:
    return cpu_s(pid) + sum(_child_cpu_s(child) for child in tree(pid) if child != pid)


def _child_cpu_s(pid: int) -> float:
    try:
        return cpu_s(pid)
    except OSError:
        return 0.0  # it ended while we looked; its parent has its time now


def _rss_bytes(pid: int) -> int:
    try:
        return memory(pid).rss_bytes
    except OSError:
        return 0
