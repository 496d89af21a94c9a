"""What a real lease does with those that compete for it: one suite for the fake and for a real control plane, over HTTPS.

Here it runs on the fake; `tests/cluster/test_lease_contract.py` runs all of it on a real API server behind a proxy that makes the faults.
Time is real: permits are compared by the clock that they are counted on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from swingbus.clock import SystemClock
from swingbus.faults import WrongState
from swingbus_controller.adapters.kubernetes.answers import decode
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.adapters.kubernetes.leases import LeaseHolding
from swingbus_controller.adapters.kubernetes.own_objects import Lease
from swingbus_controller.adapters.kubernetes.resources import LEASES, MERGE_PATCH, PODS, ApiCall
from swingbus_controller.adapters.kubernetes.writing import Writer
from swingbus_controller.domain.cluster.lease_term import LeaseTerms
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.faults import CutBody, FaultPlan, Hang, Late, Refuse
from tests.fakes.api_server.server import TOKEN, FakeApiServer
from tests.fakes.api_server.store import Refusal
from tests.fakes.kube_rig import connected

CLOCK = SystemClock()
TERMS = LeaseTerms(duration_s=3.0, renew_within_s=2.0, retry_s=0.5)  # a try is given up after twice the retry
NAME = "controller"
DEADLINE_S = 20.0
_LEASE = msgspec.json.Decoder(Lease)
_ERROR = Refuse(Refusal(500, "InternalError", "etcdserver: leader changed"))
_CONFLICT = Refuse(Refusal(409, "Conflict", "the object has been modified"))


@dataclass
class LeaseRig:
    """An API server, a namespace, and a role that may get, create and update leases.

    Args:
        connect: a client of its own with that role; the faults strike it.
        admin: may all, and no fault strikes it.
        forbid, allow: take `update` from the role, give it back.
    """

    namespace: str
    faults: FaultPlan
    admin: ApiConnection
    connect: Callable[[], AbstractAsyncContextManager[ApiConnection]]
    forbid: Callable[[], Awaitable[None]]
    allow: Callable[[], Awaitable[None]]

    def holding(self, api: ApiConnection, identity: str, terms: LeaseTerms = TERMS) -> LeaseHolding:
        return LeaseHolding(api, CLOCK, namespace=self.namespace, name=NAME, identity=identity, terms=terms)

    async def lease(self) -> Lease:
        """Return the lease as it is."""
        call = ApiCall(verb="get", resource=LEASES, namespace=self.namespace, name=NAME)
        return decode(await self.admin.call(call), _LEASE, call)

    async def annotate(self, value: str) -> None:
        """Change the lease as some other program may: its revision goes on."""
        body = {"metadata": {"annotations": {"example.com/seen": value}}}
        call = ApiCall(
            verb="patch",
            resource=LEASES,
            namespace=self.namespace,
            name=NAME,
            content_type=MERGE_PATCH,
            body=body,
        )
        assert (await self.admin.call(call)).is_ok


@asynccontextmanager
async def two(rig: LeaseRig) -> AsyncIterator[tuple[LeaseHolding, LeaseHolding]]:
    """Two contenders, each with connections of its own."""
    async with rig.connect() as one, rig.connect() as other:
        yield rig.holding(one, "c-0"), rig.holding(other, "c-1")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[LeaseRig]:
    async with FakeApiServer(tmp_path, write_certificates(tmp_path)) as server:

        async def forbid() -> None:
            server.tokens[TOKEN].add(("update", "leases"))

        async def allow() -> None:
            server.tokens[TOKEN].clear()

        async with connected(server) as admin:
            yield LeaseRig("contract", server.faults, admin, lambda: connected(server), forbid, allow)


async def test_a_free_lease_is_taken_and_renewed(rig: LeaseRig) -> None:
    """The permit counts from the newest renewal; since when it is held and how often it changed hands stays."""
    async with rig.connect() as api:
        holding = rig.holding(api, "c-0")
        await holding.try_once()
        taken = await rig.lease()
        assert holding.last_trouble == ""
        assert (taken.spec.holder_identity, taken.spec.lease_transitions) == ("c-0", 0)
        assert taken.spec.lease_duration_seconds == TERMS.duration_s
        await asyncio.sleep(0.3)
        before_s = holding.left_s()
        await holding.try_once()
        renewed = await rig.lease()
        assert before_s < holding.left_s() <= TERMS.renew_within_s
        assert renewed.spec.renew_time != taken.spec.renew_time
        assert (renewed.spec.acquire_time, renewed.spec.lease_transitions) == (taken.spec.acquire_time, 0)


async def test_a_duration_is_never_told_shorter_than_it_is_held(rig: LeaseRig) -> None:
    """The lease knows whole seconds only; one that waits just as long as it is told must not come early."""
    async with rig.connect() as api:
        holding = rig.holding(api, "c-0", LeaseTerms(duration_s=2.5, renew_within_s=2.4, retry_s=0.5))
        await holding.try_once()
        assert (await rig.lease()).spec.lease_duration_seconds == 3


async def test_a_dead_holder_is_followed_when_its_time_is_over(rig: LeaseRig) -> None:
    """Not before the whole duration was seen to pass without a renewal; who comes back late finds the other."""
    async with two(rig) as (first, second):
        await first.try_once()
        began_s = CLOCK.boottime_s()
        while second.left_s() <= 0:
            await second.try_once()
            assert CLOCK.boottime_s() - began_s < DEADLINE_S
            await asyncio.sleep(0.05)
        assert CLOCK.boottime_s() - began_s >= TERMS.duration_s
        assert first.left_s() <= 0
        taken = await rig.lease()
        assert (taken.spec.holder_identity, taken.spec.lease_transitions) == ("c-1", 1)
        await first.try_once()  # with what it knew of the lease: a conflict
        await first.try_once()
        assert (first.left_s() > 0, first.holder) == (False, "c-1")


async def test_a_release_lets_the_next_one_in_at_once(rig: LeaseRig) -> None:
    """And the one that let go writes no more. The API takes a lease that nobody holds."""
    async with two(rig) as (first, second):
        await first.try_once()
        await second.try_once()
        assert (first.left_s() > 0, second.left_s() > 0, second.holder) == (True, False, "c-0")
        await first.release()
        assert first.left_s() <= 0
        await second.try_once()
        assert second.left_s() > 0
        assert (await rig.lease()).spec.holder_identity == "c-1"


async def test_a_renewal_of_an_old_revision_gives_no_permit(rig: LeaseRig) -> None:
    """Somebody changed the lease: the conflict prolongs nothing, the next try reads it and goes on."""
    async with rig.connect() as api:
        holding = rig.holding(api, "c-0")
        await holding.try_once()
        until_s = CLOCK.boottime_s() + holding.left_s()
        await rig.annotate("1")
        await asyncio.sleep(0.5)
        await holding.try_once()
        assert CLOCK.boottime_s() + holding.left_s() == pytest.approx(until_s, abs=0.2)
        await holding.try_once()
        assert CLOCK.boottime_s() + holding.left_s() > until_s + 0.3


async def test_of_two_that_ask_at_once_one_gets_it(rig: LeaseRig) -> None:
    """A lease that is not there yet, and one that both know to be free."""
    async with two(rig) as both:
        for _ in range(5):
            async with asyncio.TaskGroup() as tasks:
                for holding in both:
                    tasks.create_task(holding.try_once())
            held = [holding.left_s() > 0 for holding in both]
            assert sum(held) == 1
            assert (await rig.lease()).spec.holder_identity == f"c-{held.index(True)}"
            await both[held.index(True)].release()


async def test_a_lost_permission_ends_the_permit(rig: LeaseRig) -> None:
    """Nobody extends it, so it runs out; it is said what is missing; given back, it goes on."""
    async with rig.connect() as api:
        holding = rig.holding(api, "c-0")
        running = asyncio.create_task(holding.run())
        try:
            await holding.wait_held()
            await rig.forbid()
            await until(lambda: holding.left_s() <= 0)
            assert "grant the verb 'update' on 'leases'" in holding.last_trouble
            with pytest.raises(WrongState):
                await Writer(api, holding, CLOCK).send(
                    ApiCall(verb="delete", resource=PODS, namespace=rig.namespace, name="p")
                )
            await rig.allow()
            await until(lambda: holding.left_s() > 0)
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_a_slow_server_shortens_the_permit(rig: LeaseRig) -> None:
    """It counts from before the renewal was sent, not from when the answer came."""
    async with rig.connect() as api:
        holding = rig.holding(api, "c-0")
        await holding.try_once()
        for late in (Late(before_s=0.5), Late(after_s=0.5)):
            rig.faults.next("update", late)
            await holding.try_once()
            assert holding.last_trouble == ""
            assert 0 < holding.left_s() <= TERMS.renew_within_s - 0.5


async def test_a_renewal_that_is_told_too_late_gives_no_permit(rig: LeaseRig) -> None:
    """It was done, but nobody can say so in time: the old permit stands until its end, and the next try reads again."""
    async with rig.connect() as api:
        holding = rig.holding(api, "c-0")
        await holding.try_once()
        before = await rig.lease()
        until_s = CLOCK.boottime_s() + holding.left_s()
        rig.faults.next("update", Late(after_s=1.5))
        await holding.try_once()
        assert (await rig.lease()).revision != before.revision, "the server did it"
        assert CLOCK.boottime_s() + holding.left_s() == pytest.approx(until_s, abs=0.2)
        await holding.try_once()
        assert CLOCK.boottime_s() + holding.left_s() > until_s
        assert holding.last_trouble == ""


async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(rig: LeaseRig) -> None:
    """Nothing is asked before; the permit ends all the same, and then it goes on."""
    async with rig.connect() as api:
        holding = rig.holding(api, "c-0")
        running = asyncio.create_task(holding.run())
        try:
            await holding.wait_held()
            rig.faults.next("update", Refuse(Refusal(429, "TooManyRequests", "busy", retry_after_s=3)))
            await until(lambda: not rig.faults.coming["update"])
            refused_s = CLOCK.boottime_s()
            rig.faults.next("get", Late())  # taken by whatever is asked next
            await until(lambda: holding.left_s() <= 0)
            assert CLOCK.boottime_s() - refused_s <= TERMS.renew_within_s
            await until(lambda: not rig.faults.coming["get"])
            assert CLOCK.boottime_s() - refused_s >= 2.9
            await until(lambda: holding.left_s() > 0)
        finally:
            running.cancel()
            await asyncio.wait([running])


@pytest.mark.slow
async def test_two_that_compete_never_write_at_once(rig: LeaseRig) -> None:
    """Through deaths, hangs, storms, lost answers and releases: at no time have both a permit, and soon one has it again."""
    async with two(rig) as both:
        running = [asyncio.create_task(holding.run()) for holding in both]
        overlaps: list[tuple[float, ...]] = []
        hand_overs: list[int] = []

        async def sample() -> None:
            while True:
                left = tuple(holding.left_s() for holding in both)
                held = [number for number, seconds in enumerate(left) if seconds > 0]
                if len(held) > 1:
                    overlaps.append(left)
                if len(held) == 1 and hand_overs[-1:] != held:
                    hand_overs.append(held[0])
                await asyncio.sleep(0.002)

        async def followed(but: int | None = None) -> int:
            """Wait until somebody has it, or the other one; return who."""
            await until(lambda: any(holding.left_s() > 0 for number, holding in enumerate(both) if number != but))
            return next(number for number, holding in enumerate(both) if holding.left_s() > 0)

        sampling = asyncio.create_task(sample())
        try:
            for hangs in (4, 3):
                holder = await followed()
                running[holder].cancel()  # it dies without a word, and comes back when the other has it
                assert await followed(but=holder) != holder
                running[holder] = asyncio.create_task(both[holder].run())
                rig.faults.next("update", *[Hang()] * hangs)
                await asyncio.sleep(TERMS.duration_s)
                rig.faults.next("get", _ERROR, CutBody(), Late(before_s=0.8), Late(after_s=0.9))
                rig.faults.next("update", CutBody(), _CONFLICT, _ERROR, Late(after_s=1.5), _ERROR)
                await until(lambda: not any(rig.faults.coming.values()))
            holder = await followed()
            running[holder].cancel()
            await both[holder].release()
            await followed(but=holder)
            await until(lambda: hand_overs[-1] != holder)  # the sampler has seen it too
        finally:
            for task in (sampling, *running):
                task.cancel()
            await asyncio.wait([sampling, *running])
        assert overlaps == []
        # Each loop has waited for a change; a term that lasts a moment may slip past the sampler of a busy machine.
        assert len(hand_overs) >= 3
        assert set(hand_overs) == {0, 1}
