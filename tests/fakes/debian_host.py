"""A host of a test: a fresh Debian root that its own systemd has booted, in namespaces of its own.

Making one needs root. Its network is loopback alone, and what belongs to the whole machine is read-only inside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swingbus_sim.cluster import cgroups

_NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")
_PROGRAMS = ("setpriv", "unshare", "nsenter", "pivot_root", "ip", "dpkg-deb", "apt-get")
_PREPARE = Path(__file__).with_suffix(".sh")
_BOOT_TIMEOUT_S, _COMMAND_TIMEOUT_S = 30.0, 120.0
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def missing_for_host() -> str:
    """Return why no such host can be on this machine; empty where it can."""
    if os.geteuid() != 0:
        return "a host that systemd boots needs root; run the tests as root once"
    if lacks := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"this machine has no {', '.join(lacks)}"
    if _cgroup_root() is None:
        return "no cgroup file system of version 2 is mounted on this machine"
    return ""


class DebianHost:
    """A host that runs."""

    def __init__(self, root: Path, pid: int) -> None:
        self.root = root
        self._pid = pid

    def try_run(self, *command: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root; return how it ended and what it said."""
        enter = ("nsenter", f"--target={self._pid}", "--all", "--root", "--wd")
        return subprocess.run(
            (*enter, *command), capture_output=True, text=True, check=False, timeout=timeout_s, env=_ENVIRONMENT
        )

    def run(self, *command: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """Run a command inside that has to succeed; return what it said."""
        done = self.try_run(*command, timeout_s=timeout_s)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def log(self, unit: str) -> str:
        """Return what a unit wrote."""
        return self.run("journalctl", "--quiet", "--no-pager", "--output=cat", f"--unit={unit}")

    def until_logged(self, unit: str, word: str, *, timeout_s: float = 20.0) -> str:
        """Wait until a unit has written a word; return all that it wrote."""
        deadline_s = time.monotonic() + timeout_s
        while word not in (text := self.log(unit)):
            state = self.run("systemctl", "status", "--no-pager", "--lines=0", unit) if text == "" else ""
            assert time.monotonic() < deadline_s, f"{unit} did not say {word!r}:\n{text}{state}"
            time.sleep(0.1)
        return text


@contextmanager
def booted(root: Path, *, name: str) -> Iterator[DebianHost]:
    """Boot a root; end all that runs in it afterwards.

    Args:
        root: it becomes the host's.
        name: of the host's cgroup; no other one's begins with it.
    """
    over = _cgroup_root()
    assert over is not None
    group = over / name
    group.mkdir()
    # Ends with us also where nobody says so.
    command = (
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        *_NAMESPACES,
        "--fork",
        "--kill-child",
        "sh",
        str(_PREPARE),
        str(root),
    )
    enter = f'echo $$ > "{group}/cgroup.procs" && exec "$@"'
    process = subprocess.Popen(("sh", "-c", enter, "sh", *command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield _wait_for_boot(process, root)
    finally:
        process.kill()  # the kernel ends the first process with it, and all others with that one
        process.communicate()
        cgroups.remove(name)


def _cgroup_root() -> Path | None:
    """Return where version 2 is mounted, which systemd needs."""
    return next((root for root in cgroups.hierarchies() if (root / "cgroup.controllers").exists()), None)


def _wait_for_boot(process: subprocess.Popen[bytes], root: Path) -> DebianHost:
    deadline_s = time.monotonic() + _BOOT_TIMEOUT_S
    state = "no first process yet"
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            said = process.stdout.read().decode() if process.stdout is not None else ""
            raise AssertionError(f"the host's first process ended with {process.returncode}: {said}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
            host = DebianHost(root, int(children[0]))
            state = host.try_run("systemctl", "is-system-running").stdout.strip()
            if state in ("running", "degraded"):
                return host
        time.sleep(0.1)
    raise AssertionError(f"the host did not boot within {_BOOT_TIMEOUT_S:.0f} s: {state or 'systemd does not answer'}")
