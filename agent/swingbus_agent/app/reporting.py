"""Carry the spool to the controller: one session after another, one writer and one reader each.

Decides the order of sending with `domain.spool_policy`; knows neither gRPC nor SQLite. Invariants: what is not acknowledged is sent again
in the next session; nothing is deleted but what the controller says it holds or refuses for ever; at most `credit` batches are
on their way; a batch has no deadline of its own.
"""

from __future__ import annotations

import asyncio
import random

from swingbus.clock import Clock
from swingbus_agent.app.rounds import Rounds
from swingbus_agent.app.sessions import Sessions
from swingbus_agent.domain.spool_policy import Acknowledged, Sending, begin_sending, is_rolled_back, sent, settled
from swingbus_agent.ports.link import ControllerLink, TelemetryHello, TelemetrySession
from swingbus_agent.ports.spool import Spool, SpooledBatch

_READ_COUNT = 32
_HIGHEST = 1 << 62


class Reporter:
    """Telemetry sessions, for ever."""

    def __init__(
        self,
        link: ControllerLink,
        spool: Spool,
        rounds: Rounds,
        *,
        clock: Clock,
        random_: random.Random,
        backfill_per_s: float,
        backoff_max_s: float,
    ) -> None:
        self._link = link
        self._spool = spool
        self._rounds = rounds
        self._clock = clock
        self._sessions = Sessions("telemetry", clock=clock, random_=random_, backoff_max_s=backoff_max_s)
        self._backfill_per_s = backfill_per_s
        self._sending: Sending | None = None
        self._freed = asyncio.Event()
        self.acknowledged_sequence = 0

    @property
    def is_connected(self) -> bool:
        """Return whether the controller has welcomed the session that is open."""
        return self._sessions.is_connected

    async def run(self) -> None:
        """Open sessions, for ever."""
        await self._sessions.run(self._session, self._ended)

    def _ended(self) -> None:
        self._rounds.busy = ()

    async def _session(self) -> None:
        state = await self._spool.state()
        self._rounds.inventory_changed.clear()
        hello = TelemetryHello(
            spool_uid=state.spool_uid,
            oldest_sequence=state.oldest_sequence,
            newest_sequence=state.newest_sequence,
            inventory=self._rounds.inventory,
        )
        async with self._link.open_telemetry(hello) as session:
            welcome = session.welcome
            if is_rolled_back(newest_sequence=state.newest_sequence, acknowledged=welcome.acknowledged):
                self._rounds.tell(
                    "spool_rolled_back",
                    "the controller holds more of this spool than the disk does: the file is an old copy; it was set aside and a "
                    "new spool begins",
                )
                await self._spool.restart()
                return
            await self._spool.acknowledge(welcome.acknowledged)
            self._sending = begin_sending(credit=welcome.credit, newest_sequence=state.newest_sequence)
            self.acknowledged_sequence = welcome.acknowledged.up_to
            self._sessions.opened(backlog_count=state.batch_count, acked_sequence=welcome.acknowledged.up_to)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(session))
                group.create_task(self._read(session))

    async def _read(self, session: TelemetrySession) -> None:
        while True:
            answer = await session.receive()
            refused = [sequence for sequence, _ in answer.rejected]
            on_way = () if self._sending is None else self._sending.in_flight
            # What was told before was deleted then: only ranges that hold something on its way are new.
            ranges = tuple(pair for pair in answer.acknowledged.ranges if any(pair[0] <= s <= pair[1] for s in on_way))
            await self._spool.acknowledge(Acknowledged(up_to=answer.acknowledged.up_to, ranges=ranges), refused)
            for sequence, reason in answer.rejected:
                self._rounds.tell("batch_refused", f"the controller refused batch {sequence} for ever: {reason}")
            if self._sending is not None:
                self._sending = settled(self._sending, answer.acknowledged, refused)
                self._rounds.busy = self._sending.in_flight
            self.acknowledged_sequence = max(self.acknowledged_sequence, answer.acknowledged.up_to)
            self._freed.set()

    async def _write(self, session: TelemetrySession) -> None:
        """Send live batches at once, and the backlog as credit and its rate allow."""
        next_backlog_s = self._clock.monotonic_s()
        is_backlog_left = is_live_left = True
        while True:
            is_live_left |= self._rounds.stored.is_set()
            self._rounds.stored.clear()
            self._freed.clear()
            if self._rounds.inventory_changed.is_set():
                self._rounds.inventory_changed.clear()
                await session.send_inventory(self._rounds.inventory)
            sending = self._sending
            if sending is None:
                return
            if sending.room and is_live_left:
                count = min(_READ_COUNT, sending.room)
                live = await self._spool.read(sending.live_cursor, _HIGHEST, count)
                for batch in live:
                    await self._send(session, batch)
                is_live_left = len(live) == count
                if is_live_left:
                    continue
                sending = self._sending or sending
            now_s = self._clock.monotonic_s()
            if is_backlog_left and sending.room and now_s >= next_backlog_s:
                count = max(1, min(_READ_COUNT, sending.room, int(self._backfill_per_s / 5)))
                backlog = await self._spool.read(sending.cursor, sending.live_from, count)
                is_backlog_left = bool(backlog)
                for batch in backlog:
                    await self._send(session, batch)
                next_backlog_s = now_s + len(backlog) / self._backfill_per_s
                continue
            wait_s = max(0.0, next_backlog_s - now_s) if is_backlog_left and sending.room else None
            await self._wait_news(wait_s)

    async def _send(self, session: TelemetrySession, batch: SpooledBatch) -> None:
        sending = self._sending
        if sending is None:
            return
        self._sending = sent(sending, batch.sequence, batch.first_sequence)
        self._rounds.busy = self._sending.in_flight
        await session.send_batch(batch.payload)

    async def _wait_news(self, wait_s: float | None) -> None:
        """Wait for a stored round, an acknowledgement or the time."""
        try:
            async with asyncio.timeout(wait_s), asyncio.TaskGroup() as group:
                waits = [
                    group.create_task(self._rounds.stored.wait()),
                    group.create_task(self._freed.wait()),
                    group.create_task(self._rounds.inventory_changed.wait()),
                ]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
        except TimeoutError:
            return
