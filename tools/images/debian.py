"""The base image's root, from Debian's own packages: python3 with its libraries, and nothing that installs or configures.

apt says what belongs to python3 and what the files' hashes are, dpkg-deb unpacks; no package script is run and no root is needed. Which
versions these are is for the machine's package lists to say: a security update of OpenSSL must not wait for a commit here. The list is
in the image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import NotFound, WrongState
from tools.images.unpack import unpack_entry

_ROOTS = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# What only matters where packages are installed, or for people at a terminal.
_LEFT_OUT = frozenset(
    ("debconf", "debconf-2.0", "dpkg", "install-info", "mailcap", "mime-support", "perl", "readline-common", "tar")
)
_PRUNED = re.compile(
    r"usr/share/(man|locale|info|lintian|bug|applications|pixmaps|menu|doc-base|binfmts)/"
    r"|usr/lib/[^/]*/gconv/"  # conversions of the C library; python has its own
)
_KEPT_DOC = re.compile(r"usr/share/doc/[^/]+/copyright$")
_TOP_LINKS = ("bin", "sbin", "lib", "lib64")
_LIST_IN_IMAGE = "usr/share/swingbus/base-packages"
_URI = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) \d+ (?P<hash>\S+)$")
_QUERY_TIMEOUT_S, _FETCH_TIMEOUT_S = 60.0, 600.0


@dataclass(frozen=True, slots=True)
class Package:
    """One package file, as apt would fetch it."""

    file: str
    hash: str


def choose_packages(
    say: Callable[[str], None], roots: Sequence[str] = _ROOTS, left_out: frozenset[str] = _LEFT_OUT
) -> tuple[Package, ...]:
    """Return packages with all that they depend on: by default those that make a python3; raise NotFound where there is no apt."""
    for command in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(command) is None:
            raise NotFound(
                f"{command} is not on this machine, so no base can be made of Debian's packages; "
                "name a base with --base ARCHIVE (an OCI archive with python3)"
            )
    try:
        return _chosen(roots, left_out)
    except WrongState:
        if os.geteuid() != 0:
            raise
    # A machine without package lists knows no package until they are fetched.
    say("fetching package lists")
    _run(("apt-get", "update", "--quiet"), timeout_s=_FETCH_TIMEOUT_S)
    return _chosen(roots, left_out)


def unpack_packages(packages: Sequence[Package], downloads: Path, root: Path, say: Callable[[str], None]) -> None:
    """Fetch what is not there yet and unpack all of it into an empty root."""
    downloads.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if not (downloads / package.file).exists()]
    if missing:
        say(f"fetching {len(missing)} packages")
        # apt checks each file against the hash in its signed lists.
        names = [f"{name}={version}" for name, version in map(_name_and_version, missing)]
        _run(("apt-get", "download", "--quiet", *names), folder=downloads, timeout_s=_FETCH_TIMEOUT_S)
    root.mkdir(parents=True)
    for link in _TOP_LINKS:
        (root / "usr" / link).mkdir(parents=True)
        (root / link).symlink_to(f"usr/{link}")
    for package in packages:
        _unpack(downloads / package.file, root)
    _finish(packages, root)


def _chosen(roots: Sequence[str], left_out: frozenset[str]) -> tuple[Package, ...]:
    flags = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    graph = _graph(_run(("apt-cache", "depends", "--recurse", *flags, *roots)))
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        # "<NAME>" is no package, but what several provide.
        if name in found or name in left_out or name not in graph or name.startswith("<"):
            continue
        found.add(name)
        waiting.extend(graph[name])
    uris = _run(("apt-get", "download", "--print-uris", *sorted(found)))
    matches = [match for line in uris.splitlines() if (match := _URI.match(line))]
    return tuple(sorted((Package(match["file"], match["hash"]) for match in matches), key=lambda each: each.file))


def _graph(text: str) -> dict[str, list[str]]:
    """Return each package's dependencies; of alternatives the first, as apt itself would choose."""
    graph: dict[str, list[str]] = {}
    own: list[str] = []
    is_alternative = False
    for line in text.splitlines():
        if not line.startswith(" "):
            own = graph.setdefault(line.strip(), [])
        elif match := re.match(r" ([ |])(?:Pre)?Depends: (\S+)", line):
            if not is_alternative:
                own.append(match[2])
            is_alternative = match[1] == "|"
    return graph


def _name_and_version(package: Package) -> tuple[str, str]:
    name, version, _ = package.file.removesuffix(".deb").split("_")
    return name, version.replace("%3a", ":")


def _unpack(file: Path, root: Path) -> None:
    with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", str(file)), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for entry in tar:
                entry.name = entry.name.removeprefix("./")
                if not entry.name or entry.name in _TOP_LINKS or _is_pruned(entry):
                    continue
                unpack_entry(tar, entry, root)
    if process.returncode != 0:
        raise WrongState(f"{file} can't be unpacked; delete it and try again")


def _is_pruned(entry: tarfile.TarInfo) -> bool:
    if entry.name.startswith("usr/share/doc/"):
        return _KEPT_DOC.match(entry.name) is None and not entry.isdir()
    return _PRUNED.match(entry.name) is not None


def _finish(packages: Sequence[Package], root: Path) -> None:
    for name in ("proc", "sys", "dev", "run", "tmp", "etc", "var/lib", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    passwd = "root:x:0:0:root:/root:/usr/sbin/nologin\nswingbus:x:65532:65532::/nonexistent:/usr/sbin/nologin\n"
    (root / "etc" / "passwd").write_text(passwd)
    (root / "etc" / "group").write_text("root:x:0:\nswingbus:x:65532:\n")
    (root / "etc" / "nsswitch.conf").write_text("hosts: files dns\n")
    listed = root / _LIST_IN_IMAGE
    listed.parent.mkdir(parents=True)
    listed.write_text("".join(f"{package.file} {package.hash}\n" for package in packages))


def _run(command: Sequence[str], *, folder: Path | None = None, timeout_s: float = _QUERY_TIMEOUT_S) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment
    )
    if done.returncode != 0:
        raise WrongState(f"`{' '.join(command[:4])} ...` failed: {done.stderr.strip()[-1000:]}")
    return done.stdout
