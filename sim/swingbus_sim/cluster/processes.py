"""Processes of a cluster: each writes its own id to disk before it becomes the program, and is ended by that id alone.

An id is a pid with its start time in kernel ticks, so a pid that the kernel gave to a stranger since then is never signalled. Processes
are nobody's children (they outlive the command that brings a cluster up), hence no handle is kept: the records are all there is, and
whoever has the folder can end what is in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swingbus.faults import NotFound, TimedOut, WrongState

_POLL_S = 0.02
_START_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 20.0
_COMMAND_TIMEOUT_S = 60.0
# The shell notes its own /proc line, then becomes the program: the record is there before anything needs ending.
_RECORD_THEN_BECOME = 'read -r line < /proc/$$/stat && printf "%s\\n" "$line" > "$0" && exec "$@"'
# Whoever brings a cluster up may have a bare PATH; mounts, networks and runc live in the sbin folders.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid that cannot be mistaken for a later one."""

    pid: int
    started_ticks: int

    def is_alive(self) -> bool:
        """Return whether this very process still runs (a zombie does not)."""
        return read_id(self.pid) == self


def read_id(pid: int) -> ProcessId | None:
    """Return the id of a running process; None where there is none, or only its zombie.

    A zombie with threads that still end runs: they hold its sockets, and whoever starts in its place would find the port taken.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        identity, state = _parse_stat(line)
        is_gone = state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if is_gone else identity


def children(pid: int) -> tuple[int, ...]:
    """Return a process's direct children."""
    try:
        return tuple(int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return ()


def _parse_stat(line: str) -> tuple[ProcessId, str]:
    # The program's name stands in parentheses and may hold anything: count from the last one.
    before, after = line.rsplit(")", 1)
    fields = after.split()
    return ProcessId(int(before.split(" ", 1)[0]), int(fields[19])), fields[0]


def run(command: Sequence[str], *, input_text: str | None = None, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
    """Run a short command to its end and return what it printed; raise WrongState with its words where it fails."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"}
    try:
        done = subprocess.run(
            command, input=input_text, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment
        )
    except FileNotFoundError:
        raise NotFound(f"{command[0]} is not on this machine; install the package that has it") from None
    except subprocess.TimeoutExpired:
        raise TimedOut(f"`{' '.join(command)}` did not end within {timeout_s:g} s") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[-2000:]
        raise WrongState(f"`{' '.join(command)}` failed with status {done.returncode}: {words}")
    return done.stdout


def wait_until(ready: Callable[[], bool], *, what: str, timeout_s: float, poll_s: float = _POLL_S) -> None:
    """Poll until it is so; raise TimedOut naming what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise TimedOut(f"{what}: not so within {timeout_s:g} s")
        time.sleep(poll_s)


class Processes:
    """The processes of one cluster, by name."""

    def __init__(self, folder: Path) -> None:
        self._records = folder / "records"
        self._commands = folder / "commands"
        self._logs = folder / "logs"

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        enter: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> ProcessId:
        """Start one and return its id once it is on disk.

        Args:
            name: names the record and the log (appended on a restart).
            command: the program.
            enter: a command that runs another one somewhere else (`nsenter`); the record is made before it.
            environment: all that the program sees besides PATH and HOME.
        """
        if self.find(name) is not None:
            raise WrongState(f"{name} runs already; end it before it is started again")
        for folder in (self._records, self._commands, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        record = self._records / name
        record.unlink(missing_ok=True)
        variables = {"PATH": SYSTEM_PATH, "HOME": str(self._records.parent), **(environment or {})}
        wanted = {"command": list(command), "enter": list(enter), "environment": dict(environment or {})}
        (self._commands / name).write_text(json.dumps(wanted, indent=1))
        with self.log(name).open("ab") as log:
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", _RECORD_THEN_BECOME, str(record), *enter, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                check=True,
            )
        wait_until(lambda: self._read(record) is not None, what=f"{name} has no id", timeout_s=_START_TIMEOUT_S)
        identity = self._read(record)
        assert identity is not None
        return identity

    def restart(self, name: str, *, enter: Sequence[str] | None = None) -> ProcessId:
        """Start one that was ended (or died) just as it was started before, whoever did that.

        Args:
            name: as it was started.
            enter: where, if the namespace that it was in is gone.
        """
        wanted = self._wanted(name)
        return self.start(
            name,
            wanted["command"],
            enter=wanted["enter"] if enter is None else enter,
            environment=wanted["environment"],
        )

    def command(self, name: str) -> tuple[str, ...]:
        """Return what one was started with, whether it runs or not: its flags say where it listens."""
        return tuple(self._wanted(name)["command"])

    def _wanted(self, name: str) -> dict[str, Any]:
        try:
            wanted: dict[str, Any] = json.loads((self._commands / name).read_text())
        except FileNotFoundError:
            raise NotFound(f"{name} was never started in {self._commands.parent}") from None
        return wanted

    def names(self) -> tuple[str, ...]:
        """Return all that were started and not ended by us, whether they still run or not."""
        try:
            return tuple(sorted(entry.name for entry in self._records.iterdir()))
        except FileNotFoundError:
            return ()

    def find(self, name: str) -> ProcessId | None:
        """Return a process's id; None where it does not run."""
        identity = self._read(self._records / name)
        return identity if identity is not None and identity.is_alive() else None

    def log(self, name: str) -> Path:
        """Return where its output goes."""
        return self._logs / f"{name}.log"

    def must_run(self, name: str) -> ProcessId:
        """Return its id; raise WrongState with the end of its log where it has died."""
        identity = self.find(name)
        if identity is None:
            tail = self.log(name).read_text(errors="replace")[-1500:] if self.log(name).exists() else ""
            raise WrongState(f"{name} has ended by itself; its log is {self.log(name)} and ends so:\n{tail}")
        return identity

    def wait_ready(self, name: str, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait until a started process answers; raise WrongState at once where it dies instead."""

        def answers() -> bool:
            self.must_run(name)
            return ready()

        wait_until(answers, what=f"{name} is not ready (its log: {self.log(name)})", timeout_s=timeout_s)

    def end(self, name: str, *, number: int = signal.SIGKILL) -> None:
        """Signal one by its recorded id and wait until it is gone; one that has gone already is only forgotten."""
        self._end_all((name,), number=number)

    def end_all(self) -> int:
        """Kill all at once and return how many ran: a cluster's disk is thrown away, nothing needs a graceful end."""
        return self._end_all(self.names(), number=signal.SIGKILL)

    def _end_all(self, names: Sequence[str], *, number: int) -> int:
        running = {name: identity for name in names if (identity := self.find(name)) is not None}
        # nsenter and unshare only stand in for the one process that they started inside: it gets the signal too.
        inside = [child for own in running.values() for pid in children(own.pid) if (child := read_id(pid)) is not None]
        ending = [*inside, *running.values()]
        for identity in ending:
            try:
                os.kill(identity.pid, number)
            except ProcessLookupError:
                continue
        wait_until(
            lambda: not any(identity.is_alive() for identity in ending),
            what=f"the end of {', '.join(running)}",
            timeout_s=_END_TIMEOUT_S,
        )
        for name in names:
            (self._records / name).unlink(missing_ok=True)
        return len(running)

    @staticmethod
    def _read(record: Path) -> ProcessId | None:
        try:
            return _parse_stat(record.read_text())[0]
        except (FileNotFoundError, ValueError, IndexError):
            return None
