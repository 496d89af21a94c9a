"""Where a cluster keeps its things on disk, and the addresses inside it.

A cluster is known by its run folder alone: its tag (part of every cgroup's name) is made from that path, so a later program that knows
the path finds all that an earlier one left, and two clusters never touch each other's.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import InvalidInput

HOME_VARIABLE = "SWINGBUS_CLUSTER_HOME"

# Inside the namespaces only, so the same for every cluster. The host gets none of these addresses.
CONTROL_ADDRESS = "10.90.0.1"
REGISTRY_ADDRESS = f"{CONTROL_ADDRESS}:5000"
SERVICE_RANGE = "10.92.0.0/16"
API_SERVICE_ADDRESS = "10.92.0.1"
POD_RANGE = "10.91.0.0/16"
KWOK_POD_RANGE = "10.93.0.0/16"
BRIDGE_PREFIX_BITS = 24
DOMAIN = "cluster.local"
REAL_NODES_MAX = 9

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Paths of one cluster.

    Args:
        home: what all clusters of this user share (the built tools) and the run folders.
        name: lower-case letters, digits and dashes; tells clusters on one machine apart.
    """

    home: Path
    name: str

    @property
    def tools(self) -> Path:
        """Built programs, one folder per version; survives every cluster."""
        return self.home / "tools"

    @property
    def run(self) -> Path:
        """All of this cluster; removed when it is taken down."""
        return self.home / "run" / self.name

    @property
    def lock(self) -> Path:
        """Held while the cluster is brought up or taken down."""
        return self.home / "run" / f"{self.name}.lock"

    @property
    def certificates(self) -> Path:
        """Keys and certificates."""
        return self.run / "certificates"

    @property
    def kubeconfigs(self) -> Path:
        """One per program, and `admin` for people."""
        return self.run / "kubeconfigs"

    @property
    def audit_log(self) -> Path:
        """What audited users asked of the API server (JSON lines); there is none where nobody is audited."""
        return self.run / "audit.jsonl"

    @property
    def description(self) -> Path:
        """What was brought up (JSON); written last, so that it says the cluster stood."""
        return self.run / "cluster.json"

    @property
    def tag(self) -> str:
        """A word that only this cluster's cgroups begin with."""
        return "swb-" + hashlib.sha256(str(self.run).encode()).hexdigest()[:8]

    def node(self, name: str) -> Path:
        """A real node's disk."""
        return self.run / "nodes" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """A real node before it exists: its name and addresses follow from its number (1 to REAL_NODES_MAX)."""

    number: int

    @property
    def name(self) -> str:
        """As in the API."""
        return f"real-{self.number}"

    @property
    def address(self) -> str:
        """On the bridge."""
        return f"10.90.0.{10 + self.number}"

    @property
    def pod_range(self) -> str:
        """Its pods' addresses."""
        return f"10.91.{self.number}.0/24"


def layout(name: str = "default", *, home: Path | None = None) -> Layout:
    """Return the layout of a named cluster; refuse a name that could not be part of a path."""
    if _NAME.fullmatch(name) is None:
        raise InvalidInput(
            f"{name!r} cannot name a cluster: use up to 32 lower-case letters, digits and dashes",
            metadata={"name": name},
        )
    return Layout(home=(home or _default_home()).absolute(), name=name)


def _default_home() -> Path:
    if chosen := os.environ.get(HOME_VARIABLE):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "swingbus" / "cluster"
