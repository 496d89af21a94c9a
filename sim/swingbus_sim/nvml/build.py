"""Builds the driver stand-in with whatever C compiler there is, once per source text.

Decides where the library is kept and which compiler makes it: `CC`, `cc`, `gcc` or `clang`, else the wheel `ziglang`.
Invariant: a directory that has the final name holds a complete library (it is built aside and renamed).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from swingbus.faults import NotFound, WrongState

LIBRARY_NAME = "libnvidia-ml.so.1"
SHELF_VARIABLE = "SWINGBUS_SIM_SHELF"
READ_ONLY_VARIABLE = "SWINGBUS_SIM_NVML_READ_ONLY"
ROOT_ONLY_VARIABLE = "SWINGBUS_SIM_NVML_ROOT_ONLY"
CACHE_VARIABLE = "SWINGBUS_SIM_CACHE"

_SOURCE = Path(__file__).with_name("stand_in.c")
_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", f"-Wl,-soname,{LIBRARY_NAME}")
_BUILD_SECONDS = 180.0


def build_library(*, cache: Path | None = None, without: Sequence[str] = ()) -> Path:
    """Return the directory that holds the stand-in, building it at first use.

    Args:
        cache: where builds are kept; default `SWINGBUS_SIM_CACHE`, else the user's cache directory.
        without: functions to leave out, as an older driver would.

    Raises:
        NotFound: there is no C compiler.
        WrongState: the compiler failed; the message carries its last lines.
    """
    root = cache if cache is not None else _default_cache()
    wanted = sorted(without)
    key = hashlib.sha256("\n".join([_SOURCE.read_text(), *_FLAGS, platform.machine(), *wanted]).encode()).hexdigest()[
        :16
    ]
    final = root / f"nvml-{key}"
    if (final / LIBRARY_NAME).exists():
        return final
    compiler = find_compiler()
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="nvml-building-", dir=root))
    except OSError as error:
        raise WrongState(
            f"the driver stand-in cannot be kept in {root}: {error}. Set {CACHE_VARIABLE} to a folder that can be written",
            reason="CACHE_NOT_WRITABLE",
        ) from error
    try:
        _compile(compiler, aside, wanted)
        aside.chmod(0o755)  # another user's agent may load it
        try:
            aside.rename(final)
        except OSError:
            if not (final / LIBRARY_NAME).exists():  # lost the race to another builder? Then its library is there.
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def find_compiler() -> list[str]:
    """Return the command that compiles C on this machine.

    Raises:
        NotFound: neither a compiler nor the wheel `ziglang` is installed.
    """
    named = os.environ.get("CC")
    if named:
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise NotFound(
        "no C compiler: the simulated GPUs need one to build the driver stand-in. "
        "Install a compiler (Debian: apt-get install gcc libc6-dev) or the wheel (pip install ziglang)",
        reason="COMPILER_NOT_FOUND",
    )


def driver_environment(
    shelf: Path, *, library: Path | None = None, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment in which a program finds the simulated GPUs of `shelf` instead of real ones.

    Args:
        shelf: the host's shared file.
        library: the directory from `build_library`; built now if not given.
        base: what the environment holds besides; default the caller's own.
    """
    environment = dict(os.environ if base is None else base)
    directory = str(library if library is not None else build_library())
    earlier = environment.get("LD_LIBRARY_PATH")
    environment["LD_LIBRARY_PATH"] = directory if not earlier else f"{directory}:{earlier}"
    environment[SHELF_VARIABLE] = str(shelf)
    return environment


def _default_cache() -> Path:
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swingbus"


def _compile(compiler: Sequence[str], directory: Path, without: Sequence[str]) -> None:
    command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(directory / LIBRARY_NAME)]
    if without:
        script = directory / "left_out.map"
        script.write_text("{ global: *; local: " + " ".join(f"{name};" for name in without) + " };\n")
        command.append(f"-Wl,--version-script={script}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WrongState(f"could not run the C compiler {compiler[0]}: {error}", reason="COMPILER_FAILED") from error
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise WrongState(
            f"the C compiler could not build the driver stand-in ({shlex.join(command)}):\n{tail}",
            reason="COMPILER_FAILED",
        )
