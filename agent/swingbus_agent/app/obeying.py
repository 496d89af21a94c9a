"""The control session: orders down, reports and renewals up.

Decides when to report and renew; what an order means is the steward's. Invariants: one writer and one reader per stream; a bad order is
refused in the next report and the session goes on; losing the session commands nothing.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from swingbus.clock import Clock
from swingbus_agent.app.sessions import Sessions
from swingbus_agent.app.steward import Steward
from swingbus_agent.domain.orders import AdoptOrder, AgentOrder, AgentReport, RenewalReply
from swingbus_agent.ports.link import ControllerLink, ControlSession, MalformedOrder

_FIRST_RENEWAL_S = 5.0  # until the first order or renewal says how long grants last
_DEBOUNCE_S = 0.05


class Obedience:
    """Control sessions, for ever."""

    def __init__(
        self,
        link: ControllerLink,
        steward: Steward,
        *,
        clock: Clock,
        random_: random.Random,
        backoff_max_s: float,
        report_period_s: float = 1.0,
    ) -> None:
        self._link = link
        self._steward = steward
        self._clock = clock
        self._sessions = Sessions("control", clock=clock, random_=random_, backoff_max_s=backoff_max_s)
        self._report_period_s = report_period_s
        self._ttl_s = _FIRST_RENEWAL_S * 3
        self._renew_at_s = 0.0
        self.changed = asyncio.Event()  # set where a report may have changed
        self.ordered = asyncio.Event()  # set where there may be something new to do

    @property
    def is_connected(self) -> bool:
        """Return whether the controller has answered in the session that is open."""
        return self._sessions.is_connected

    async def run(self) -> None:
        """Open sessions, for ever."""
        await self._sessions.run(self._session)

    async def _session(self) -> None:
        # The report first: a lapse that it tells of is then older than the ticket, so the answer may lift it.
        report = self._steward.report()
        async with self._link.open_control(report, self._steward.issue_ticket()) as session:
            self._renew_at_s = self._clock.boottime_s() + self._ttl_s / 3
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(session))
                group.create_task(self._read(session))

    async def _read(self, session: ControlSession) -> None:
        while True:
            message = await session.receive()
            if not self.is_connected:
                self._sessions.opened()
            match message:
                case AdoptOrder():
                    await self._steward.take_adopt(message)
                    self._renew_at_s = 0.0  # date the grants to come by a fresh renewal
                case AgentOrder():
                    self._ttl_s = message.ttl_s or self._ttl_s
                    await self._steward.take_order(message)
                case RenewalReply():
                    self._ttl_s = message.ttl_s or self._ttl_s
                    await self._steward.take_renewal(message)
                case MalformedOrder():
                    self._steward.refuse(message.reason)
            self.changed.set()
            self.ordered.set()

    async def _write(self, session: ControlSession) -> None:
        told: AgentReport | None = None
        told_s = float("-inf")
        while True:
            report = self._steward.report()
            now_s = self._clock.boottime_s()
            # A grant is over, or what is held is known at last: what the controller decides on hearing it must be dated
            # after it, so the fresh ticket goes first.
            if now_s >= self._renew_at_s or (told is not None and _standing(told) != _standing(report)):
                self._renew_at_s = now_s + self._ttl_s / 3
                sent_ns = self._clock.boottime_ns()
                await session.send_renewal(sent_ns, self._steward.issue_ticket())
            if told is None or now_s - told_s >= self._report_period_s or _is_news(told, report):
                await session.send_report(report)
                told, told_s = report, now_s
            self.changed.clear()
            next_s = min(told_s + self._report_period_s, self._renew_at_s) - self._clock.boottime_s()
            try:
                async with asyncio.timeout(max(0.01, next_s)):
                    await self.changed.wait()
                await self._clock.sleep(_DEBOUNCE_S)
            except TimeoutError:
                continue


def _standing(report: AgentReport) -> tuple[tuple[str, bool, bool, bool], ...]:
    return tuple((bank.bank, bank.is_lapsed, bank.is_lost, bank.reported_w is None) for bank in report.banks)


def _is_news(before: AgentReport, now: AgentReport) -> bool:
    return replace(before, sequence=0, boottime_s=0.0) != replace(now, sequence=0, boottime_s=0.0)
