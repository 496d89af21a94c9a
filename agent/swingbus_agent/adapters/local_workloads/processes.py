"""Processes as the kernel shows them: started in a session of their own, known by number and start time.

Decides who is alive. Knows nothing of units. Invariant: a signal goes only to a group that is proven to be the one we started:
its leader has our start time, or the leader is gone and the number is still taken by its group.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_TAIL_BYTES = 4096
_LONGEST_LINE = 300


def boot_id() -> str:
    """Return the kernel's id of this boot: process numbers of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks_of(pid: int) -> int | None:
    """Return when a living process started (ticks since boot); None if there is none, a zombie included."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in ("Z", "X") else int(fields[19])


def living_group(leader: int, leader_ticks: int) -> tuple[int, ...]:
    """Return the living processes of the group that `leader` founded.

    The kernel gives a number to nobody else while a group still has it, so if the number belongs to a process with another
    start time now, our group is gone.
    """
    leader_fields = _stat(leader)
    if leader_fields is not None and int(leader_fields[19]) != leader_ticks:
        return ()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields is not None and int(fields[2]) == leader and fields[0] not in ("Z", "X"):
                found.append(int(entry))
    return tuple(found)


def signal_group(leader: int, leader_ticks: int, number: signal.Signals) -> None:
    """Send a signal to the whole group, if it is still ours."""
    if living_group(leader, leader_ticks):
        try:
            os.killpg(leader, number)
        except ProcessLookupError:
            return  # it went between the look and the call: what was wanted


def spawn(command: Sequence[str], *, environment: Mapping[str, str], folder: str, output: Path) -> tuple[int, int]:
    """Start a program in a session of its own, its output appended to `output`; return its number and start ticks.

    Raises:
        OSError: the program cannot be started.
    """
    with open(output, "ab") as log:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder or None,
            env=dict(environment),
            start_new_session=True,
        )
    # It shall outlive this program: from here on it is known by number, and Popen must neither reap it nor warn of it.
    child.returncode = 0
    fields = _stat(child.pid)  # there even if it has ended: nobody has reaped it
    if fields is None:
        raise OSError(f"process {child.pid} vanished from /proc")
    return child.pid, int(fields[19])


def reap(pid: int, start_ticks: int) -> int | None:
    """Return the exit code of a child of ours that has ended (negative: the signal), and let the kernel forget it."""
    fields = _stat(pid)
    if fields is None or fields[0] != "Z" or int(fields[19]) != start_ticks:
        return None
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # an earlier agent's child: whoever took it over reaps it
        return None
    return os.waitstatus_to_exitcode(status) if done == pid else None


def find_by_token(variable: str, token: str) -> tuple[int, int] | None:
    """Return (number, start ticks) of the session leader that was started with this environment variable."""
    wanted = f"{variable}={token}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        fields = _stat(pid)
        if fields is None or int(fields[3]) != pid or fields[0] in ("Z", "X"):
            continue
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # not ours to read, so not ours
            continue
        if wanted in variables:
            return pid, int(fields[19])
    return None


def last_lines(path: Path, count: int) -> tuple[str, ...]:
    """Return the last lines of a program's output, each cut to a readable length."""
    try:
        with open(path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(line[:_LONGEST_LINE] for line in text.splitlines()[-count:])


def keep_small(path: Path, most_bytes: int) -> None:
    """Cut a log that grew too long down to its end; writers append, so they go on after it."""
    try:
        if path.stat().st_size <= most_bytes:
            return
        with open(path, "r+b") as log:
            log.seek(-_TAIL_BYTES, os.SEEK_END)
            tail = log.read()
            log.truncate(0)
            log.seek(0)
            log.write(tail)
    except FileNotFoundError:
        return


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rfind(")") + 2 :].split()
