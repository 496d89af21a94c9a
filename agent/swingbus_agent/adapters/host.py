"""The host through psutil: totals only, no walk over processes."""

from __future__ import annotations

from pathlib import Path

import psutil


class PsutilHost:
    """Reads the machine that the agent runs on; `state_dir` says which disk's room counts."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._me = psutil.Process()
        self._busy_s, self._total_s = _cpu_times()

    def read(self) -> tuple[float | None, ...]:
        busy_s, total_s = _cpu_times()
        span_s = total_s - self._total_s
        cpu_ratio = (busy_s - self._busy_s) / span_s if span_s > 0 else None
        self._busy_s, self._total_s = busy_s, total_s
        memory = psutil.virtual_memory()
        return (
            cpu_ratio,
            float(memory.total - memory.available),
            float(memory.total),
            psutil.getloadavg()[0],
            self._disk_free_bytes(),
            _hottest_c(),
            _uptime_s(),
            float(self._me.memory_info().rss),
        )

    def _disk_free_bytes(self) -> float | None:
        try:
            return float(psutil.disk_usage(str(self._state_dir)).free)
        except OSError:
            return None  # the folder is not there yet


def _cpu_times() -> tuple[float, float]:
    times = psutil.cpu_times()
    total_s = sum(times[:8])  # guest times are inside user and nice
    return total_s - times.idle - getattr(times, "iowait", 0.0), total_s


def _hottest_c() -> float | None:
    sensors = getattr(psutil, "sensors_temperatures", None)
    if sensors is None:
        return None
    found = [each.current for group in sensors().values() for each in group if each.current is not None]
    return max(found, default=None)


def _uptime_s() -> float | None:
    try:
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None
