"""What a test of the comparison needs of the machine; where it can't be had the test says so."""

from __future__ import annotations

import os

import pytest

from swingbus.faults import NotFound, OverBudget
from swingbus_sim.cluster.layout import layout
from swingbus_sim.cluster.tools import CONTROL, ensure_tools


def need_control_plane() -> None:
    """Build a control plane's programs; skip where that can't be done, but never under CI."""
    try:
        ensure_tools(layout("bench-kube").tools, (CONTROL,), say=print)
    except (NotFound, OverBudget) as lack:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"a real control plane: {lack}")
