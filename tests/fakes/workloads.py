"""Workloads in memory: a `WorkloadDriver` whose programs do what the test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from swingbus.faults import NotFound, WrongState
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.workload import WorkloadPhase, WorkloadStatus


@dataclass(slots=True, kw_only=True)
class FakeProgram:
    """What the programs of one name will do from now on."""

    mode: Mode = Mode.INFERENCE
    starts: bool = True
    becomes_ready: bool = True  # at the next look
    obeys_term: bool = True  # False: only SIGKILL, after the grace, ends it


class FakeWorkloads:
    """The fake; `now_s` moves only when the test moves it."""

    def __init__(self, units: Sequence[str], programs: Mapping[str, FakeProgram]) -> None:
        self.programs = dict(programs)
        self.now_s = 1000.0
        self.history: list[tuple[str, str, str]] = []  # (verb, unit, workload)
        self._statuses = {
            unit: WorkloadStatus(unit=unit, phase=WorkloadPhase.IDLE, has_process=False, since_boottime_s=self.now_s)
            for unit in units
        }
        self._kill_at_s: dict[str, float] = {}
        self._next_pid = 100

    async def start(self, unit: str, workload: str) -> None:
        """Start a program by name."""
        status = self._status(unit)
        program = self.programs.get(workload)
        if program is None:
            raise NotFound(f"no workload {workload!r}", reason="NO_SUCH_WORKLOAD")
        if status.has_process:
            if status.workload == workload and unit not in self._kill_at_s:
                return
            raise WrongState(f"{unit} is held by {status.workload}", reason="UNIT_IS_HELD")
        self.history.append(("start", unit, workload))
        if not program.starts:
            self._set(unit, WorkloadPhase.FAILED, workload=workload, has_process=False, reason="cannot be started")
            return
        self._next_pid += 1
        self._set(unit, WorkloadPhase.STARTING, workload=workload, pids=(self._next_pid,))

    async def stop(self, unit: str, *, grace_s: float | None = None) -> None:
        """Tell it to end."""
        status = self._status(unit)
        if not status.has_process:
            self._set(unit, WorkloadPhase.IDLE, workload=None, has_process=False)
            return
        self.history.append(("stop", unit, status.workload or ""))
        kill_at_s = self.now_s + (30.0 if grace_s is None else grace_s)
        self._kill_at_s[unit] = min(kill_at_s, self._kill_at_s.get(unit, kill_at_s))
        self._set(unit, WorkloadPhase.STOPPING, workload=status.workload, reason="told to end", pids=status.pids)

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """Move every unit on."""
        for unit, status in list(self._statuses.items()):
            program = self.programs.get(status.workload or "")
            if program is None:
                continue
            if unit in self._kill_at_s:
                if program.obeys_term or self.now_s >= self._kill_at_s[unit]:
                    del self._kill_at_s[unit]
                    self._set(unit, WorkloadPhase.IDLE, workload=None, has_process=False)
            elif status.phase is WorkloadPhase.STARTING and program.becomes_ready:
                self._set(unit, WorkloadPhase.READY, workload=status.workload, pids=status.pids)
        return dict(self._statuses)

    def crash(self, unit: str, exit_code: int = -9) -> None:
        """Let what runs on the unit end by itself."""
        status = self._status(unit)
        self._kill_at_s.pop(unit, None)
        self._set(
            unit,
            WorkloadPhase.FAILED,
            workload=status.workload,
            has_process=False,
            reason=f"ended by itself with {exit_code}",
            exit_code=exit_code,
        )

    def _status(self, unit: str) -> WorkloadStatus:
        if unit not in self._statuses:
            raise NotFound(f"no unit {unit!r}", reason="NO_SUCH_UNIT")
        return self._statuses[unit]

    def _set(
        self,
        unit: str,
        phase: WorkloadPhase,
        *,
        workload: str | None,
        has_process: bool = True,
        reason: str = "",
        exit_code: int | None = None,
        pids: tuple[int, ...] = (),
    ) -> None:
        before = self._statuses[unit]
        program = self.programs.get(workload or "")
        self._statuses[unit] = replace(
            before,
            phase=phase,
            has_process=has_process,
            since_boottime_s=before.since_boottime_s if before.phase is phase else self.now_s,
            workload=workload,
            mode=None if program is None else program.mode,
            reason=reason,
            exit_code=exit_code,
            pids=pids if has_process else (),
        )
