"""The cluster's programs: what the user brings is used, nothing is built that is there, and what can't start is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from swingbus.faults import OverBudget, WrongState
from swingbus_sim.cluster import tools
from swingbus_sim.cluster.layout import layout
from swingbus_sim.cluster.tools import ASSETS_VARIABLE, CONTROL, NODES, ensure_tools
from swingbus_sim.cluster.up import Cluster, bring_up
from tests.cluster.leftovers import processes_below


def test_programs_that_the_user_brings_are_used_and_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every program in KUBEBUILDER_ASSETS no compiler runs and no folder is made."""
    assets, built = tmp_path / "assets", tmp_path / "tools"
    assets.mkdir()
    for program, _ in (*CONTROL.packages, *NODES.packages):
        (assets / program).touch()
    monkeypatch.setenv(ASSETS_VARIABLE, str(assets))

    found = ensure_tools(built, (CONTROL, NODES), say=pytest.fail)

    assert found.path("etcd") == assets / "etcd"
    assert found.folders()[0] == assets
    assert not built.exists()


def test_build_on_a_full_disk_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal says how much is needed and how to use another disk."""
    monkeypatch.delenv(ASSETS_VARIABLE, raising=False)
    monkeypatch.setattr(tools, "_FREE_NEEDED_BYTES", 2**60)

    with pytest.raises(OverBudget, match="SWINGBUS_CLUSTER_HOME"):
        ensure_tools(tmp_path, (CONTROL,), say=lambda _: None)

    assert list(tmp_path.glob("compile-*")) == []


@pytest.mark.cluster
def test_bring_up_that_fails_tells_why_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Callable[[str], None]
) -> None:
    """A program that dies at once ends the bring-up with its last words; its logs stay, its neighbours don't."""
    broken = tmp_path / "etcd"
    broken.write_text("#!/bin/sh\necho this disk is not mine; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path))
    place = layout(f"{cluster.layout.name}-broken")

    with pytest.raises(WrongState, match="this disk is not mine"):
        bring_up(place, say=say)

    assert not place.run.exists()
    assert processes_below(place.run) == ()
    kept = place.run.with_name(f"{place.name}-failed-logs")
    assert "this disk is not mine" in (kept / "etcd.log").read_text()
    for log in kept.iterdir():
        log.unlink()
    kept.rmdir()
