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
    folder = site.parent
    ready, log = folder / "ready", folder / "controller.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "swingbus_controller.main", "run", "--config", str(site)]
    command += ["--ready-file", str(ready), "--log-level", "warning"]
    with running(command, log) as process:
        port = wait_for_file(ready, process, log)
        yield RunningController(pid=process.pid, endpoint=f"127.0.0.1:{port}", log=log)
