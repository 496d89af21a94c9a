"""A real `swingbus-controller` in a process of its own, for the bench."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.procs import running, wait_for_file


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningController:
    """Where it is."""

    pid: int
    endpoint: str
    log: Path


@contextmanager
def controller(site: Path) -> Iterator[RunningController]:
    """Run the program on a site file until the block ends."""
    command = ["swingbus_controller.main", "run", "--config", str(site)]
    with server([*command, "--ready-file", str(site.parent / "ready"), "--log-level", "warning"], site.parent) as found:
        yield found


@contextmanager
def server(module: list[str], folder: Path) -> Iterator[RunningController]:
    """Run a Python module that writes its port to `folder`/ready until the block ends."""
    ready, log = folder / "ready", folder / "server.log"
    ready.unlink(missing_ok=True)
    with running([sys.executable, "-m", *module], log) as process:
        port = wait_for_file(ready, process, log)
        yield RunningController(pid=process.pid, endpoint=f"127.0.0.1:{port}", log=log)
