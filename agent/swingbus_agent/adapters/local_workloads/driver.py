"""Runs the workloads of the agent's own file as processes: implements the port `WorkloadDriver`.

Decides what a unit's workload is doing from the kernel and from its probe. Knows nothing of power or modes. Invariants: never
two workloads on a unit (S2); nothing is started that the file does not name (S7); a process is signalled only while its number
and start time are ours; what runs outlives this object and the agent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from swingbus.faults import NotFound, WrongState
from swingbus_agent.adapters.local_workloads import probe, processes
from swingbus_agent.adapters.local_workloads.record import Run, RunRecord
from swingbus_agent.domain.workload import GpuUnit, WorkloadPhase, WorkloadSpec, WorkloadStatus

TOKEN_VARIABLE = "SWINGBUS_RUN"
_OUTPUT_LINES = 5
_MOST_OUTPUT_BYTES = 16 << 20
_MOST_PROBES_AT_ONCE = 8


def boottime_s() -> float:
    """Return CLOCK_BOOTTIME in seconds: it goes on through suspend and agent restarts."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LocalWorkloads:
    """The units of one host and what runs on them."""

    def __init__(
        self,
        *,
        units: Sequence[GpuUnit],
        specs: Sequence[WorkloadSpec],
        folder: Path,
        probe_deadline_s: float = 2.0,
        ready_probe_period_s: float = 5.0,
        now_s: Callable[[], float] = boottime_s,
    ) -> None:
        """Find again what an earlier agent started.

        Args:
            units: where workloads may run.
            specs: what may run.
            folder: keeps `workloads.json` and the programs' output; made if it is not there.
            probe_deadline_s: for one answer of a probe.
            ready_probe_period_s: between probes of a workload that was ready; before that every `observe` asks.
            now_s: CLOCK_BOOTTIME; tests may hand in their own.

        Raises:
            InvalidInput: the record of an earlier agent cannot be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._units = {unit.name: unit for unit in units}
        self._specs = {spec.name: spec for spec in specs}
        self._folder = folder
        self._probe_deadline_s = probe_deadline_s
        self._ready_probe_period_s = ready_probe_period_s
        self._now_s = now_s
        self._record = RunRecord(folder / "workloads.json")
        self._boot_id = processes.boot_id()
        self._exit_codes: dict[str, int] = {}
        self._probed_at_s: dict[str, float] = {}
        self._probes = asyncio.Semaphore(_MOST_PROBES_AT_ONCE)
        now = now_s()
        self._statuses = {name: _idle(name, now) for name in self._units}
        self._runs = self._record.load(self._boot_id)
        self._adopt(now)

    async def start(self, unit: str, workload: str) -> None:
        """Start a workload (see the port)."""
        place, spec = self._unit(unit), self._specs.get(workload)
        if spec is None:
            known = ", ".join(sorted(self._specs)) or "none"
            raise NotFound(
                f"no workload {workload!r} in this agent's file (it has: {known}); add it there as [[workload]]",
                reason="NO_SUCH_WORKLOAD",
                metadata={"unit": unit, "workload": workload},
            )
        run = self._runs.get(unit)
        if run is not None:
            if run.workload == workload and run.kill_at_boottime_s is None:
                return
            raise WrongState(
                f"unit {unit} is still held by {run.workload}: stop it and wait until it is gone",
                reason="UNIT_IS_HELD",
                metadata={"unit": unit, "workload": workload, "held_by": run.workload},
            )
        self._start(place, spec)

    async def stop(self, unit: str, *, grace_s: float | None = None) -> None:
        """End what runs on a unit (see the port)."""
        self._unit(unit)
        now = self._now_s()
        run = self._runs.get(unit)
        if run is None:
            if self._statuses[unit].phase is not WorkloadPhase.IDLE:
                self._statuses[unit] = _idle(unit, now)
            return
        spec = self._specs.get(run.workload)
        own_s = 30.0 if spec is None else spec.stop_timeout_s
        self._tell_to_end(run, now + (own_s if grace_s is None else grace_s), failure="")

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """Look at every unit (see the port)."""
        async with asyncio.TaskGroup() as group:
            for run in list(self._runs.values()):
                group.create_task(self._look(run))
        return dict(self._statuses)

    def output_of(self, unit: str) -> Path:
        """Return the file with what the unit's workloads wrote."""
        return self._folder / f"{unit.replace('/', '-')}.log"

    def _unit(self, name: str) -> GpuUnit:
        unit = self._units.get(name)
        if unit is None:
            known = ", ".join(sorted(self._units)) or "none"
            raise NotFound(
                f"no unit {name!r} on this host (it has: {known})", reason="NO_SUCH_UNIT", metadata={"unit": name}
            )
        return unit

    def _start(self, unit: GpuUnit, spec: WorkloadSpec) -> None:
        now = self._now_s()
        run = Run(unit=unit.name, workload=spec.name, token=uuids.uuid4().hex, started_boottime_s=now)
        self._keep(run)  # on disk first: a crash from here on finds the process by its token
        output = self.output_of(unit.name)
        output.unlink(missing_ok=True)  # one run's words only; a file that somebody still reads stays theirs
        try:
            pid, ticks = processes.spawn(
                fill(spec.command, unit, spec),
                environment=self._environment(unit, spec, run.token),
                folder=spec.folder,
                output=output,
            )
        except OSError as error:
            self._forget(unit.name)
            self._show(run, WorkloadPhase.FAILED, reason=f"{spec.command[0]} cannot be started: {error}", pids=())
            return
        self._keep(replace(run, pid=pid, start_ticks=ticks))
        self._show(run, WorkloadPhase.STARTING, reason="started", pids=(pid,))

    def _environment(self, unit: GpuUnit, spec: WorkloadSpec, token: str) -> dict[str, str]:
        filled = {key: fill((value,), unit, spec)[0] for key, value in spec.environment.items()}
        gpus = ",".join(unit.gpu_uuids) or ",".join(map(str, unit.gpu_indices))
        return {
            **os.environ,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": gpus,
            **filled,
            TOKEN_VARIABLE: token,
        }

    def _adopt(self, now: float) -> None:
        """Take over what an earlier agent started and what still lives of it."""
        for run in list(self._runs.values()):
            if run.pid is None:  # that agent died between writing the line and noting the number
                found = processes.find_by_token(TOKEN_VARIABLE, run.token)
                if found is None:
                    self._forget(run.unit)
                    continue
                run = replace(run, pid=found[0], start_ticks=found[1])
                self._keep(run)
            if (
                run.unit not in self._units or run.workload not in self._specs
            ):  # the file has changed: end what it dropped
                self._statuses.setdefault(run.unit, _idle(run.unit, now))
                self._tell_to_end(run, now + 30.0, failure="the agent's file no longer has this unit or workload")
                continue
            self._show(run, WorkloadPhase.STARTING, reason="found again after the agent was restarted", pids=())

    async def _look(self, run: Run) -> None:
        if run.pid is None or run.start_ticks is None:
            return
        is_alive = processes.start_ticks_of(run.pid) == run.start_ticks
        if is_alive and run.kill_at_boottime_s is None:
            processes.keep_small(self.output_of(run.unit), _MOST_OUTPUT_BYTES)
            await self._look_at_living(run)
            return
        code = processes.reap(run.pid, run.start_ticks)
        if code is not None:
            self._exit_codes[run.token] = code
        members = processes.living_group(run.pid, run.start_ticks)
        now = self._now_s()
        if not members:
            self._released(run)
        elif run.kill_at_boottime_s is None:  # the leader died but left children that still hold the GPUs
            self._tell_to_end(run, now + self._specs[run.workload].stop_timeout_s, failure=self._death(run))
        elif now >= run.kill_at_boottime_s:
            processes.signal_group(run.pid, run.start_ticks, signal.SIGKILL)

    async def _look_at_living(self, run: Run) -> None:
        spec, now = self._specs[run.workload], self._now_s()
        if run.was_ready and now < self._probed_at_s.get(run.unit, 0.0) + self._ready_probe_period_s:
            return
        why_not = await self._probe(run, spec)
        current = self._runs.get(run.unit)
        if current is None or current.token != run.token or current.kill_at_boottime_s is not None:
            return  # it was stopped while the probe was out
        self._probed_at_s[run.unit] = now
        pids = () if run.pid is None else (run.pid,)
        if not why_not:
            if not run.was_ready:
                self._keep(replace(current, was_ready=True))
            self._show(run, WorkloadPhase.READY, reason="", pids=pids)
        elif run.was_ready:
            self._show(run, WorkloadPhase.UNREADY, reason=why_not, pids=pids)
        elif self._now_s() >= run.started_boottime_s + spec.start_timeout_s:
            failure = f"not ready within {spec.start_timeout_s:g} s: {why_not}"
            self._tell_to_end(run, self._now_s() + spec.stop_timeout_s, failure=failure)
        else:
            self._show(run, WorkloadPhase.STARTING, reason=why_not, pids=pids)

    async def _probe(self, run: Run, spec: WorkloadSpec) -> str:
        unit = self._units[run.unit]
        if not spec.ready_url and not spec.ready_command:
            left_s = run.started_boottime_s + spec.ready_after_s - self._now_s()
            return "" if left_s <= 0 else f"alive, ready in {left_s:.1f} s"
        async with self._probes:
            if spec.ready_url:
                return await probe.probe_url(fill((spec.ready_url,), unit, spec)[0], deadline_s=self._probe_deadline_s)
            return await probe.probe_command(
                fill(spec.ready_command, unit, spec),
                environment=self._environment(unit, spec, "probe"),
                folder=spec.folder,
                deadline_s=self._probe_deadline_s,
            )

    def _tell_to_end(self, run: Run, kill_at_s: float, *, failure: str) -> None:
        """Send SIGTERM and note when SIGKILL follows; a shorter grace replaces a longer one."""
        if run.kill_at_boottime_s is not None and kill_at_s >= run.kill_at_boottime_s:
            return
        run = replace(run, kill_at_boottime_s=kill_at_s, failure=run.failure or failure)
        self._keep(run)
        if run.pid is not None and run.start_ticks is not None:
            processes.signal_group(run.pid, run.start_ticks, signal.SIGTERM)
        phase = WorkloadPhase.FAILED if run.failure else WorkloadPhase.STOPPING
        self._show(run, phase, reason=run.failure or "told to end", pids=() if run.pid is None else (run.pid,))

    def _released(self, run: Run) -> None:
        self._forget(run.unit)
        reason, code = run.failure or self._death(run), self._exit_codes.pop(run.token, None)
        if run.kill_at_boottime_s is None or run.failure:
            self._show(run, WorkloadPhase.FAILED, reason=reason, pids=(), exit_code=code)
        elif run.unit in self._units:
            self._statuses[run.unit] = _idle(run.unit, self._now_s())
        else:
            del self._statuses[run.unit]

    def _death(self, run: Run) -> str:
        code = self._exit_codes.get(run.token)
        lines = processes.last_lines(self.output_of(run.unit), 1)
        words = f"; its last words: {lines[0]}" if lines else ""
        if code is None:
            return f"{run.workload} is gone; an earlier agent started it, so its exit code is not known{words}"
        if code < 0:
            return f"{run.workload} was killed by signal {-code}{words}"
        return f"{run.workload} ended by itself with code {code}{words}"

    def _keep(self, run: Run) -> None:
        self._runs[run.unit] = run
        self._record.save(self._runs, self._boot_id)

    def _forget(self, unit: str) -> None:
        self._runs.pop(unit, None)
        self._probed_at_s.pop(unit, None)
        self._record.save(self._runs, self._boot_id)

    def _show(
        self, run: Run, phase: WorkloadPhase, *, reason: str, pids: tuple[int, ...], exit_code: int | None = None
    ) -> None:
        before = self._statuses.get(run.unit)
        is_same = before is not None and before.phase is phase and before.workload == run.workload
        spec = self._specs.get(run.workload)
        has_failed = phase in (WorkloadPhase.FAILED, WorkloadPhase.UNREADY)
        self._statuses[run.unit] = WorkloadStatus(
            unit=run.unit,
            phase=phase,
            has_process=run.unit in self._runs,
            since_boottime_s=before.since_boottime_s if before is not None and is_same else self._now_s(),
            workload=run.workload,
            mode=None if spec is None else spec.mode,
            reason=reason,
            exit_code=exit_code,
            last_output=processes.last_lines(self.output_of(run.unit), _OUTPUT_LINES) if has_failed else (),
            pids=pids,
        )


