"""A fresh root of this machine's Debian release: small, but with a dpkg that knows what is installed and a systemd that boots.

Made of Debian's own packages as the images' base is; their scripts are not run. Packages are fetched where they are not in the cache yet.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from tools.images.base_python import find_python
from tools.images.build import DEFAULT_FOLDER
from tools.images.debian import Package, choose_packages, unpack_packages

_FORM = "1"  # raise it when the same packages give another root
_ROOTS = (
    *("python3", "libstdc++6"),  # what our package asks for, beside systemd
    *("systemd", "dpkg", "init-system-helpers", "perl-base"),
    *("dash", "coreutils", "diffutils", "findutils", "tar", "libc-bin", "util-linux"),
)
_LEFT_OUT = frozenset(("debconf", "debconf-2.0", "install-info", "mailcap", "mime-support", "perl", "readline-common"))
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"


def debian_root(folder: Path, say: Callable[[str], None]) -> Path:
    """Return a new root inside a folder."""
    cache = DEFAULT_FOLDER / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        packages = choose_packages(say, _ROOTS, _LEFT_OUT)
        told = "\n".join((_FORM, *(f"{each.file} {each.hash}" for each in packages)))
        kept = cache / f"test-root-{sha256(told.encode()).hexdigest()[:16]}"
        if not kept.exists():
            for old in cache.glob("test-root-*"):
                shutil.rmtree(old)
            aside = kept.with_name(f"{kept.name}.part")
            unpack_packages(packages, cache / "debian", aside, say)
            _finish(packages, cache / "debian", aside)
            aside.rename(kept)
        root = folder / "root"
        shutil.copytree(kept, root, symlinks=True)
    return root


def _finish(packages: Sequence[Package], downloads: Path, root: Path) -> None:
    """Write what the packages' scripts would have written, as far as it is needed."""
    (root / "etc" / "passwd").write_text(_PASSWD)
    (root / "etc" / "group").write_text(_GROUP)
    # No terminal, and nothing that waits for one.
    (root / "etc" / "machine-id").touch()
    database = root / "var" / "lib" / "dpkg"
    for name in ("info", "updates", "triggers"):
        (database / name).mkdir(parents=True, exist_ok=True)
    told = []
    for package in packages:
        control = subprocess.check_output(("dpkg-deb", "--field", str(downloads / package.file)), text=True)
        name, _, rest = control.partition("\n")
        told.append(f"{name}\nStatus: install ok installed\n{rest}")
        (database / "info" / f"{name.partition(': ')[2]}.list").write_text("/.\n")
    (database / "status").write_text("\n".join(told))
    (database / "available").touch()
    python = find_python(root)
    python.compile(root, f"/usr/lib/python{python.version[0]}.{python.version[1]}")
