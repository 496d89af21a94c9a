"""The first process of a real node: sets up the node's own view of the disk, then only buries what dies.

Runs as pid 1 of a pid namespace, in mount and network namespaces of its own: when it ends, the kernel kills every process of the node and
takes its mounts. Run by its path, so that it needs nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

# A kubelet insists on these and sets them for the whole machine; the node gets files of its own in their place.
_TUNABLES = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def main() -> None:
    """Usage: node_init.py FOLDER; makes FOLDER/ready when the mounts stand."""
    folder = Path(sys.argv[1])
    # Wanted before the first child: a signal that comes earlier would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    _mount(folder)
    (folder / "ready").touch()
    while signal.sigwait({signal.SIGCHLD, signal.SIGTERM}) != signal.SIGTERM:
        _bury()


def _mount(folder: Path) -> None:
    # /run: containerd's and the shims' sockets, and the pods' network namespaces, have fixed names there.
    _call("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    for name in ("netns", "containerd", "lock"):
        (Path("/run") / name).mkdir()
    # /var: kubelet's folder (fixed by the device plugins' contract), CNI's leases, pods' logs.
    var = folder / "var"
    for name in ("lib/kubelet", "lib/cni", "log/pods", "log/containers", "tmp", "cache"):
        (var / name).mkdir(parents=True, exist_ok=True)
    for name in ("run", "lock"):
        link = var / name
        if not link.is_symlink():
            link.symlink_to(f"/run/{name}" if name == "lock" else "/run")
    _call("mount", "--bind", str(var), "/var")
    _call("mount", "--make-rshared", "/var")
    _call("mount", "--make-rshared", "/run")
    values = folder / "tunables"
    values.mkdir(exist_ok=True)
    for name in _TUNABLES:
        true = Path("/proc/sys") / name
        own = values / name.replace("/", ".")
        own.write_text(true.read_text())
        _call("mount", "--bind", str(own), str(true))


def _call(*command: str) -> None:
    # SIGCHLD is blocked in us, not in what we start.
    subprocess.run(command, check=True, preexec_fn=_unblock)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})


def _bury() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
