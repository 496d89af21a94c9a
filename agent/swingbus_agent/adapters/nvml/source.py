"""A host's GPUs through the NVML child: implements the ports `GpuSource` and `GpuActuator`.

Decides what to ask the child and when, whose call hangs (the first GPU without an answer), and when a child is replaced. Knows
nothing of modes, grants or workloads. Invariants: every call comes back within its deadlines; one GPU that hangs or is lost
never takes the others' readings away; a value is fresh from this round or absent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swingbus.faults import Forbidden, InvalidInput, NotFound, TimedOut, Unreachable
from swingbus_agent.adapters.nvml import plan, wire
from swingbus_agent.adapters.nvml.link import ChildLink, Gone, Line, TooLong
from swingbus_agent.adapters.nvml.quarantine import Quarantine
from swingbus_agent.domain.answers import Hung, Unavailable, Unsupported
from swingbus_agent.domain.gpu import GpuIdentity, GpuInventory, GpuRound, GpuSample
from swingbus_agent.domain.readings import Condition

_MOST_RESTARTS_PER_CALL = 3
_LONGEST_BACKOFF_S = 60.0
_NO_DRIVER_RECHECK_S = 300.0
_MOST_STUCK_CHILDREN = 3

Failure = Unsupported | Unavailable | Hung


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlTimings:
    """How long to wait for the driver and how often to ask what, in seconds."""

    call_deadline_s: float = 2.0  # for one GPU's readings
    open_deadline_s: float = 20.0  # for one step of finding GPUs: without persistence each takes seconds
    slow_period_s: float = 10.0  # health fields
    process_period_s: float = 2.0  # process lists: some drivers take milliseconds for one
    first_probe_s: float = 10.0  # from a hang to the first try again; doubles up to 10 minutes
    lost_reopen_s: float = 60.0  # a lost GPU that was reset is seen again only by a driver session that is new
    first_backoff_s: float = 1.0  # after a child that died; doubles up to a minute


DEFAULT_TIMINGS = NvmlTimings()


class NvmlGpus:
    """Reads all GPUs of this host and, if `writes` is set, asks for power limits."""

    def __init__(
        self,
        *,
        writes: bool = False,
        timings: NvmlTimings = DEFAULT_TIMINGS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is started before the first call; `environment` is the child's (default: the agent's own)."""
        self._writes = writes
        self._timings = timings
        self._environment = environment
        self._lock = asyncio.Lock()
        self._child: ChildLink | None = None
        self._stuck: list[ChildLink] = []  # killed, but the kernel cannot end them yet
        self._must_open = True
        self._events = True
        self._failure: Failure | None = None
        self._backoff_s = timings.first_backoff_s
        self._retry_at_s = 0.0
        self._reopen_lost_at_s = 0.0
        self._slow_at_s = 0.0
        self._processes_at_s = 0.0
        self._inventory: GpuInventory | None = None
        self._positions: dict[str, int] = {}
        self._trackers: dict[str, wire.GpuTracker] = {}
        self._quarantine = Quarantine(
            first_wait_s=timings.first_probe_s, deadline_s=timings.open_deadline_s, environment=environment
        )

    @property
    def child_pid(self) -> int | None:
        """The child's process number while there is one: `check` and the memory figures want it."""
        return None if self._child is None else self._child.pid

    async def inventory(self) -> GpuInventory | Unsupported | Unavailable | Hung:
        """Return which GPUs there are."""
        async with self._lock:
            failure = await self._ensure_open([])
            if failure is not None:
                return failure
            return self._known()

    async def sample(self) -> GpuRound | Unsupported | Unavailable | Hung:
        """Read every GPU once."""
        async with self._lock:
            notes: list[str] = []
            for uuid in await self._quarantine.review(_now_s()):
                notes.append(f"{uuid} answers again")
                self._must_open = True
            failure = await self._ensure_open(notes)
            if failure is not None:
                return failure
            samples = await self._round(notes)
            inventory = self._known()
            return GpuRound(
                inventory_revision=inventory.revision,
                gpus=tuple(samples.get(gpu.uuid) or self._absent(gpu.uuid) for gpu in inventory.gpus),
                notes=tuple(notes),
            )

    async def set_power_limit(self, uuid: str, power_w: float) -> None:
        """Ask the driver for a limit (see the port for what it raises)."""
        if not self._writes:
            raise Forbidden(
                "this agent's file does not let it change GPUs: set writes in its configuration to allow it"
            )
        async with self._lock:
            failure = await self._ensure_open([])
            if failure is not None:
                raise Unreachable(f"GPU {uuid} cannot be asked now: {failure.reason}", reason="GPU_UNREACHABLE")
            gpu = next((each for each in self._known().gpus if each.uuid == uuid), None)
            if gpu is None:
                raise NotFound(f"no GPU {uuid} on this host: `swingbus-agent check` lists them", reason="NO_SUCH_GPU")
            refuse_outside(gpu, power_w)
            position = self._positions.get(uuid)
            if position is None or self._child is None:
                state = "hangs" if uuid in self._quarantine else "is lost"
                raise Unreachable(f"GPU {uuid} {state}: its limit cannot be set", reason="GPU_UNREACHABLE")
            request: Line = {"op": "limit", "gpu": position, "limit_mw": round(power_w * 1000)}
            try:
                done = await self._child.ask(
                    request, deadline_s=self._timings.call_deadline_s, on_line=lambda line: None
                )
            except TooLong as error:
                await self._isolate(uuid, [])
                raise TimedOut(f"GPU {uuid} did not answer: the limit may or may not be set") from error
            except Gone as error:
                await self._drop_child(str(error))
                raise TimedOut(f"the driver's process ended at GPU {uuid}: the limit may or may not be set") from error
            raise_for_code(done.get("code", plan.SUCCESS), uuid, power_w)

    async def aclose(self) -> None:
        """End the child and any probe."""
        async with self._lock:
            if self._child is not None:
                await self._child.end()
                self._child = None
            await self._quarantine.aclose()

    def _known(self) -> GpuInventory:
        if self._inventory is None:
            raise RuntimeError("the inventory is there whenever opening succeeded")
        return self._inventory

    async def _round(self, notes: list[str]) -> dict[str, GpuSample]:
        now_s = _now_s()
        slow, processes = now_s >= self._slow_at_s, now_s >= self._processes_at_s
        samples: dict[str, GpuSample] = {}
        restarts = 0
        while self._child is not None:
            names = {
                position: uuid
                for uuid, position in self._positions.items()
                if uuid not in samples and uuid not in self._quarantine
            }
            if not names:
                break

            def take(line: Line, names: Mapping[int, str] = names) -> None:
                uuid = names[line["at"]]
                samples[uuid] = self._trackers[uuid].sample(line)

            request: Line = {"op": "sample", "gpus": sorted(names), "slow": slow, "processes": processes}
            try:
                done = await self._child.ask(request, deadline_s=self._timings.call_deadline_s, on_line=take)
            except TooLong:
                silent = [uuid for _, uuid in sorted(names.items()) if uuid not in samples]
                restarts += 1
                if silent:
                    await self._isolate(silent[0], notes)
                else:
                    self._events = False  # all were read, so the event queue hangs: do without it
                    await self._end_child()
                    notes.append("the driver's event queue hangs: XID errors are no longer seen")
                if restarts > _MOST_RESTARTS_PER_CALL or await self._ensure_open(notes) is not None:
                    break
            except Gone as error:
                await self._drop_child(str(error))
                notes.append(str(error))
                break
            else:
                self._take_xids(done.get("xids"), samples)
                break
        if slow:
            self._slow_at_s = now_s + self._timings.slow_period_s
        if processes:
            self._processes_at_s = now_s + self._timings.process_period_s
        if not self._known().gpus:  # a GPU that comes later is seen by a new session only
            self._plan_reopen(now_s)
        if self._child is not None and any(sample.condition is Condition.LOST for sample in samples.values()):
            self._plan_reopen(now_s)
        return samples

    def _take_xids(self, xids: Sequence[Sequence[int]] | None, samples: dict[str, GpuSample]) -> None:
        names = {position: uuid for uuid, position in self._positions.items()}
        for position, xid in xids or ():
            if position in names:
                self._trackers[names[position]].note_xid(xid)
        for uuid, sample in samples.items():
            samples[uuid] = self._trackers[uuid].with_xids(sample, are_heard=xids is not None)

    def _absent(self, uuid: str) -> GpuSample:
        """Return the sample of a GPU that was not asked in this round, with the reason."""
        tracker = self._trackers[uuid]
        if uuid in self._quarantine:
            since = self._quarantine.since_boottime_ns(uuid)
            return tracker.failed(Condition.HUNG, "a driver call has not come back", since_boottime_ns=since)
        if uuid not in self._positions:
            self._plan_reopen(_now_s())
            return tracker.failed(Condition.LOST, plan.code_text(plan.GPU_IS_LOST))
        return tracker.failed(Condition.UNAVAILABLE, "the driver's process was restarted in this round")

    def _plan_reopen(self, now_s: float) -> None:
        if self._reopen_lost_at_s == 0.0:
            self._reopen_lost_at_s = now_s + self._timings.lost_reopen_s
        elif now_s >= self._reopen_lost_at_s:
            self._reopen_lost_at_s = 0.0
            self._must_open = True

    async def _isolate(self, uuid: str, notes: list[str]) -> None:
        """Keep the GPU whose call hangs apart and kill the child that is stuck in it."""
        now_s = _now_s()
        gpu = next(each for each in self._known().gpus if each.uuid == uuid)
        since = _boottime_ns() - round(self._timings.call_deadline_s * 1e9)
        self._quarantine.add(uuid, probe_name=gpu.bus_id or str(gpu.index), since_boottime_ns=since, now_s=now_s)
        notes.append(f"{uuid} hangs: its call was given up after {self._timings.call_deadline_s:g} s")
        await self._end_child()

    async def _end_child(self) -> None:
        """Kill the child; a new one may be started at once."""
        if self._child is not None:
            if not await self._child.end():
                self._stuck.append(self._child)
            self._child = None
        self._must_open = True

    async def _drop_child(self, reason: str) -> None:
        """Kill the child and wait before the next one."""
        await self._end_child()
        self._fail(Unavailable(reason=reason), self._backoff_s)
        self._backoff_s = min(self._backoff_s * 2, _LONGEST_BACKOFF_S)

    def _hang(self, reason: str, *, since_s_ago: float) -> Failure:
        """Call the whole driver hung, since the first time that it was."""
        if isinstance(self._failure, Hung):
            since = self._failure.since_boottime_ns
        else:
            since = _boottime_ns() - round(since_s_ago * 1e9)
        wait_s = max(self._timings.first_probe_s, self._backoff_s)
        self._backoff_s = min(self._backoff_s * 2, _LONGEST_BACKOFF_S)
        return self._fail(Hung(since_boottime_ns=since, reason=reason), wait_s)

    def _fail(self, failure: Failure, wait_s: float) -> Failure:
        self._failure = failure
        self._retry_at_s = _now_s() + wait_s
        return failure

    async def _ensure_open(self, notes: list[str]) -> Failure | None:
        """Have a child that has opened every GPU that can be opened, or say why not."""
        for _ in range(_MOST_RESTARTS_PER_CALL + 1):
            if self._child is not None and not self._must_open:
                return None
            if self._failure is not None and _now_s() < self._retry_at_s:
                return self._failure
            if self._child is None:
                self._stuck = [child for child in self._stuck if not child.has_ended]
                if len(self._stuck) >= _MOST_STUCK_CHILDREN:
                    return self._hang(
                        "several driver calls cannot even be killed: this host needs a reboot", since_s_ago=0.0
                    )
                try:
                    self._child = await ChildLink.start(writes=self._writes, environment=self._environment)
                except OSError as error:
                    await self._drop_child(f"the NVML child could not be started: {error}")
                    return self._failure
            outcome = await self._open(self._child, notes)
            if outcome is None:
                self._must_open = False
                self._failure = None
                self._backoff_s = self._timings.first_backoff_s
                return None
            if outcome is not _AGAIN:
                return outcome
        return self._fail(Unavailable(reason="several GPUs hang while they are opened"), self._backoff_s)

    async def _open(self, child: ChildLink, notes: list[str]) -> Failure | None:
        """Open once; `_AGAIN` says that a GPU which hung was set aside and another try is worth it."""
        by_bus_id = self._bus_ids()
        skip = self._skipped(by_bus_id is None)
        opening = wire.Opening()
        request: Line = {"op": "open", "bus_ids": by_bus_id, "skip": skip, "events": self._events}
        try:
            done = await child.ask(request, deadline_s=self._timings.open_deadline_s, on_line=opening.take)
        except TooLong:
            since = _boottime_ns() - round(self._timings.open_deadline_s * 1e9)
            await self._end_child()
            if opening.count is None:
                return self._hang("the driver hangs while it is initialised", since_s_ago=self._timings.open_deadline_s)
            if len(opening.gpus) >= opening.count:
                self._events = False
                notes.append("the driver's event queue hangs: XID errors are no longer seen")
                return _AGAIN
            self._merge(opening, is_by_index=by_bus_id is None)
            uuid = self._uuid_at(len(opening.gpus), by_bus_id)
            name = by_bus_id[len(opening.gpus)] if by_bus_id is not None else str(len(opening.gpus))
            self._quarantine.add(uuid, probe_name=name, since_boottime_ns=since, now_s=_now_s())
            notes.append(f"{uuid} hangs while it is opened")
            return _AGAIN
        except Gone as error:
            await self._drop_child(str(error))
            return self._failure
        code = done.get("code", plan.SUCCESS)
        if code != plan.SUCCESS:
            await self._end_child()
            if code in (plan.NO_BINDING, plan.LIBRARY_NOT_FOUND):
                return self._fail(Unsupported(reason=plan.code_text(code)), _NO_DRIVER_RECHECK_S)
            return self._fail(Unavailable(reason=plan.code_text(code)), _LONGEST_BACKOFF_S)
        self._merge(opening, is_by_index=by_bus_id is None)
        return None

    def _bus_ids(self) -> list[str] | None:
        """Return what to open by bus id: numbers shift when a GPU falls off the bus. None: look for all."""
        if self._inventory is None or not self._inventory.gpus:
            return None
        found = [gpu.bus_id for gpu in self._inventory.gpus]
        return [bus_id for bus_id in found if bus_id is not None] if None not in found else None

    def _skipped(self, is_by_index: bool) -> list[int]:
        gpus = () if self._inventory is None else self._inventory.gpus
        return [gpu.index if is_by_index else row for row, gpu in enumerate(gpus) if gpu.uuid in self._quarantine]

    def _uuid_at(self, position: int, bus_ids: Sequence[str] | None) -> str:
        gpus = self._known().gpus
        if bus_ids is not None:
            return gpus[position].uuid
        return next(gpu.uuid for gpu in gpus if gpu.index == position)

    def _merge(self, opening: wire.Opening, *, is_by_index: bool) -> None:
        """Take over what was found: known GPUs keep their rows, new ones come after them."""
        old = () if self._inventory is None else self._inventory.gpus
        rows: dict[str, GpuIdentity] = {gpu.uuid: gpu for gpu in old}
        self._positions = {}
        for position, line in enumerate(opening.gpus):
            if line is None or "code" in line:
                if is_by_index and not any(gpu.index == position for gpu in rows.values()):
                    unknown = wire.unknown_gpu(position)
                    rows[unknown.uuid] = unknown
                continue
            row = next((gpu for gpu in old if gpu.index == position), None) if is_by_index else old[position]
            gpu = wire.identity(line, index=position if is_by_index or row is None else row.index)
            if is_by_index:
                rows.pop(wire.unknown_gpu(position).uuid, None)
            rows[gpu.uuid] = gpu
            self._positions[gpu.uuid] = position
            tracker = self._trackers.setdefault(gpu.uuid, wire.GpuTracker(gpu.uuid))
            tracker.learn(gpu.unsupported_fields)
        if opening.count is not None and len(opening.gpus) < opening.count and is_by_index:
            hung_at = len(opening.gpus)
            if not any(gpu.index == hung_at for gpu in rows.values()):
                unknown = wire.unknown_gpu(hung_at)
                rows[unknown.uuid] = unknown
        for uuid in rows:
            self._trackers.setdefault(uuid, wire.GpuTracker(uuid))
        gpus = tuple(rows.values())
        if self._inventory is None or gpus != self._inventory.gpus:
            revision = 1 if self._inventory is None else self._inventory.revision + 1
            self._inventory = GpuInventory(revision=revision, driver_version=opening.driver_version, gpus=gpus)


