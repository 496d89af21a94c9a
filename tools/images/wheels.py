"""The layer of third-party packages: wheels as `requirements/constraints.txt` locks them, for the base's own python and C library.

Nothing is compiled from source: what has no wheel for the base is refused by pip, by name.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from swingbus.faults import WrongState
from tools.images.base_python import BasePython

_FORM = "1"  # raise it when the same wheels give another tree
_OLDEST_MANYLINUX_MINOR = 17
_INSTALL_TIMEOUT_S = 600.0
# Tests of third parties, and what only compilers and type checkers read.
_TESTS = re.compile(r"(^|/)tests?$")
_UNUSED_SUFFIXES = (".pyi", ".pyx", ".pxd", ".h", ".c", ".cpp", ".a", ".lib")


def wanted_packages(repository: Path, extras: Sequence[str]) -> tuple[str, ...]:
    """Return what pyproject.toml asks for: the project's own dependencies and those of the extras."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    added = (package for extra in extras for package in project["optional-dependencies"][extra])
    return tuple(dict.fromkeys((*project["dependencies"], *added)))


def wheels_key(repository: Path, extras: Sequence[str], python: BasePython) -> str:
    """Return a word that is another one where the layer would be."""
    told = [
        _FORM,
        *wanted_packages(repository, extras),
        (repository / "requirements" / "constraints.txt").read_text(encoding="utf-8"),
        python.full_version,
        python.site,
        *_platforms(python),
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def install_wheels(repository: Path, extras: Sequence[str], python: BasePython, tree: Path) -> None:
    """Install into the folder of an empty tree that the base's python imports from, and compile it."""
    folder = tree / python.site.lstrip("/")
    folder.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={'.'.join(map(str, python.version))}"),
        *(f"--platform={each}" for each in _platforms(python)),
        f"--target={folder}",
        f"--constraint={repository / 'requirements' / 'constraints.txt'}",
        *wanted_packages(repository, extras),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise WrongState(f"pip can't install the wheels of [{','.join(extras)}]: {done.stderr.strip()[-1500:]}")
    _prune(folder)
    python.compile(tree, python.site)


def _platforms(python: BasePython) -> list[str]:
    """Return the tags of wheels that the base's C library can run, newest first."""
    machine = platform.machine()
    minors = range(python.glibc_minor, _OLDEST_MANYLINUX_MINOR - 1, -1)
    return [*(f"manylinux_2_{minor}_{machine}" for minor in minors), f"manylinux2014_{machine}"]


def _prune(folder: Path) -> None:
    shutil.rmtree(folder / "bin", ignore_errors=True)  # its scripts name this machine's python
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            # numpy.testing is code; a package's own `tests` are not imported by it.
            if _TESTS.search(path.name):
                shutil.rmtree(path)
        elif path.suffix in _UNUSED_SUFFIXES or path.name == "direct_url.json":
            path.unlink()
