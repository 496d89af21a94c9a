"""One GPU host's shared file as the simulator holds it: readings go in, requested limits and processes come out.

Decides how a reading is laid down so that no reader ever sees half of it: two copies per GPU, the unused one is
written, then one word is moved on. Knows nothing of watts and heat (the physics) nor of NVML's calls (`stand_in.c`).
Invariant: only the simulator writes readings; only the driver's callers write requests; `clear_requests` is a driver
reload.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from swingbus.faults import InvalidInput, NotFound
from swingbus_sim.nvml import layout
from swingbus_sim.nvml.layout import DriverCounters, GpuIdentity
from swingbus_sim.nvml.processes import ProcessTable
from swingbus_sim.ports import GpuProcess, GpuReading


class Shelf:
    """Implements `swingbus_sim.ports.GpuShelf` on a memory-mapped file."""

    def __init__(self, path: Path, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Open a shelf that `Shelf.create` made.

        Raises:
            NotFound: there is no such file.
            InvalidInput: the file is not a shelf of this version.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"no simulated GPU host at {path}: start the simulator first") from error
        if os.fstat(descriptor).st_size != layout.SHELF_SIZE:
            os.close(descriptor)
            raise InvalidInput(
                f"{path} is not a GPU host's shelf of this version: remove it and start the simulator again"
            )
        self.path = path
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, layout.SHELF_SIZE)
        magic, version, gpu_count, *_ = layout.HEADER.unpack_from(self._map, 0)
        if magic != layout.MAGIC or version != layout.LAYOUT_VERSION:
            self.close()
            raise InvalidInput(
                f"{path} is not a GPU host's shelf of this version: remove it and start the simulator again"
            )
        self.gpu_count: int = gpu_count
        self._words = memoryview(self._map).cast("Q")  # one aligned 64-bit access each: never torn
        self._clock_ns = clock_ns
        self._published_ns = clock_ns()
        self._counters = [DriverCounters()] * gpu_count
        self._xids = [0] * gpu_count
        self._hangs_at_open = [False] * gpu_count
        self.process_table = ProcessTable(self._map, descriptor)

    @classmethod
    def create(
        cls,
        path: Path,
        gpus: Sequence[GpuIdentity],
        *,
        driver_version: str = "580.95.05",
        unsupported_fields: Sequence[int] = (),
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> Shelf:
        """Make a host with these GPUs and open it; nothing can be read until the first `publish`.

        Args:
            path: the file; an older one is replaced as a whole.
            gpus: at most 16.
            driver_version: what the driver calls itself.
            unsupported_fields: at most 16 NVML field ids that answer "not supported" on this host.
            clock_ns: what the driver counts throttled time with.
        """
        if not 0 <= len(gpus) <= layout.MAX_GPUS:
            raise InvalidInput(
                f"a simulated host holds at most {layout.MAX_GPUS} GPUs, not {len(gpus)}: use more hosts"
            )
        if len(unsupported_fields) > 16:
            raise InvalidInput("a shelf can name at most 16 unsupported fields")
        content = bytearray(layout.SHELF_SIZE)
        header = layout.pack_header(
            gpu_count=len(gpus), driver_version=driver_version, unsupported_fields=tuple(unsupported_fields)
        )
        content[: len(header)] = header
        for index, identity in enumerate(gpus):
            offset = layout.gpu_offset(index)
            content[offset : offset + layout.IDENTITY.size] = layout.pack_identity(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(content)
        aside.replace(path)
        return cls(path, clock_ns=clock_ns)

    def publish(self, readings: Sequence[GpuReading]) -> None:
        """Make these readings, one per GPU in order, what every later driver call answers."""
        if len(readings) != self.gpu_count:
            raise InvalidInput(
                f"{self.path.name} has {self.gpu_count} GPUs but {len(readings)} readings were published"
            )
        now_ns = self._clock_ns()
        elapsed_ns, self._published_ns = max(0, now_ns - self._published_ns), now_ns
        for index, reading in enumerate(readings):
            counters = self._count(index, reading, elapsed_ns)
            offset = layout.gpu_offset(index)
            word = (offset + layout.SEQUENCE_OFFSET) // 8
            sequence = self._words[word] + 1
            at = offset + layout.COPIES_OFFSET + (sequence & 1) * layout.COPY_SIZE
            self._map[at : at + layout.COPY_SIZE] = layout.pack_copy(
                reading, counters, sequence, hangs_at_open=self._hangs_at_open[index]
            )
            self._words[word] = sequence

    def requested_limits_w(self) -> tuple[float | None, ...]:
        """Return what the host's tools last asked for, per GPU; None where nobody asked since the driver was loaded."""
        asked_mw = (
            self._words[(layout.gpu_offset(index) + layout.REQUEST_OFFSET) // 8] & 0xFFFFFFFF
            for index in range(self.gpu_count)
        )
        return tuple(None if mw == 0 else mw / 1000 for mw in asked_mw)

    def clear_requests(self) -> None:
        """Forget requested limits and what the driver counted: the host rebooted or its driver was reloaded."""
        for index in range(self.gpu_count):
            word = (layout.gpu_offset(index) + layout.REQUEST_OFFSET) // 8
            self._words[word] = ((self._words[word] >> 32) + 1) << 32
            xid_sequence = self._counters[index].xid_sequence
            self._counters[index] = DriverCounters(xid_sequence=xid_sequence)

    def processes(self) -> tuple[GpuProcess, ...]:
        """Return the workloads that are alive on this host now, one entry per process and GPU."""
        return self.process_table.living()

    def report_xid(self, index: int) -> None:
        """Make the next `publish` an XID event of GPU `index`, even if it is the same number as the last one."""
        self._xids[index] = -1

    def hang_at_open(self, index: int, hangs: bool) -> None:
        """Make even opening GPU `index` hang from the next `publish` on (a fresh process is stuck there too)."""
        self._hangs_at_open[index] = hangs

    def close(self) -> None:
        """Let go of the file, which stays."""
        if hasattr(self, "_words"):
            self._words.release()
        self._map.close()
        os.close(self._descriptor)

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, index: int, reading: GpuReading, elapsed_ns: int) -> DriverCounters:
        """Count throttled time and XID errors: a reading says what is, the driver says how often it was."""
        counted = self._counters[index]
        bits = layout.COUNTED_THROTTLE_BITS
        ns = counted.throttle_ns
        power, boost, soft_heat, hard_heat, brake = (
            ns[i] + (elapsed_ns if reading.throttle_reasons & bits[i] else 0) for i in range(len(bits))
        )
        is_new_xid = reading.xid not in (0, self._xids[index])
        self._xids[index] = reading.xid
        self._counters[index] = DriverCounters(
            throttle_ns=(power, boost, soft_heat, hard_heat, brake),
            xid_sequence=counted.xid_sequence + (1 if is_new_xid else 0),
        )
        return self._counters[index]
