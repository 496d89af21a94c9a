"""Telemetry in: fold at once, store in groups, acknowledge after the commit.

Decides when a batch is stored and when it may be acknowledged. Refuses to know: the wire and the disk. Invariants: an
acknowledgement follows its durable commit; protection sees a batch before the disk does; memory is bounded by credit, whatever
agents send and however slow the disk is.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

from swingbus.clock import Clock
from swingbus.faults import OverBudget, SwingbusError, TimedOut
from swingbus.logs import get_logger
from swingbus.names import AgentName, DeviceName
from swingbus_controller.app.recorder import Recorder
from swingbus_controller.app.sums import Columns, columns_of, quiet_numbers, read_bank, restarted_rows, uptimes
from swingbus_controller.domain.fleet.fleet import BankReading, Fleet, Liveness, Newest
from swingbus_controller.domain.fleet.frames import AgentInventory, BatchFrame, DeviceEvent
from swingbus_controller.domain.fleet.intervals import BankPoint, MeterPoint
from swingbus_controller.domain.fleet.sequences import MAX_RANGES, MAX_SEQUENCE, SequenceSet
from swingbus_controller.ports.control import FrameSink
from swingbus_controller.ports.telemetry_store import BatchRecord, TelemetryStore

MAX_PENDING_BYTES = 256_000_000
COMMIT_TIMEOUT_S = 60.0
RETRY_S = 1.0
TICK_S = 1.0
PRUNE_EVERY_S = 15.0
PRUNE_ROWS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """How telemetry is stored; see `settings.ControllerSettings`."""

    credit: int
    commit_interval_s: float
    keep_s: float
    keep_bytes: int
    max_agents: int


class IngestMetrics(Protocol):
    """What ingest counts."""

    def batches_taken(self, batch_count: int, sample_count: int, field_count: int) -> None: ...

    def batch_rejected(self) -> None: ...

    def commit_done(self, batch_count: int, seconds: float) -> None: ...

    def commit_failed(self) -> None: ...


@dataclass(eq=False, slots=True)
class TelemetrySession:
    """One telemetry stream of one agent."""

    agent: str
    instance_uid: str
    spool_uid: str
    spool_id: int
    stored: SequenceSet
    newest: Newest
    inventory: AgentInventory
    inventory_id: int
    columns: dict[str, Columns]
    in_flight: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)
    last_uptimes: dict[str, Any] = field(default_factory=dict)
    unix_offset_s: float | None = None
    boot_id: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # there is something to acknowledge
    room: asyncio.Event = field(default_factory=asyncio.Event)  # credit came back
    replaced: asyncio.Event = field(default_factory=asyncio.Event)  # a newer stream of the same agent took over

    def take_rejected(self) -> list[tuple[int, str]]:
        """Return the refusals that were not told yet, and forget them."""
        refused, self.rejected = self.rejected, []
        return refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What an agent says first on its telemetry stream."""

    agent: str
    instance_uid: str
    spool_uid: str
    oldest_sequence: int
    newest_sequence: int
    inventory: AgentInventory
    inventory_payload: bytes
    certificate_expire_unix_s: float | None


