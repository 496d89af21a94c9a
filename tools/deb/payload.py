"""The package's tree: an environment of its own under /opt/swingbus, links to its programs, units, users and documents.

The environment has Debian's interpreter and nothing else of Debian's Python: what apt or pip put beside it can't change what runs here.
Wheels and byte code come as they do into the images.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tools.images.base_python import BasePython
from tools.images.own_code import lay_packages, lay_programs
from tools.images.recipes import find_recipe
from tools.images.wheels import install_wheels, wheels_key

PREFIX = "opt/swingbus"
_RECIPES = (find_recipe("swingbus-agent"), find_recipe("swingbus-controller"))
_EXTRAS = ("agent", "controller")
_UNITS = "deploy/systemd"
_FILES = "deploy/deb"


def lay_payload(repository: Path, base: BasePython, tree: Path, cache: Path, say: Callable[[str], None]) -> None:
    """Write all that the package installs into an empty tree.

    Args:
        repository: the checkout.
        base: the Python of the Debian release.
        tree: it becomes the root of the package.
        cache: where wheels are kept, installed.
        say: told what takes time.
    """
    python = replace(base, site=f"/{PREFIX}/lib/python{base.version[0]}.{base.version[1]}/site-packages")
    lay_packages(
        repository, tuple(dict.fromkeys(each for recipe in _RECIPES for each in recipe.packages)), python, tree
    )
    wheels = _wheels(repository, python, cache, say)
    shutil.copytree(wheels, tree, copy_function=os.link, dirs_exist_ok=True, symlinks=True)
    _lay_environment(python, tree)
    _lay_system_files(repository, tree)


def _wheels(repository: Path, python: BasePython, cache: Path, say: Callable[[str], None]) -> Path:
    """Return a tree of third-party packages, from the cache where nothing of it is newer."""
    folder = cache / f"wheels-{wheels_key(repository, _EXTRAS, python)}"
    if not folder.exists():
        say(f"installing the wheels of [{','.join(_EXTRAS)}]")
        for old in cache.glob("wheels-*"):
            shutil.rmtree(old)
        aside = folder.with_name(f"{folder.name}.part")
        aside.mkdir(parents=True)
        install_wheels(repository, _EXTRAS, python, aside)
        aside.rename(folder)
    return folder


def _lay_environment(python: BasePython, tree: Path) -> None:
    """Make it an environment as `python3 -m venv` would, with links to its programs where shells look."""
    prefix = tree / PREFIX
    programs = tuple(each for recipe in _RECIPES for each in recipe.programs)
    lay_programs(programs, f"/{PREFIX}/bin/python3", prefix / "bin")
    (prefix / "bin" / "python3").symlink_to(python.program)
    home = python.program.rpartition("/")[0]
    told = f"home = {home}\ninclude-system-site-packages = false\nversion = {python.full_version}\n"
    (prefix / "pyvenv.cfg").write_text(told, encoding="ascii")
    links = tree / "usr" / "bin"
    links.mkdir(parents=True)
    for name, _ in programs:
        (links / name).symlink_to(f"/{PREFIX}/bin/{name}")


def _lay_system_files(repository: Path, tree: Path) -> None:
    for unit in sorted((repository / _UNITS).glob("*.service")):
        _copy(unit, tree / "usr" / "lib" / "systemd" / "system" / unit.name)
    _copy(repository / _FILES / "swingbus.sysusers", tree / "usr" / "lib" / "sysusers.d" / "swingbus.conf")
    for example in sorted((repository / _FILES / "examples").glob("*.toml")):
        _copy(example, tree / "usr" / "share" / "doc" / "swingbus" / "examples" / example.name)
    documents = tree / "usr" / "share" / "doc" / "swingbus"
    for document in (repository / "CHANGELOG.md", *sorted((repository / "docs").glob("*.md"))):
        _copy(document, documents / document.name)
    _copy(repository / "LICENSE", documents / "copyright")
    (tree / "etc" / "swingbus").mkdir(parents=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
