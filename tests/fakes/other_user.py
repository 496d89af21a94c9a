"""Running this project as another user of this machine: which one, and with which Python: the one in use may be root's own."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

USER, GROUP = 64_000, 64_001
_PLACES = "/usr/bin:/usr/local/bin"


def python_for_other_user(folder: Path) -> Path | str:
    """Return a Python with this project's packages that `USER` can run, or why there is none.

    Args:
        folder: where one may be put together; `USER` can enter it.
    """
    if os.geteuid() != 0:
        return "NOT TESTED HERE: giving up root needs root; run the tests as root once"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    tried = [_try(Path(sys.executable))]
    found = shutil.which(version, path=_PLACES)
    if tried[0] and found is not None:
        tried.append(_try(_environment(folder / "python", Path(found), version)))
    for why in tried:
        if not why:
            return Path(sys.executable) if len(tried) == 1 else folder / "python" / "bin" / "python"
    return f"NOT TESTED HERE: user {USER} can run no {version} with this project: {'; '.join(tried)}"


def as_other_user(command: Sequence[str]) -> list[str]:
    """Return the command that runs another as `USER`: not by `subprocess(user=...)`, which forks with gRPC's threads in it."""
    become = f"import os,sys; os.setgroups([]); os.setresgid(*[{GROUP}]*3); os.setresuid(*[{USER}]*3); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", become, *command]


def _try(python: Path) -> str:
    """Return why the user cannot run it; empty where it can."""
    command = as_other_user([str(python), "-I", "-c", "import swingbus_agent.running, pynvml"])
    done = subprocess.run(command, cwd="/", capture_output=True, check=False, timeout=60)
    return "" if done.returncode == 0 else f"{python}: {done.stderr.decode()[-200:]}"


def _environment(folder: Path, python: Path, version: str) -> Path:
    """Put an environment of another Python of the same version together, with the packages of this one."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib" / version).mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(python)
    (folder / "lib" / version / "site-packages").symlink_to(site.getsitepackages()[0])
    (folder / "pyvenv.cfg").write_text(
        f"home = {python.parent}\ninclude-system-site-packages = false\n", encoding="ascii"
    )
    return folder / "bin" / "python"
