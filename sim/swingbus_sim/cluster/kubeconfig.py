"""Kubeconfig files: how a program finds the API server and who it says it is. Paths in them are absolute."""

from __future__ import annotations

import json
from pathlib import Path

from swingbus_sim.cluster.certificates import Pair


def write_kubeconfig(path: Path, *, server: str, authority: Path, user: Pair) -> Path:
    """Write one (JSON, which is YAML) and return its path."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "swingbus", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [
            {"name": "me", "user": {"client-certificate": str(user.certificate), "client-key": str(user.key)}},
        ],
        "contexts": [{"name": "swingbus", "context": {"cluster": "swingbus", "user": "me"}}],
        "current-context": "swingbus",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=1) + "\n")
    return path
