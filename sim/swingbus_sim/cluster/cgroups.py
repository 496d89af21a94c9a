"""Cgroups of real nodes: one root a node in every hierarchy, made before its kubelet starts and removed after all in it has ended.

Knows both cgroup versions. Removes only groups whose name begins with the cluster's tag.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from swingbus.faults import WrongState
from swingbus_sim.cluster.processes import wait_until

_REMOVE_TIMEOUT_S = 20.0


def hierarchies() -> tuple[Path, ...]:
    """Return where cgroup file systems are mounted (version 1 has one a controller)."""
    found: list[Path] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ", 1)
        if after.split()[0] in ("cgroup", "cgroup2"):
            found.append(Path(before.split()[4]))
    return tuple(found)


def is_version_1() -> bool:
    """Return whether the memory controller is a version 1 hierarchy."""
    return any((root / "memory.limit_in_bytes").exists() or root.name == "memory" for root in hierarchies())


def make(name: str) -> None:
    """Make a group in every hierarchy; it may hold all that the machine has."""
    for root in hierarchies():
        group = root / name
        group.mkdir(exist_ok=True)
        # Version 1: a new cpuset is empty and takes no process until it is filled.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (group / setting).exists() and (root / "cgroup.subtree_control").exists() is False:
                (group / setting).write_text((root / setting).read_text())
        # Version 2: children get only the controllers that their parents hand down.
        if (root / "cgroup.subtree_control").exists() and (root / "cgroup.controllers").read_text().strip():
            _hand_down(root)
            _hand_down(group)


def find(pattern: str) -> tuple[Path, ...]:
    """Return the top groups whose name fits a pattern (`TAG-*` is a cluster's), whoever made them."""
    return tuple(group for root in hierarchies() for group in sorted(root.glob(pattern)) if group.is_dir())


def remove(pattern: str) -> int:
    """Remove such groups with all below them and return how many there were; raise TimedOut where one is still in use."""
    roots = find(pattern)
    if roots:
        wait_until(
            lambda: _try_remove(roots),
            what=f"cgroups {pattern} are still in use",
            timeout_s=_REMOVE_TIMEOUT_S,
            poll_s=0.1,
        )
    return len(roots)


def _try_remove(roots: tuple[Path, ...]) -> bool:
    for root in roots:
        if not root.exists():
            continue
        below = sorted((path for path in root.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        for group in (*below, root):
            with contextlib.suppress(OSError):  # busy while the kernel still ends its last process: tried again
                group.rmdir()
    return not any(root.exists() for root in roots)


def _hand_down(group: Path) -> None:
    for controller in (group / "cgroup.controllers").read_text().split():
        try:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError as error:
            raise WrongState(f"{group} cannot hand {controller} down to its children: {error}") from error
