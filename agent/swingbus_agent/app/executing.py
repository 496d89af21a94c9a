"""Carry out what the steward plans for one bank: paced, side by side, each write told back.

Decides pace only: how many writes at once, the pause between planned ones, starts per second. Invariants: a write goes out only after
the governor let it and its record is on disk; one that is under way is never cut off by a newer order, it ends or times out; leaving
the loop sends nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from swingbus.clock import Clock
from swingbus.faults import SwingbusError
from swingbus_agent.app.obeying import Obedience
from swingbus_agent.app.rounds import Rounds
from swingbus_agent.app.steward import Steward
from swingbus_agent.domain.views import Verb, Write
from swingbus_agent.ports.bank import BankPort, Taking, WriteAnswer

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How quickly writes may follow each other."""

    tick_s: float
    batch: int
    stagger_s: float
    deadline_s: float = 30.0  # drivers have their own, shorter ones


class Executor:
    """The writes of one bank, for ever."""

    def __init__(
        self, bank: BankPort, steward: Steward, rounds: Rounds, *, clock: Clock, pace: Pace, obedience: Obedience | None
    ) -> None:
        self._bank = bank
        self._steward = steward
        self._rounds = rounds
        self._clock = clock
        self._pace = pace
        self._obedience = obedience
        self._under_way = 0
        self._last_write_s = float("-inf")
        self._next_start_s = float("-inf")
        self.wake = asyncio.Event()

    async def run(self) -> None:
        """Plan and write at every tick, reading or order, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                is_quiet = True
                try:
                    is_quiet = not await self._round(group)
                except SwingbusError as error:
                    # The record could not be stored: nothing may rise. Try again at the next tick.
                    _log.error("write_not_begun", bank=self._bank.name, reason=error.reason, message=str(error))
                self.wake.clear()
                try:
                    # With nothing to ask for, readings and orders wake it; the time alone matters less often.
                    async with asyncio.timeout(max(1.0, self._pace.tick_s) if is_quiet else self._pace.tick_s):
                        await self.wake.wait()
                except TimeoutError:
                    continue

    async def _round(self, group: asyncio.TaskGroup) -> bool:
        """Write what is planned and may go out; return whether there is anything to do or under way."""
        writes = self._steward.plan(self._bank.name)
        for write in writes:
            if self._under_way >= self._pace.batch:
                return True
            now_s = self._clock.monotonic_s()
            is_urgent = not write.is_raise and self._steward.is_emergency(self._bank.name)
            if not is_urgent and now_s - self._last_write_s < self._pace.stagger_s:
                await self._clock.sleep(self._pace.stagger_s - (now_s - self._last_write_s))
                now_s = self._clock.monotonic_s()
            starts_per_s = self._steward.starts_per_s(self._bank.name)
            is_start = write.is_raise or write.verb is Verb.START_WORKLOAD
            if is_start and starts_per_s > 0 and now_s < self._next_start_s:
                continue
            if not await self._steward.begin_write(self._bank.name, write):
                continue
            if is_start and starts_per_s > 0:
                self._next_start_s = max(now_s, self._next_start_s) + 1.0 / starts_per_s
            self._last_write_s = now_s
            self._under_way += 1
            group.create_task(self._carry_out(write))
        return bool(writes) or self._under_way > 0

    async def _carry_out(self, write: Write) -> None:
        answer = WriteAnswer(taking=Taking.NO_ANSWER, detail="cut off")
        try:
            async with asyncio.timeout(self._pace.deadline_s):
                answer = await self._bank.write(write)
        except TimeoutError:
            answer = WriteAnswer(taking=Taking.NO_ANSWER, detail=f"no answer within {self._pace.deadline_s:g} s")
        finally:
            self._under_way -= 1
            notices = self._steward.end_write(self._bank.name, write, answer)
        self._rounds.tell_all(notices, self._bank.name)
        level = _log.info if answer.taking is Taking.TAKEN else _log.warning
        level(
            "write_answered",
            bank=self._bank.name,
            device=write.device or f"unit-{write.unit}",
            verb=write.verb.value,
            point=write.target.point,
            attempt_count=write.attempt,
            answer=answer.taking.value,
            detail=answer.detail,
        )
        if self._obedience is not None:
            self._obedience.changed.set()
        self.wake.set()
