"""What a permit does to a write, and the rules of the lease that gives it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from swingbus.clock import SystemClock
from swingbus.faults import WrongState
from swingbus_controller.adapters.kubernetes.answers import Answer, ByteStream
from swingbus_controller.adapters.kubernetes.pod_writes import Accepted, BudgetBlocked, PodLife, evict_pod
from swingbus_controller.adapters.kubernetes.resources import PODS, ApiCall
from swingbus_controller.adapters.kubernetes.writing import Writer
from swingbus_controller.domain.cluster.lease_term import LeaseMove, LeaseTerms, SeenLease, move, see

LIFE = PodLife(namespace="ns", name="p", uid="u")


@dataclass
class OneAnswer:
    """An API server that says one thing, and what it was asked with which time limit."""

    answer: Answer
    asked: list[tuple[ApiCall, float | None]] = field(default_factory=list)

    async def call(self, call: ApiCall, *, timeout_s: float | None = None) -> Answer:
        self.asked.append((call, timeout_s))
        return self.answer

    @asynccontextmanager
    async def stream(self, call: ApiCall) -> AsyncIterator[ByteStream]:
        raise NotImplementedError(call.what)
        yield  # type: ignore[unreachable] # makes it a generator


@dataclass
class Permit:
    """A permit of so many seconds."""

    seconds: float

    def left_s(self) -> float:
        return self.seconds


async def test_a_write_waits_no_longer_than_its_permit() -> None:
    """What is still on its way when the permit ends is given up."""
    api = OneAnswer(Answer(code=200, body=b"{}"))
    assert await evict_pod(Writer(api, Permit(3.5), SystemClock()), LIFE) == Accepted()
    assert [limit_s for _, limit_s in api.asked] == [3.5]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("-inf")])
async def test_without_a_permit_nothing_leaves(seconds: float) -> None:
    """Also at the very moment at which it ends; the refusal says whose lease to look at."""
    api = OneAnswer(Answer(code=200, body=b"{}"))
    with pytest.raises(WrongState, match="does not hold the lease") as seen:
        await Writer(api, Permit(seconds), SystemClock()).send(
            ApiCall(verb="delete", resource=PODS, namespace="ns", name="p")
        )
    assert seen.value.reason == "NO_WRITE_PERMIT"
    assert api.asked == []


async def test_a_budget_that_is_still_counted_is_blocked_with_its_wait() -> None:
    """Right after a change the server names the budget and a wait, but no counts: unknown, not zero."""
    body = (
        b'{"kind":"Status","code":429,"reason":"TooManyRequests","details":{"retryAfterSeconds":10,"causes":'
        b'[{"reason":"DisruptionBudget","message":"The disruption budget web is still being processed by the server."}]}}'
    )
    api = OneAnswer(Answer(code=429, body=body))
    writer = Writer(api, Permit(9.0), SystemClock())
    blocked = await evict_pod(writer, LIFE)
    assert isinstance(blocked, BudgetBlocked)
    assert (blocked.budget, blocked.needed_count, blocked.healthy_count, blocked.retry_after_s) == (
        "web",
        None,
        None,
        10.0,
    )
    await evict_pod(writer, LIFE)
    assert len(api.asked) == 2, "that wait is this pod's, not the server's"


def test_a_lease_is_over_only_when_we_saw_it_unchanged_for_its_time() -> None:
    """Whatever its times say: clocks of two machines are never compared."""
    terms = LeaseTerms()
    seen = see(None, holder="other", mark="1", duration_s=15, now_s=100.0)
    assert see(seen, holder="other", mark="1", duration_s=15, now_s=114.0) == seen
    assert move(seen, me="we", terms=terms, now_s=115.0) is LeaseMove.WAIT
    assert move(seen, me="we", terms=terms, now_s=115.1) is LeaseMove.TAKE
    renewed = see(seen, holder="other", mark="2", duration_s=15, now_s=114.0)
    assert move(renewed, me="we", terms=terms, now_s=128.0) is LeaseMove.WAIT
    assert move(renewed, me="other", terms=terms, now_s=128.0) is LeaseMove.RENEW


def test_a_short_or_endless_duration_of_another_is_not_believed() -> None:
    """A holder that tells 1 s may renew every 2; one that tells a year must not lock everybody out."""
    terms = LeaseTerms()
    short = SeenLease(holder="other", mark="1", duration_s=1, since_s=0.0)
    assert move(short, me="we", terms=terms, now_s=10.0) is LeaseMove.WAIT
    endless = see(None, holder="other", mark="1", duration_s=10**9, now_s=0.0)
    assert move(endless, me="we", terms=terms, now_s=3601.0) is LeaseMove.TAKE
    released = see(None, holder="", mark="3", duration_s=1, now_s=0.0)
    assert move(released, me="we", terms=terms, now_s=0.0) is LeaseMove.TAKE
