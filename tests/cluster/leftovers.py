"""What a cluster could leave on a machine, found by looking at the machine, not at the cluster's own records."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_LISTEN = "0A"


def processes_below(folder: Path) -> tuple[str, ...]:
    """Return every process, of any pid namespace, that names the folder in its command line, root, environment or open files."""
    return tuple(
        f"{entry.name} {_words(entry / 'cmdline')[:100]}"
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _names(entry, str(folder))
    )


def listening(pids: Iterable[int]) -> tuple[tuple[str, int], ...]:
    """Return the TCP addresses and ports that processes listen at."""
    found: list[tuple[str, int]] = []
    for pid in pids:
        inodes = {
            match.group(1)
            for link in _links(Path(f"/proc/{pid}/fd"))
            if (match := re.fullmatch(r"socket:\[(\d+)\]", link))
        }
        for family in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and fields[9] in inodes:
                    found.append(_address(fields[1]))
    return tuple(found)


def mounts_below(folder: Path) -> tuple[str, ...]:
    """Return our own mount namespace's mounts that come from the folder or lie in it."""
    return tuple(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line)


def names_in(folder: str) -> frozenset[str]:
    """Return what a folder holds; nothing where there is no such folder."""
    path = Path(folder)
    return frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else frozenset()


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
