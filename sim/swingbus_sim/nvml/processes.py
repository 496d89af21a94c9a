"""The table of living processes that use a host's simulated GPUs.

Decides who holds a slot: a process that says so, until it leaves or is dead. Knows nothing of readings or limits.
Invariant: a slot counts only while the process that took it runs: its number and its start time both match, or, where it lives in a pid
namespace of its own and its number means nothing here (a pod), it still locks its slot's bytes. The kernel drops that lock with the process
and names its holder by the number that it has for whoever asks, as a driver does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swingbus.faults import OverBudget
from swingbus_sim.nvml import layout
from swingbus_sim.ports import GpuProcess

_LOAD_OFFSET = 24  # of `load_ratio` in a slot
_LOCK = struct.Struct("@hhqqi0q")  # struct flock: type, whence, start, length, holder


def start_ticks_of(pid: int) -> int | None:
    """Return when the process started (clock ticks since boot), None if it is gone or only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rfind(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Seat:
    """One process's slot in the table: it says how busy it is, and leaves."""

    def __init__(self, shelf_map: mmap.mmap, descriptor: int, slot: int) -> None:
        self._map = shelf_map
        self._descriptor = descriptor
        self._offset = _offset(slot)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, layout.PROCESS.size, self._offset)

    def set_load(self, load_ratio: float) -> None:
        """Say how busy the GPUs are kept: 0 idle, 1 full."""
        struct.pack_into("<d", self._map, self._offset + _LOAD_OFFSET, min(1.0, max(0.0, load_ratio)))

    def leave(self) -> None:
        """Give the slot back."""
        self._map[self._offset : self._offset + layout.PROCESS.size] = bytes(layout.PROCESS.size)
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, layout.PROCESS.size, self._offset)


class ProcessTable:
    """The table inside one mapped shelf."""

    def __init__(self, shelf_map: mmap.mmap, descriptor: int) -> None:
        self._map = shelf_map
        self._descriptor = descriptor

    def take_seat(self, *, kind: str, gpus: Sequence[int], memory_used_bytes: int, load_ratio: float) -> Seat:
        """Register the calling process as one that uses these GPUs.

        Raises:
            OverBudget: all slots hold living processes.
        """
        pid = os.getpid()
        ticks = start_ticks_of(pid)
        with self._locked():
            for slot in range(layout.PROCESS_SLOTS):
                if self._is_anothers(slot):
                    continue
                mask = sum(1 << gpu for gpu in gpus)
                offset = _offset(slot)
                # The number comes last: a reader that sees it sees the rest.
                body = layout.PROCESS.pack(
                    ticks or 0, mask, memory_used_bytes, load_ratio, 0, layout.WORKLOAD_KINDS.index(kind)
                )
                self._map[offset : offset + layout.PROCESS.size] = body
                seat = Seat(self._map, self._descriptor, slot)
                struct.pack_into("<I", self._map, offset + 32, pid)
                return seat
        raise OverBudget(
            f"all {layout.PROCESS_SLOTS} process slots of the simulated host are taken", reason="HOST_FULL"
        )

    def living(self) -> tuple[GpuProcess, ...]:
        """Return one entry for each GPU of each process that is alive now."""
        found: list[GpuProcess] = []
        for slot in range(layout.PROCESS_SLOTS):
            _, mask, memory, load, claimed, kind = self._slot(slot)
            pid = 0 if claimed == 0 else self._living_pid(slot)
            if pid == 0:
                continue
            name = layout.WORKLOAD_KINDS[kind] if kind < len(layout.WORKLOAD_KINDS) else f"kind {kind}"
            found.extend(
                GpuProcess(pid=pid, gpu=gpu, kind=name, load_ratio=load, memory_used_bytes=memory)
                for gpu in range(layout.MAX_GPUS)
                if mask >> gpu & 1
            )
        return tuple(found)

    def _slot(self, slot: int) -> tuple[int, int, int, float, int, int]:
        ticks, mask, memory, load, pid, kind = layout.PROCESS.unpack_from(self._map, _offset(slot))
        return ticks, mask, memory, load, pid, kind

    def _is_anothers(self, slot: int) -> bool:
        _, _, _, _, pid, _ = self._slot(slot)
        # A pod's first process has the number 1, as every other pod's: the lock tells them apart. One that leaves lets go of it last.
        return self._locked_by(slot) is not None or (pid not in (0, os.getpid()) and self._is_alive(slot))

    def _living_pid(self, slot: int) -> int:
        """Return the holder's number as this process may use it; 0 where it is dead."""
        _, _, _, _, pid, _ = self._slot(slot)
        if self._is_alive(slot):
            return pid
        locker = self._locked_by(slot)
        if locker is None:
            return 0
        return locker or pid  # 0: it lives where no number of ours reaches it

    def _is_alive(self, slot: int) -> bool:
        ticks, _, _, _, pid, _ = self._slot(slot)
        return start_ticks_of(pid) == ticks

    def _locked_by(self, slot: int) -> int | None:
        """Return which other process locks the slot; None if none does."""
        question = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _offset(slot), layout.PROCESS.size, 0)
        kind, _, _, _, pid = _LOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, question))
        return None if kind == fcntl.F_UNLCK else pid

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def _offset(slot: int) -> int:
    return layout.PROCESSES_OFFSET + slot * layout.PROCESS.size
