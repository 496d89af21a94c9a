"""Processes under measurement: start them, read their CPU and memory from /proc, end them.

CPU seconds are the kernel's own count for the process (user and system, all its threads): they hardly depend on who else uses the
machine, wall times do. Memory is PSS: pages shared by n processes count 1/n.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import TimedOut, WrongState

_TICKS = os.sysconf("SC_CLK_TCK")
_END_S = 10.0


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which imports may leave byte code, as an installed package has it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")}
    # gRPC's own fork handlers print into measurements and cost a lock each.
    return {**kept, "GRPC_ENABLE_FORK_SUPPORT": "0", **more}


@contextmanager
def running(
    command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process whose output goes to a file; end it and everything in its session at exit."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment() if env is None else env),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End a process with SIGTERM, then everything of its session with SIGKILL."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # its whole session is killed below
            process.wait(_END_S)
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_END_S)


def wait_for_file(path: Path, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 60.0) -> str:
    """Return what a process has written to its ready file. Raises WrongState where it ended, TimedOut where it takes too long."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if path.exists():
            return path.read_text(encoding="utf-8").strip()
        if process.poll() is not None:
            raise WrongState(f"{process.args!r} ended with {process.returncode}:\n{tail(log)}", reason="ENDED")
        time.sleep(0.05)
    raise TimedOut(f"{process.args!r} was not ready within {timeout_s:.0f} s:\n{tail(log)}", reason="NOT_READY")


def tail(log: Path, lines: int = 12) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, its ended and waited-for children included."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rsplit(")", 1)[1].split()
    return sum(int(fields[at]) for at in (11, 12, 13, 14)) / _TICKS


def tree(pid: int) -> list[int]:
    """Return a process and everything below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="ascii", errors="replace").rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended while we looked
        parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, rest = [], [pid]
    while rest:
        here = rest.pop()
        found.append(here)
        rest.extend(parents.get(here, ()))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of one process: all of it, its share of shared pages counted, and what it shares with nobody."""

    rss_bytes: int
    pss_bytes: int
    private_bytes: int


def memory(pid: int) -> Memory:
    """Return a process's resident memory as the kernel sums it."""
    kb: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        key, _, rest = line.partition(":")
        if rest.strip().endswith("kB"):
            kb[key] = int(rest.split()[0])
    if "Pss" not in kb:
        raise WrongState(f"/proc/{pid}/smaps_rollup has no Pss line: this kernel cannot say it", reason="NO_PSS")
    return Memory(
        rss_bytes=1024 * kb["Rss"],
        pss_bytes=1024 * kb["Pss"],
        private_bytes=1024 * (kb["Private_Clean"] + kb["Private_Dirty"]),
    )


def command_of(pid: int) -> str:
    """Return a process's command line, for the record."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
