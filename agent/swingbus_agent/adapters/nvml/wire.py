"""From the child's lines to the agent's words: identities, samples, and what is remembered of a GPU from line to line.

Decides which return code means lost, unsupported or failed. Knows nothing of processes and deadlines. Invariant: a number that
the child did not send in this line is not in the sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from swingbus_agent.adapters.nvml import plan
from swingbus_agent.adapters.nvml.link import Line
from swingbus_agent.domain.gpu import GpuIdentity, GpuProcess, GpuSample
from swingbus_agent.domain.readings import Condition


class Opening:
    """What the child told while it opened GPUs; `gpus` has one entry per position, None where it was skipped."""

    def __init__(self) -> None:
        self.count: int | None = None
        self.driver_version: str | None = None
        self.gpus: list[Line | None] = []

    def take(self, line: Line) -> None:
        """Take one line."""
        if "count" in line:
            self.count, self.driver_version = line["count"], line["driver"]
        else:
            self.gpus.append(line["gpu"])


class GpuTracker:
    """One GPU from line to line: since when it is not well, what it cannot say, its XID errors so far."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._since_ns: dict[Condition, int] = {}
        self._unsupported: frozenset[str] = frozenset()
        self._xid_count = 0
        self._last_xid = 0
        self._new_xids: list[int] = []

    def learn(self, unsupported: Iterable[str]) -> None:
        """Note what this GPU said at opening that it can never say."""
        self._unsupported = frozenset(unsupported)

    def note_xid(self, xid: int) -> None:
        """Count one XID error."""
        self._xid_count += 1
        self._last_xid = xid
        self._new_xids.append(xid)

    def sample(self, line: Line) -> GpuSample:
        """Return what one line says."""
        code = line.get("code", plan.SUCCESS)
        if code != plan.SUCCESS:
            condition = Condition.LOST if code in plan.LOST_CODES else Condition.UNAVAILABLE
            return self.failed(condition, plan.code_text(code), started_ns=line["s"], finished_ns=line["e"])
        self._since_ns.clear()
        values: dict[str, float] = {}
        codes: dict[str, int] = {}
        for tier, columns in (("fast", plan.FAST_COLUMNS), ("slow", plan.SLOW_COLUMNS)):
            if tier in line:
                numbers, missing = line[tier]
                values.update((name, value) for name, value in zip(columns, numbers, strict=True) if value is not None)
                codes.update(missing)
        processes = line.get("processes")
        if isinstance(processes, int):
            codes[plan.PROCESS_COUNT] = processes
            processes = None
        if processes is not None:
            values[plan.PROCESS_COUNT] = len(processes)
        return GpuSample(
            uuid=self._uuid,
            condition=Condition.OK,
            started_boottime_ns=line["s"],
            finished_boottime_ns=line["e"],
            values=values,
            unsupported=self._unsupported | unsupported_of(codes),
            failures={name: plan.code_text(code) for name, code in codes.items() if code not in plan.UNSUPPORTED_CODES},
            processes=None
            if processes is None
            else tuple(GpuProcess(pid=pid, memory_used_bytes=used) for pid, used in processes),
        )

    def with_xids(self, sample: GpuSample, *, are_heard: bool) -> GpuSample:
        """Return the sample with the XID errors that the driver told by the end of its round."""
        new, self._new_xids = tuple(self._new_xids), []
        if not are_heard:
            return replace(sample, unsupported=sample.unsupported | frozenset(plan.XID_FIELDS), new_xids=new)
        counted = {"xid": float(self._last_xid), "xid_count": float(self._xid_count)}
        values = {**sample.values, **counted} if sample.condition is Condition.OK else sample.values
        return replace(sample, values=values, new_xids=new)

    def failed(
        self,
        condition: Condition,
        reason: str,
        *,
        since_boottime_ns: int | None = None,
        started_ns: int | None = None,
        finished_ns: int | None = None,
    ) -> GpuSample:
        """Return a sample that holds no readings, only what is wrong and since when."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if condition not in self._since_ns:
            self._since_ns.clear()
            self._since_ns[condition] = now_ns if since_boottime_ns is None else since_boottime_ns
        return GpuSample(
            uuid=self._uuid,
            condition=condition,
            started_boottime_ns=now_ns if started_ns is None else started_ns,
            finished_boottime_ns=now_ns if finished_ns is None else finished_ns,
            reason=reason,
            since_boottime_ns=self._since_ns[condition],
            unsupported=self._unsupported,
        )


def identity(line: Line, *, index: int) -> GpuIdentity:
    """Return a GPU as the child described it."""
    memory = line["memory_total_bytes"]
    return GpuIdentity(
        uuid=line["uuid"] or f"unknown-gpu-{index}",
        index=index,
        model=line["model"],
        bus_id=line["bus_id"],
        serial_number=line["serial_number"],
        vbios=line["vbios"],
        default_limit_w=line["default_limit_w"],
        min_limit_w=line["min_limit_w"],
        max_limit_w=line["max_limit_w"],
        memory_total_bytes=None if memory is None else round(memory),
        is_mig_enabled=line["is_mig_enabled"],
        unsupported_fields=unsupported_of(line["codes"]),
    )


def unknown_gpu(index: int) -> GpuIdentity:
    """Return what is known of a GPU that could not even be opened: that it is there."""
    return GpuIdentity(
        uuid=f"unknown-gpu-{index}",
        index=index,
        model=None,
        bus_id=None,
        serial_number=None,
        vbios=None,
        default_limit_w=None,
        min_limit_w=None,
        max_limit_w=None,
        memory_total_bytes=None,
        is_mig_enabled=None,
    )


def unsupported_of(codes: Mapping[str, int]) -> frozenset[str]:
    """Return the fields whose code says "never", as against "not now"."""
    return frozenset(name for name, code in codes.items() if code in plan.UNSUPPORTED_CODES)
