"""Put the package together: payload, control files, `dpkg-deb`. The same sources on the same Debian release give the same bytes.

One program at a time works on a cache (a file lock): two that start together do the work once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from swingbus import __version__
from swingbus.faults import NotFound, WrongState
from tools.deb.payload import lay_payload
from tools.images.base import debian_base
from tools.images.base_python import BasePython
from tools.images.build import DEFAULT_FOLDER as IMAGES

_REPOSITORY = Path(__file__).parents[2]
DEFAULT_FOLDER = _REPOSITORY / "build" / "deb"
_SCRIPTS = ("postinst", "prerm", "postrm")
# Every file is dated so, unless SOURCE_DATE_EPOCH says otherwise: 2026-01-01, and no archive tool takes it for a mistake as it would 0.
_DATE_S = "1767225600"
# Half a minute of xz saved for a tenth more bytes.
_PACKING = ("-Zxz", "-z1")
_TIMEOUT_S = 300.0
_CONTROL = """\
Package: swingbus
Version: {version}
Architecture: {architecture}
Maintainer: Swingbus <swingbus@swingbus.invalid>
Installed-Size: {installed_kib}
Depends: {depends}
Section: admin
Priority: optional
Description: one power budget for bitcoin mining and AI inference at a site
 The agent samples a host's GPUs, ASICs and meters and carries out what its
 controller grants; the controller keeps every feeder under its limit; swingctl
 is for operators. Each is a systemd unit or a command; none is enabled or
 started by installing this package.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPackage:
    """The package on disk."""

    file: Path
    version: str
    file_bytes: int
    installed_bytes: int


def build_package(folder: Path, *, say: Callable[[str], None]) -> BuiltPackage:
    """Write the package into a folder; what takes time to fetch is kept in `cache` below it, and the images' base in theirs."""
    if shutil.which("dpkg-deb") is None:
        raise NotFound("dpkg-deb is not on this machine: build on the Debian release that the package is for")
    folder = folder.absolute()
    cache = folder / "cache"
    for each in (cache, IMAGES / "cache"):
        each.mkdir(parents=True, exist_ok=True)
    with (IMAGES / "cache" / "lock").open("w") as theirs, (cache / "lock").open("w") as ours:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        fcntl.flock(ours, fcntl.LOCK_EX)
        python = debian_base(IMAGES / "cache", say).python
        say(f"for Debian's python {python.full_version}")
        tree = folder / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        try:
            lay_payload(_REPOSITORY, python, tree, cache, say)
            return _pack(tree, python, folder, say)
        finally:
            shutil.rmtree(tree)


def package_version(python: BasePython) -> str:
    """Return the version with the Python that it is for: a host that goes to Debian's next release gets the package of that one."""
    return f"{__version__}+py{python.version[0]}.{python.version[1]}"


def _pack(tree: Path, python: BasePython, folder: Path, say: Callable[[str], None]) -> BuiltPackage:
    version = package_version(python)
    architecture = _run(("dpkg", "--print-architecture")).strip()
    files = list(_files(tree))
    installed_bytes = sum(path.stat().st_size for path in files)
    control = _CONTROL.format(
        version=version,
        architecture=architecture,
        installed_kib=-(-installed_bytes // 1024),
        depends=", ".join(_depends(python)),
    )
    sums = "".join(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files)
    about = tree / "DEBIAN"
    about.mkdir()
    (about / "control").write_text(control, encoding="utf-8")
    (about / "md5sums").write_text(sums, encoding="utf-8")
    for name in _SCRIPTS:
        shutil.copyfile(_REPOSITORY / "deploy" / "deb" / name, about / name)
        (about / name).chmod(0o755)
    date_s = os.environ.get("SOURCE_DATE_EPOCH", _DATE_S)
    _settle(tree, date_s)
    say("packing")
    file = folder / f"swingbus_{version}_{architecture}.deb"
    aside = file.with_suffix(".part")
    command = ("dpkg-deb", "--root-owner-group", *_PACKING, "--build", str(tree), str(aside))
    _run(command, {"SOURCE_DATE_EPOCH": date_s})
    aside.rename(file)
    return BuiltPackage(file=file, version=version, file_bytes=file.stat().st_size, installed_bytes=installed_bytes)


def _depends(python: BasePython) -> Iterator[str]:
    """Name what the payload was chosen for. The interpreter is the release's own: its security updates need no package of ours."""
    yield f"python{python.version[0]}.{python.version[1]}"
    yield f"libc6 (>= 2.{python.glibc_minor})"
    yield "libstdc++6"
    yield "systemd"


def _files(tree: Path) -> Iterator[Path]:
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def _settle(tree: Path, date_s: str) -> None:
    """Let nothing depend on the umask and the clock of whoever builds; programs keep their x."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (int(date_s), int(date_s)), follow_symlinks=False)


def _run(command: tuple[str, ...], environment: Mapping[str, str] | None = None) -> str:
    words = {**os.environ, "LC_ALL": "C", **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=words)
    if done.returncode != 0:
        raise WrongState(f"`{' '.join(command[:2])} ...` failed: {done.stderr.strip()[-1000:]}")
    return done.stdout
