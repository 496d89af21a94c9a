"""What a cluster could leave on a machine, found by looking at the machine, not at the cluster's own records."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swingbus_sim.cluster.cgroups import hierarchies
from swingbus_sim.cluster.processes import read_id

_LISTEN = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")
# A kubelet sets the first six for the whole machine if it can; kube-proxy the table of connections; forwarding is a router's.
_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/netfilter/nf_conntrack_max",
    "net/ipv4/ip_forward",
)


def processes_below(folder: Path) -> tuple[str, ...]:
    """Return every process, of any pid namespace, that names the folder in its command line, root, environment or open files."""
    return tuple(
        f"{entry.name} {_words(entry / 'cmdline')[:100]}"
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _names(entry, str(folder))
    )


@dataclass(frozen=True, slots=True)
class Traces:
    """Where a cluster with real nodes could leave something, as it is now; equal before and after means that nothing was left."""

    links: frozenset[str]
    cgroups: frozenset[str]
    run: frozenset[str]
    var_lib: frozenset[str]
    var_log: frozenset[str]
    opt: frozenset[str]
    etc: frozenset[str]
    named_networks: frozenset[str]
    mounts: frozenset[str]
    settings: tuple[str, ...]


def look(tag: str) -> Traces:
    """Look at the machine; of cgroups only at those of one cluster, since others may come and go beside it."""
    return Traces(
        links=names_in("/sys/class/net"),
        cgroups=frozenset(name for root in hierarchies() for name in names_in(str(root)) if name.startswith(tag)),
        run=names_in("/run"),
        var_lib=names_in("/var/lib"),
        var_log=names_in("/var/log"),
        opt=names_in("/opt"),
        etc=names_in("/etc"),
        named_networks=names_in("/run/netns"),
        mounts=frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        settings=tuple(_words(Path("/proc/sys") / name) for name in _SETTINGS),
    )


def inhabitants(pid: int) -> tuple[int, ...]:
    """Return every process that shares a process's pid or network namespace, whoever its parent is."""
    wanted = {_namespace(pid, kind) for kind in ("pid", "net")} - {
        _namespace(os.getpid(), kind) for kind in ("pid", "net")
    }
    return tuple(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and wanted & {_namespace(int(entry.name), kind) for kind in ("pid", "net")} - {""}
    )


def find_command(marker: str) -> tuple[int, ...]:
    """Return the living processes whose command line holds the marker, other than those that only start others."""
    return tuple(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and marker in _words(entry / "cmdline") and read_id(int(entry.name)) is not None
    )


def listening(pids: Iterable[int]) -> tuple[tuple[str, int], ...]:
    """Return the TCP addresses and ports that processes listen at in our own network namespace, wherever they are themselves."""
    wanted = {
        match.group(1) for pid in pids for link in _links(Path(f"/proc/{pid}/fd")) if (match := _SOCKET.fullmatch(link))
    }
    found: list[tuple[str, int]] = []
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in wanted:
                found.append(_address(fields[1]))
    return tuple(found)


def names_in(folder: str) -> frozenset[str]:
    """Return what a folder holds; nothing where there is no such folder."""
    path = Path(folder)
    return frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else frozenset()


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def _names(entry: Path, wanted: str) -> bool:
    if wanted in _words(entry / "cmdline") or wanted in _words(entry / "environ"):
        return True
    return any(wanted in link for link in _links(entry / "fd"))


def _words(file: Path) -> str:
    try:
        return file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _links(folder: Path) -> list[str]:
    found: list[str] = []
    try:
        for link in folder.iterdir():
            try:
                found.append(str(link.readlink()))
            except OSError:
                continue
    except OSError:
        pass
    return found


def _address(hexadecimal: str) -> tuple[str, int]:
    address, port = hexadecimal.split(":")
    if len(address) == 8:
        return ".".join(str(byte) for byte in reversed(bytes.fromhex(address))), int(port, 16)
    return address, int(port, 16)