_AGAIN = Unavailable(reason="another try is worth it")


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def refuse_outside(gpu: GpuIdentity, power_w: float) -> None:
    """Raise InvalidInput for a limit that the GPU does not take."""
    least_w, most_w = gpu.min_limit_w, gpu.max_limit_w
    if (least_w is not None and power_w < least_w) or (most_w is not None and power_w > most_w) or power_w <= 0:
        raise InvalidInput(
            f"GPU {gpu.uuid} takes limits from {least_w} to {most_w} W, not {power_w:g} W",
            reason="LIMIT_OUT_OF_RANGE",
            metadata={"gpu": gpu.uuid, "power_w": f"{power_w:g}", "min_w": str(least_w), "max_w": str(most_w)},
        )


def raise_for_code(code: int, uuid: str, power_w: float) -> None:
    """Raise what the driver's code means for a limit that was asked for; nothing for success."""
    if code == plan.SUCCESS:
        return
    text = f"GPU {uuid} refused a limit of {power_w:g} W: {plan.code_text(code)}"
    if code in (plan.NO_PERMISSION, plan.WRITES_ARE_OFF):
        raise Forbidden(text, reason="LIMIT_NOT_PERMITTED")
    if code == plan.INVALID_ARGUMENT:
        raise InvalidInput(text, reason="LIMIT_OUT_OF_RANGE")
    raise Unreachable(text, reason="GPU_UNREACHABLE")