class Ingest:
    """Owns the fleet's telemetry. `run` commits; everything else is called from streams in the same event loop."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        store: TelemetryStore,
        recorder: Recorder,
        clock: Clock,
        settings: IngestSettings,
        metrics: IngestMetrics,
        writer: Executor,
        sink: FrameSink | None = None,
    ) -> None:
        """Take the parts; `writer` must have one thread, which is then the only one that writes to the store."""
        self._fleet = fleet
        self._store = store
        self._recorder = recorder
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._writer = writer
        self._sink = sink
        self._log = get_logger()
        self._sessions: dict[str, TelemetrySession] = {}
        self._pending: list[tuple[TelemetrySession, BatchRecord]] = []
        self._pending_bytes = 0
        self._taken_batches = self._taken_samples = self._taken_fields = 0
        self._has_pending = asyncio.Event()
        self._liveness: dict[str, Liveness] = {}
        self._stored: dict[int, SequenceSet] = {}
        self._newest: dict[str, Newest] = {}

    @property
    def credit(self) -> int:
        """Return how many batches of a stream may be unacknowledged."""
        return self._settings.credit

    async def open_session(self, hello: Hello) -> TelemetrySession:
        """Start a stream; a stream that the agent still has is replaced.

        Raises:
            OverBudget: too many agents. Unreachable: the store refuses.
        """
        if hello.agent not in self._sessions and len(self._sessions) >= self._settings.max_agents:
            raise OverBudget(
                f"{len(self._sessions)} agents have a session, max_agents is {self._settings.max_agents}; raise it in [controller].",
                reason="TOO_MANY_AGENTS",
            )
        spool = await self._in_writer(self._store.open_spool, hello.agent, hello.spool_uid)
        # One set per spool, shared by its streams: a replaced stream's last batches may still be on their way to the disk.
        stored = self._stored.setdefault(spool.spool_id, spool.stored)
        if hello.newest_sequence < stored.newest():
            # Telemetry goes on: protection needs it. Numbers that are taken already are refused one by one.
            self._recorder.note(
                "spool_went_back",
                subject=self._agent_name(hello.agent),
                source=f"spool/{hello.agent}",
                message=f"spool {hello.spool_uid} of agent {hello.agent} gave out {hello.newest_sequence} numbers, but "
                f"{stored.newest()} is stored: it was restored from an older copy; remove the agent's spool, it starts a new one",
                facts={"stored": str(stored.newest()), "offered": str(hello.newest_sequence)},
            )
        await self._close_lost(hello, spool.spool_id, stored)
        inventory_id = await self._in_writer(self._store.keep_inventory, spool.spool_id, hello.inventory_payload)
        old = self._sessions.get(hello.agent)
        if old is not None:
            old.replaced.set()
            self._recorder.note(
                "agent_session_replaced",
                subject=self._agent_name(hello.agent),
                source=f"session/{hello.agent}",
                message=f"agent {hello.agent} opened a second telemetry stream; if this repeats, two hosts share its certificate",
                facts={"old_instance": old.instance_uid, "new_instance": hello.instance_uid},
            )
        view = self._fleet.agent(hello.agent)
        if view.inventory is None or view.instance_uid != hello.instance_uid:
            self._recorder.note(
                "agent_connected",
                subject=self._agent_name(hello.agent),
                source=f"session/{hello.agent}",
                message=f"agent {hello.agent} {hello.inventory.version} on {hello.inventory.hostname}",
                facts={"instance": hello.instance_uid, "spool": hello.spool_uid, "version": hello.inventory.version},
            )
        session = TelemetrySession(
            agent=hello.agent,
            instance_uid=hello.instance_uid,
            spool_uid=hello.spool_uid,
            spool_id=spool.spool_id,
            stored=stored,
            newest=self._newest.get(hello.agent, Newest())
            if hello.newest_sequence >= stored.newest()
            else Newest(sequence=hello.newest_sequence),
            inventory=hello.inventory,
            inventory_id=inventory_id,
            columns={bank.bank: columns_of(bank) for bank in hello.inventory.banks},
        )
        session.room.set()
        self._sessions[hello.agent] = session
        view.instance_uid = hello.instance_uid
        view.spool_uid = hello.spool_uid
        view.heard_s = self._clock.boottime_s()
        view.refusal = ""
        view.certificate_expire_unix_s = hello.certificate_expire_unix_s
        view.sample_count = spool.sample_count
        view.acked_sequence = stored.cumulative()
        self._take_inventory(hello.inventory)
        return session

    async def _close_lost(self, hello: Hello, spool_id: int, stored: SequenceSet) -> None:
        """Close the numbers that an agent gave out and has no more: they cannot come, and each would be a gap for ever."""
        last = min(
            hello.oldest_sequence - 1 if hello.oldest_sequence else MAX_SEQUENCE, hello.newest_sequence, MAX_SEQUENCE
        )
        if last < 1 or stored.covers(1, last):
            return
        if self._pending:
            await self._commit()  # what came on the stream before is not lost
        lost_count = sum(end - begin + 1 for begin, end in stored.holes(1, last))
        if not lost_count:
            return
        self._recorder.note(
            "batches_lost",
            subject=self._agent_name(hello.agent),
            source=f"spool/{hello.agent}",
            message=f"{lost_count} batches of agent {hello.agent} up to number {last} never came and it does not have them any more: "
            "dropped for room or age, refused, or merged by an agent that does not say what it merges",
            facts={"lost_count": str(lost_count), "spool": hello.spool_uid, "up_to": str(last)},
        )
        # On the record first: told twice after a crash in between, never not at all.
        self._recorder.flush()
        await self._in_writer(self._store.close_numbers, spool_id, last)
        stored.add_range(1, last)

    def close_session(self, session: TelemetrySession) -> None:
        """End a stream; what it sent is still committed."""
        if self._sessions.get(session.agent) is session:
            del self._sessions[session.agent]

    async def change_inventory(self, session: TelemetrySession, inventory: AgentInventory, payload: bytes) -> None:
        """Take a new inventory in the middle of a stream; batches after it follow its order."""
        session.inventory_id = await self._in_writer(self._store.keep_inventory, session.spool_id, payload)
        session.inventory = inventory
        session.columns = {bank.bank: columns_of(bank) for bank in inventory.banks}
        session.last_uptimes.clear()
        self._take_inventory(inventory)
        self._recorder.note(
            "inventory_changed",
            subject=self._agent_name(session.agent),
            source=f"session/{session.agent}",
            message=f"agent {session.agent} has {sum(len(b.devices) for b in inventory.banks)} devices in {len(inventory.banks)} banks",
        )

    def _take_inventory(self, inventory: AgentInventory) -> None:
        self._fleet.take_inventory(inventory)
        for bank in inventory.banks:
            if self._fleet.site.bank(inventory.agent, bank.bank) is None:
                self._recorder.note(
                    "bank_unmanaged",
                    subject=self._agent_name(inventory.agent),
                    source=f"unmanaged/{inventory.agent}/{bank.bank}",
                    message=f"bank {bank.bank} of agent {inventory.agent} is not in the site file: its watts count as uncontrolled; "
                    "add it as [[bank]] to manage it",
                    facts={"bank": bank.bank},
                )
        for meter in inventory.meters:
            feeder = self._fleet.meter_feeder(inventory.agent, meter.meter)
            if feeder != meter.feeder:
                self._recorder.note(
                    "meter_disputed",
                    subject=self._agent_name(inventory.agent),
                    source=f"meter/{inventory.agent}/{meter.meter}",
                    message=f"agent {inventory.agent} says meter {meter.meter} measures {meter.feeder or 'nothing'}, the site file "
                    f"says {feeder or 'that this agent does not read it'}; the site file counts",
                    facts={"meter": meter.meter, "agent_says": meter.feeder, "site_says": feeder},
                )
        if self._sink is not None:
            self._sink.take_inventory(inventory, self._clock.boottime_s())

    def has_room(self, session: TelemetrySession) -> bool:
        """Tell whether the stream may bring one more batch: within its credit, and memory within its bound."""
        return session.in_flight < self._settings.credit and self._pending_bytes <= MAX_PENDING_BYTES

    async def wait_room(self, session: TelemetrySession) -> None:
        """Return when the stream may bring one more batch."""
        while not self.has_room(session):
            session.room.clear()
            await session.room.wait()

    def accept(self, session: TelemetrySession, batch: BatchFrame, payload: bytes) -> None:
        """Fold a batch and put it up for the next commit. Never blocks.

        Raises:
            OverBudget: the spool has too many gaps for one more. Nothing is refused for ever, so the agent keeps the batch; its next
            hello closes the gaps below what it still has.
        """
        if len(session.stored) >= MAX_RANGES and not session.stored.touches(batch.first_sequence, batch.sequence):
            raise OverBudget(
                f"{MAX_RANGES} gaps are in the numbers stored of spool {session.spool_uid}; connect again. If this repeats, "
                "the agent is too old to say what it merged, or its spool is broken: update it, or remove its spool.",
                reason="TOO_MANY_GAPS",
                metadata={"agent": session.agent, "spool": session.spool_uid},
            )
        now_s = self._clock.boottime_s()
        now_unix_s = self._clock.now().timestamp()
        with quiet_numbers():
            readings: dict[str, BankReading] = {
                frame.bank: read_bank(frame, session.columns[frame.bank]) for frame in batch.banks
            }
            if batch.is_live:
                self._look_for_restarts(session, batch)
        if batch.is_live:
            session.newest = self._newest[session.agent] = Newest(
                sequence=batch.sequence,
                boot_id=batch.boot_id,
                sample_boottime_s=batch.sample_boottime_s,
                sample_unix_s=batch.sample_unix_s,
            )
            session.unix_offset_s = now_unix_s - batch.sample_boottime_s
            session.boot_id = batch.boot_id
        # The controller's wall clock dates what shares a boot with live batches; older boots keep the agent's own.
        if session.unix_offset_s is not None and batch.boot_id == session.boot_id:
            offset_s = session.unix_offset_s
        else:
            offset_s = batch.sample_unix_s - batch.sample_boottime_s
        weights = self._fleet.take_batch(batch, readings, now_s=now_s, unix_offset_s=offset_s)
        if self._sink is not None:
            self._sink.take_batch(batch, now_s)
        for event in batch.events:
            self._note_event(session, batch, event)
        sample_count = sum(len(frame.conditions) for frame in batch.banks)
        at_unix_s = batch.sample_boottime_s + offset_s
        record = BatchRecord(
            spool_id=session.spool_id,
            sequence=batch.sequence,
            first_sequence=batch.first_sequence,
            inventory_id=session.inventory_id,
            boot_id=batch.boot_id,
            sample_boottime_ns=round(batch.sample_boottime_s * 1e9),
            sample_unix_s=batch.sample_unix_s,
            received_unix_s=now_unix_s,
            sample_count=sample_count,
            payload=payload,
            meter_points=tuple(
                [
                    MeterPoint(
                        meter=sample.meter,
                        end_unix_s=sample.window_end_boottime_s + offset_s,
                        weight_s=weight_s,
                        power_w=sample.power_w,
                        energy_j=sample.energy_j,
                    )
                    for sample, weight_s in zip(batch.meters, weights, strict=True)
                    if weight_s > 0.0 and sample.feeder
                ]
            ),
            bank_points=tuple(
                [
                    BankPoint(agent=batch.agent, bank=bank, at_unix_s=at_unix_s, power_w=reading.power_w)
                    for bank, reading in readings.items()
                    if reading.power_w is not None
                ]
            ),
        )
        field_count = sum(len(f.values) + len(f.counters) + 2 * len(f.conditions) for f in batch.banks)
        # Told to the metrics once per commit: a counter's lock costs more than the sums above.
        self._taken_batches += 1
        self._taken_samples += sample_count
        self._taken_fields += field_count + 5 * len(batch.meters) + len(batch.host_values)
        session.in_flight += 1
        self._pending_bytes += len(payload)
        self._pending.append((session, record))
        self._has_pending.set()

    def reject(self, session: TelemetrySession, sequence: int, reason: str) -> None:
        """Refuse a batch for ever; the agent is told with the next acknowledgement, the stream goes on."""
        self._metrics.batch_rejected()
        # More refusals than credit cannot be on the way; a flood of them must not grow memory.
        if len(session.rejected) < 4 * self._settings.credit:
            session.rejected.append((sequence, reason))
        session.changed.set()
        self._recorder.note(
            "batch_rejected",
            subject=self._agent_name(session.agent),
            source=f"rejected/{session.agent}",
            message=f"batch {sequence} of agent {session.agent} was refused: {reason}",
            facts={"sequence": str(sequence), "spool": session.spool_uid},
        )

    async def run(self) -> None:
        """Commit, prune and watch for silence until cancelled. A fenced journal ends it with WrongState."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._commit_for_ever())
            tasks.create_task(self._prune_for_ever())
            tasks.create_task(self._watch_silence())

    async def flush(self) -> None:
        """Commit what is pending now (at a graceful stop)."""
        while self._pending and await self._commit():
            pass

    async def _commit_for_ever(self) -> None:
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            started_s = self._clock.monotonic_s()
            if not await self._commit():
                self._has_pending.set()
                await self._clock.sleep(RETRY_S)
                continue
            # At most one commit per interval: what comes meanwhile shares the next fsync.
            await self._clock.sleep(self._settings.commit_interval_s - (self._clock.monotonic_s() - started_s))

    async def _commit(self) -> bool:
        """Store what is pending; return False where the disk refused and it must be tried again."""
        group = self._pending
        started_s = self._clock.monotonic_s()
        try:
            self._recorder.flush()
            if not group:
                return True
            self._pending = []
            outcome = await self._in_writer(self._store.write, [record for _, record in group])
        except SwingbusError as error:
            if error.reason in ("FENCED", "NO_EPOCH"):
                raise
            self._pending = group + self._pending if self._pending is not group else group
            self._metrics.commit_failed()
            self._log.error("telemetry_commit_failed", reason=error.reason, message=str(error), batch_count=len(group))
            return False
        conflicts = set(outcome.conflicts)
        now_unix_s = self._clock.now().timestamp()
        for session, record in group:
            session.in_flight -= 1
            self._pending_bytes -= len(record.payload)
            if (record.spool_id, record.sequence) in conflicts:
                self.reject(
                    session,
                    record.sequence,
                    f"number {record.sequence} is stored with another batch: the spool went back; remove it",
                )
                continue
            if not session.stored.covers(record.first_sequence, record.sequence):
                session.stored.add_range(record.first_sequence, record.sequence)
                self._note_stored(session, record, now_unix_s)
            session.changed.set()
        for session in self._sessions.values():
            session.room.set()
        self._metrics.batches_taken(self._taken_batches, self._taken_samples, self._taken_fields)
        self._taken_batches = self._taken_samples = self._taken_fields = 0
        self._metrics.commit_done(len(group), self._clock.monotonic_s() - started_s)
        return True

    def _note_stored(self, session: TelemetrySession, record: BatchRecord, now_unix_s: float) -> None:
        view = self._fleet.agent(session.agent)
        if view.spool_uid == session.spool_uid:
            view.stored_unix_s = now_unix_s
            view.acked_sequence = session.stored.cumulative()
            view.sample_count += record.sample_count

    async def _prune_for_ever(self) -> None:
        while True:
            await self._clock.sleep(PRUNE_EVERY_S)
            before_unix_s = self._clock.now().timestamp() - self._settings.keep_s
            try:
                gone = await self._in_writer(self._prune, before_unix_s)
            except SwingbusError as error:
                self._log.error("telemetry_prune_failed", reason=error.reason, message=str(error))
                continue
            if gone:
                self._log.info("telemetry_pruned", batch_count=gone)

    def _prune(self, before_unix_s: float) -> int:
        return self._store.prune(before_unix_s=before_unix_s, max_bytes=self._settings.keep_bytes, limit=PRUNE_ROWS)

    async def _watch_silence(self) -> None:
        now_s = self._clock.boottime_s()
        self._liveness.update({name: self._fleet.liveness(view, now_s) for name, view in self._fleet.agents.items()})
        while True:
            await self._clock.sleep(TICK_S)
            now_s = self._clock.boottime_s()
            for name, view in tuple(self._fleet.agents.items()):
                liveness = self._fleet.liveness(view, now_s)
                before = self._liveness.get(name)
                self._liveness[name] = liveness
                if before is None or before is liveness:
                    continue
                went_dark = liveness is Liveness.DARK
                self._recorder.note(
                    "agent_went_dark" if went_dark else f"agent_became_{liveness.value}",
                    subject=self._agent_name(name),
                    source=f"liveness/{name}",
                    message=f"agent {name} has not been heard for three periods; its machines may well run on"
                    if went_dark
                    else f"agent {name} is {liveness.value}",
                )
            self._has_pending.set()  # so that notes without batches are appended too

    def _look_for_restarts(self, session: TelemetrySession, batch: BatchFrame) -> None:
        for frame in batch.banks:
            columns = session.columns[frame.bank]
            if columns.uptime is None:
                continue
            now = uptimes(frame, columns)
            rows = restarted_rows(session.last_uptimes.get(frame.bank), now)
            session.last_uptimes[frame.bank] = now
            if rows:
                devices = next(b for b in session.inventory.banks if b.bank == frame.bank).devices
                names = [devices[row].device for row in rows]
                shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                self._recorder.note(
                    "devices_restarted",
                    subject=f"{self._agent_name(session.agent)}/banks/{frame.bank}",
                    source=f"restarts/{session.agent}/{frame.bank}",
                    message=f"{len(names)} devices of bank {frame.bank} restarted: {shown}",
                    facts={"device_count": str(len(names)), "devices": ",".join(names[:20])},
                )

    def _note_event(self, session: TelemetrySession, batch: BatchFrame, event: DeviceEvent) -> None:
        bank = next((b for b in session.inventory.banks if b.bank == event.bank), None)
        is_known = bank is not None and any(d.device == event.device for d in bank.devices)
        subject = self._agent_name(session.agent)
        if is_known:
            subject = str(DeviceName(self._fleet.site.name, session.agent, event.bank, event.device))
        elif bank is not None:
            subject = f"{subject}/banks/{event.bank}"
        facts = {"agent": session.agent, "sequence": str(batch.sequence), "event_unix_s": f"{event.event_unix_s:.3f}"}
        accusation = self._fleet.accuse(session.agent, event.bank, event.device, event.kind) if is_known else None
        if accusation is not None:
            facts["accusation"] = accusation
        # An accusation has an allowance of its own, so that chatter cannot hide it.
        source = f"accusation/{subject}" if accusation is not None else f"events/{session.agent}/{event.kind}"
        self._recorder.note(
            event.kind, subject=subject, source=source, author=session.agent, message=event.message, facts=facts
        )

    def _agent_name(self, agent: str) -> str:
        return str(AgentName(self._fleet.site.name, agent))

    async def _in_writer(self, call: Any, *arguments: Any) -> Any:
        """Run a blocking call of the store in its one thread."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                return await loop.run_in_executor(self._writer, call, *arguments)
        except TimeoutError:
            raise TimedOut(
                f"the disk has not answered for {COMMIT_TIMEOUT_S:.0f} s; check it.", reason="STORE_TIMED_OUT"
            ) from None
