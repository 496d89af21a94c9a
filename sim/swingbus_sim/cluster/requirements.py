"""What real nodes need of the machine, said before anything is started; root gets what can be had without asking.

On Debian missing packages are installed. A limit of the kernel that is too low for several clusters is raised until the next boot.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from swingbus.faults import SwingbusError
from swingbus_sim.cluster.cgroups import hierarchies
from swingbus_sim.cluster.processes import SYSTEM_PATH, run

# Command and the Debian package that has it.
_COMMANDS = {
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}
HIDDEN_IN_NODES = (Path("/var"), Path("/run"))
_INSTALL_TIMEOUT_S = 300.0
# Kubelets, containerd, kube-proxy and the control plane watch their own files: 24 inotify instances for a cluster of two real nodes, and
# Debian's 128 are for all of root's programs together. Who gets none ends at once ("too many open files").
_WATCHER_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
_WATCHERS_WANTED = 1024
_WATCHERS_OF_A_CLUSTER = 40


def find_command(name: str) -> str | None:
    """Return where a system command is, also where the caller's PATH has no sbin folder."""
    return shutil.which(name, path=f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}")


def prepare_for_nodes(say: Callable[[str], None]) -> None:
    """Give the machine what real nodes lack, where this can be done (root; apt-get); elsewhere `missing_for_nodes` says what to do."""
    if os.geteuid() == 0:
        _allow_watchers(say)
        install_commands(_COMMANDS, say)


def _allow_watchers(say: Callable[[str], None]) -> None:
    try:
        allowed = int(_WATCHER_LIMIT.read_text())
        if allowed < _WATCHERS_WANTED:
            _WATCHER_LIMIT.write_text(str(_WATCHERS_WANTED))
            say(f"fs.inotify.max_user_instances is {_WATCHERS_WANTED} until the next boot (was {allowed})")
    except OSError as error:
        # Not ours to set in some containers; what is left of it may still do, and is counted before anything is started.
        say(f"fs.inotify.max_user_instances stays as it is: {error}")


def install_commands(commands: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Install, as root on Debian, what is not there of these commands, each with the package that has it; elsewhere do nothing."""
    packages = sorted({package for command, package in commands.items() if find_command(command) is None})
    if not packages or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    say(f"installing {' '.join(packages)} (for real nodes)")
    environment = ("env", "DEBIAN_FRONTEND=noninteractive")
    install = (*environment, "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages)
    try:
        run(install, timeout_s=_INSTALL_TIMEOUT_S)
    except SwingbusError:
        # A machine without package lists (or with old ones) knows no package until they are fetched.
        run((*environment, "apt-get", "update", "--quiet"), timeout_s=_INSTALL_TIMEOUT_S)
        run(install, timeout_s=_INSTALL_TIMEOUT_S)


def missing_for_nodes(home: Path) -> tuple[str, ...]:
    """Return why real nodes can't run here, each as a sentence with what to do; empty where they can.

    Args:
        home: where clusters keep their things; a node has a /var and /run of its own, so it must lie elsewhere.
    """
    lacks: list[str] = []
    if not sys.platform.startswith("linux"):
        return ("real nodes need Linux",)
    if os.geteuid() != 0:
        lacks.append("real nodes need root (namespaces, mounts, cgroups): run as root")
    for command, package in _COMMANDS.items():
        if find_command(command) is None:
            lacks.append(f"{command} is missing: install the package {package}")
    if any(home.resolve().is_relative_to(hidden) for hidden in HIDDEN_IN_NODES):
        lacks.append(
            f"{home} lies under /var or /run, which nodes replace: set SWINGBUS_CLUSTER_HOME to another folder"
        )
    try:
        free_count = free_watchers(_WATCHERS_OF_A_CLUSTER)
    except OSError as error:
        lacks.append(f"the kernel gives no inotify instance: {error.strerror}")
    else:
        if free_count < _WATCHERS_OF_A_CLUSTER:
            lacks.append(
                f"of {_WATCHERS_OF_A_CLUSTER} inotify instances only {free_count} are to be had:"
                f" `sysctl fs.inotify.max_user_instances={_WATCHERS_WANTED}`, `ulimit -n 1024`, or end other clusters"
            )
    if not lacks:
        lacks.extend(_refused_by_kernel())
    return tuple(lacks)


def free_watchers(wanted: int) -> int:
    """Return how many inotify instances this process can still have, `wanted` at most; tried, since nothing tells how many are taken.

    Raises:
        OSError: there are none at all, for another reason than a limit.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    opened: list[int] = []
    try:
        while len(opened) < wanted:
            watcher = libc.inotify_init1(os.O_CLOEXEC)
            if watcher < 0:
                if ctypes.get_errno() != errno.EMFILE:
                    raise OSError(ctypes.get_errno(), "no inotify instance can be had")
                break
            opened.append(watcher)
    finally:
        for watcher in opened:
            os.close(watcher)
    return len(opened)


def _refused_by_kernel() -> tuple[str, ...]:
    """Try what a container or a hardened kernel refuses even to root; nothing of it stays."""
    try:
        run(
            (
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "ip",
                "link",
                "set",
                "lo",
                "up",
            )
        )
    except SwingbusError as error:
        return (f"namespaces can't be made here, also by root: {error}",)
    roots = hierarchies()
    if not roots:
        return ("no cgroup file system is mounted",)
    closed = [str(root) for root in roots if not os.access(root, os.W_OK)]
    return (f"cgroups can't be made in {', '.join(closed)}",) if closed else ()
