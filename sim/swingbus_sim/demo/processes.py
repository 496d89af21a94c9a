"""Processes of a run: started with a log each, signalled by name, ended by id, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from swingbus.faults import WrongState

_GRACE_S = 5.0


class Processes:
    """All processes of one run."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        shutil.rmtree(self._logs, ignore_errors=True)
        self._logs.mkdir(parents=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.started_count = 0

    def start(self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        """Start one; its output goes to LOGS/NAME.log, appended on a restart."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self.started_count += 1

    def names(self) -> tuple[str, ...]:
        """Return the processes that were started and not ended by us."""
        return tuple(self._running)

    def pid(self, name: str) -> int:
        """Return the number of one process."""
        return self._running[name].pid

    def send(self, name: str, number: int) -> None:
        """Signal one process alone (not its children)."""
        self._running[name].send_signal(number)

    def wait(self, name: str, timeout_s: float) -> int:
        """Return its exit status; raise WrongState where it does not end in time."""
        try:
            return self._running[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise WrongState(f"{name} did not end within {timeout_s:g} s; its log is {self.log(name)}") from None

    def ended(self) -> dict[str, int]:
        """Return those that have ended, with their status."""
        return {n: status for n, p in self._running.items() if (status := p.poll()) is not None}

    def log(self, name: str) -> Path:
        """Return where its output goes."""
        return self._logs / f"{name}.log"

    def stop(self, name: str) -> int:
        """End one with SIGTERM, then SIGKILL to its whole group; return its status."""
        process = self._running.pop(name)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._kill_group(process)
        self._kill_group(process)
        return process.wait(_GRACE_S)

    def stop_all(self) -> None:
        """End all, newest first."""
        for name in reversed(list(self._running)):
            self.stop(name)

    def _kill_group(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left of a process's session: children that outlived it."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def kill_sessions_with(marker: str, *, rounds: int = 20) -> int:
    """Kill every process of this user whose command line holds `marker` (a run's own folder); return how many.

    Workloads outlive their agent on purpose; a finished run must not leave them.
    """
    killed: set[int] = set()
    for _ in range(rounds):
        found = [pid for pid in _pids_with(marker) if pid != os.getpid()]
        if not found:
            break
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    return len(killed)


def _pids_with(marker: str) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if marker in line and "swingbus_sim.workloads" in line and status != "Z":
            found.append(int(entry.name))
    return found