def fill(words: Sequence[str], unit: GpuUnit, spec: WorkloadSpec) -> tuple[str, ...]:
    """Put the unit's facts in place of `{unit}`, `{gpus}`, `{gpu_uuids}` and `{port}`; other braces stay.

    >>> unit = GpuUnit(name="h100/1", number=1, gpu_indices=(4, 5), gpu_uuids=("GPU-a", "GPU-b"))
    >>> from swingbus_agent.domain.orders import Mode
    >>> fill(("--gpus={gpus}", "--port={port}", "{x}"), unit, WorkloadSpec(name="v", mode=Mode.INFERENCE, command=(), port=9000))
    ('--gpus=4,5', '--port=9001', '{x}')
    """
    facts = {
        "{unit}": str(unit.number),
        "{gpus}": ",".join(map(str, unit.gpu_indices)),
        "{gpu_uuids}": ",".join(unit.gpu_uuids),
        "{port}": str(spec.port + unit.number),
    }
    filled = []
    for word in words:
        for name, fact in facts.items():
            word = word.replace(name, fact)
        filled.append(word)
    return tuple(filled)


def _idle(unit: str, now_s: float) -> WorkloadStatus:
    return WorkloadStatus(unit=unit, phase=WorkloadPhase.IDLE, has_process=False, since_boottime_s=now_s)
