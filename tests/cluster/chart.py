"""The chart, and values of both programs that chart tests begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swingbus_sim.cluster.processes import run
from swingbus_sim.cluster.up import Cluster

CHART = Path(__file__).parents[2] / "charts" / "swingbus"
CONTROLLER: dict[str, Any] = {
    "enabled": True,
    "image": {"repository": "example.invalid/swingbus-controller"},
    "site": '[site]\nname = "tx1"\n',
    "certificates": {"secretName": "controller-certificates"},
}
AGENT: dict[str, Any] = {
    "enabled": True,
    "image": {"repository": "example.invalid/swingbus-agent"},
    "nodes": [{"name": "gpu-1"}, {"name": "gpu-2", "config": "[sampling]\ngpu_period_s = 2\n"}],
    "config": '[[bank]]\nname = "h100"\n',
    "bundles": {"secretName": "agent-bundles"},
}


def without(values: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return values with one of them empty."""
    first, *rest = path
    if rest:
        return {**values, first: without(values[first], *rest)}
    return {**values, first: type(values[first])()}


def template(cluster: Cluster, folder: Path, namespace: str, *words: str, **values: Any) -> str:
    """Return what helm renders of a release `swb`; its refusal is raised.

    Args:
        folder: where the values may be written.
    """
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    return run(
        (str(cluster.tools.path("helm")), "template", "swb", str(CHART), "-n", namespace, "-f", str(file), *words)
    )
