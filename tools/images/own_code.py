"""The layer of our own code: packages as they are in the checkout, compiled, and one small program per command."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.images.base_python import BasePython
from tools.images.recipes import Recipe

_FORM = "1"  # raise it when the same sources give another tree
_LEFT_OUT_SUFFIXES = (".pyc", ".pyi", ".proto")
_PROGRAM = """\
#!{python} -P
import sys

from {module} import main

sys.exit(main())
"""


def code_key(repository: Path, recipe: Recipe, python: BasePython) -> str:
    """Return a word that is another one where the layer would be."""
    told = hashlib.sha256(f"{_FORM}\n{python.full_version}\n{python.site}\n{recipe.programs}\n".encode())
    for package in recipe.packages:
        for path in _sources(repository / package):
            content = path.read_bytes()
            told.update(f"{path.relative_to(repository)} {len(content)}\n".encode())
            told.update(content)
    return told.hexdigest()[:16]


def lay_code(repository: Path, recipe: Recipe, python: BasePython, tree: Path) -> None:
    """Write packages and programs into an empty tree."""
    lay_packages(repository, recipe.packages, python, tree)
    lay_programs(recipe.programs, python.program, tree / "usr" / "local" / "bin")
    licence = tree / "usr" / "share" / "doc" / "swingbus" / "LICENSE"
    licence.parent.mkdir(parents=True)
    shutil.copyfile(repository / "LICENSE", licence)


def lay_packages(repository: Path, packages: Sequence[str], python: BasePython, tree: Path) -> None:
    """Write packages of ours into the folder that the python imports from, and compile it."""
    folder = tree / python.site.lstrip("/")
    for package in packages:
        root = repository / package
        for path in _sources(root):
            target = folder / root.name / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    python.compile(tree, python.site)


def lay_programs(programs: Sequence[tuple[str, str]], interpreter: str, folder: Path) -> None:
    """Write one small program per command."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in programs:
        program = folder / name
        program.write_text(_PROGRAM.format(python=interpreter, module=module))
        program.chmod(0o755)


def _sources(package: Path) -> Iterator[Path]:
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix not in _LEFT_OUT_SUFFIXES and "__pycache__" not in path.parts:
            yield path
