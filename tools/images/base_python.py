"""The python inside a base image's root, run from outside: it says what it is and compiles what will run on it.

It is started through the base's own loader with the base's own libraries, so no root is needed and nothing of this machine's python decides
anything: a base with another version gets wheels and byte code for that version.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import InvalidInput, WrongState
from tools.images.unpack import resolve

_PYTHONS = ("usr/local/bin/python3", "usr/bin/python3")
_LOADERS = ("lib64/ld-linux-*.so.*", "lib/ld-linux-*.so.*", "usr/lib64/ld-linux-*.so.*", "usr/lib/ld-linux-*.so.*")
_LIBRARIES = ("usr/lib", "lib", "usr/local/lib")
_TIMEOUT_S = 300.0
_OLDEST = (3, 11)
_ASK = """
import json, os, site, sys
print(json.dumps({
    "version": sys.version_info[:2],
    "full": sys.version.split()[0],
    "site": site.getsitepackages()[0],
    "glibc": os.confstr("CS_GNU_LIBC_VERSION"),
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePython:
    """What a base's python says of itself.

    Args:
        root: the base, unpacked.
        program: path inside the image.
        site: folder inside the image that it imports from.
        glibc_minor: 2.N of the base's C library: newer wheels can't run there.
    """

    root: Path
    program: str
    version: tuple[int, int]
    full_version: str
    site: str
    glibc_minor: int

    def compile(self, tree: Path, folder: str) -> None:
        """Compile all below a folder of a tree that will be laid over the base; the image's file system may be read-only.

        The byte code is trusted unchecked (there is no later edit to notice), and the same source gives the same bytes.
        """
        words = ("-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash")
        _run(self.root, self.program, (*words, "-s", str(tree), "-p", "/", str(tree / folder.lstrip("/"))))


def find_python(root: Path) -> BasePython:
    """Return the python of an unpacked base; refuse one that has none, or one too old."""
    for candidate in _PYTHONS:
        found = resolve(root, root / candidate)
        if found.is_file():
            break
    else:
        raise InvalidInput(
            f"the base has no python3 ({' or '.join(f'/{each}' for each in _PYTHONS)}); name a base that has one"
        )
    program = f"/{found.relative_to(root)}"
    told = json.loads(_run(root, program, ("-c", _ASK)))
    version = (int(told["version"][0]), int(told["version"][1]))
    if version < _OLDEST:
        raise InvalidInput(f"the base's python is {told['full']}; Swingbus needs 3.11 or newer: name another base")
    return BasePython(
        root=root,
        program=program,
        version=version,
        full_version=told["full"],
        site="/" + str(Path(told["site"]).relative_to(root)),
        glibc_minor=int(told["glibc"].rpartition(".")[2]),
    )


def _run(root: Path, program: str, words: tuple[str, ...]) -> str:
    libraries = ":".join(str(folder) for folder in _library_folders(root))
    command = [
        str(_find_loader(root)),
        "--library-path",
        libraries,
        str(root / program.lstrip("/")),
        "-s",
        "-P",
        *words,
    ]
    home = (root / program.lstrip("/")).parent.parent
    # A fixed hash seed: byte code holds sets, whose order follows it.
    environment = {"PYTHONHOME": str(home), "PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment)
    if done.returncode != 0:
        raise WrongState(f"the base's {program} failed: {(done.stderr or done.stdout).strip()[-1500:]}")
    return done.stdout


def _find_loader(root: Path) -> Path:
    for pattern in _LOADERS:
        folder, _, name = pattern.rpartition("/")
        for found in sorted(resolve(root, root / folder).glob(name)):
            loader = resolve(root, found)
            if loader.is_file():
                return loader
    raise InvalidInput("the base has no glibc loader (musl and static bases can't run our wheels); name a glibc base")


def _library_folders(root: Path) -> Iterator[Path]:
    for name in _LIBRARIES:
        folder = resolve(root, root / name)
        if folder.is_dir():
            yield from sorted(folder.glob("*-linux-gnu"))
            yield folder
