"""The lease under slow, lost and half-done calls and clocks that disagree: never two writers, and always one again."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus.faults import InvalidInput, Unreachable
from swingbus_controller.adapters.kubernetes.answers import Answer, ByteStream
from swingbus_controller.adapters.kubernetes.leases import LeaseHolding
from swingbus_controller.adapters.kubernetes.resources import ApiCall
from swingbus_controller.domain.cluster.lease_term import LeaseTerms
from tests.fakes.api_server.store import Place, Refusal, Store
from tests.fakes.virtual_time import LoopClock, in_virtual_time

PLACE: Place = ("leases", "swingbus", "controller")


class SlowApi:
    """A lease store whose calls take a while, get lost on the way there or on the way back."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.trouble = 1.0
        self.is_cut = False

    async def call(self, call: ApiCall, *, timeout_s: float | None = None) -> Answer:
        await self._travel()
        try:
            if call.verb == "get":
                found = self.store.get(PLACE)
            elif call.verb == "create":
                found = self.store.create(PLACE, call.body)
            else:
                found = self.store.update(PLACE, call.body)
        except Refusal as refusal:
            return Answer(code=refusal.body["code"], body=json.dumps(refusal.body).encode())
        await self._travel()
        return Answer(code=200, body=json.dumps(found).encode())

    async def _travel(self) -> None:
        dice = self.chance.random()
        if self.is_cut or dice < 0.1 * self.trouble:
            raise Unreachable("lost")
        await asyncio.sleep(self.chance.uniform(0, 5.0) if dice < 0.3 * self.trouble else self.chance.uniform(0, 0.1))

    @asynccontextmanager
    async def stream(self, call: ApiCall) -> AsyncIterator[ByteStream]:
        raise NotImplementedError(call.what)
        yield  # type: ignore[unreachable] # makes it a generator


CUTS = st.lists(st.tuples(st.integers(0, 2), st.floats(1, 40)), max_size=6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), offsets_s=st.tuples(*[st.floats(-1e5, 1e5)] * 3), cuts=CUTS)
def test_there_are_never_two_writers_and_soon_one_again(
    seed: int, offsets_s: tuple[float, ...], cuts: list[tuple[int, float]]
) -> None:
    """Whoever is cut off stops by itself before another begins; when the network is well, one holds."""

    async def main() -> None:
        store = Store()
        apis = [SlowApi(store, seed + number) for number in range(3)]
        holdings = [
            LeaseHolding(api, LoopClock(offset_s), namespace="swingbus", name="controller", identity=f"c-{number}")
            for number, (api, offset_s) in enumerate(zip(apis, offsets_s, strict=True))
        ]
        running = [asyncio.create_task(holding.run()) for holding in holdings]

        async def watch_for(span_s: float) -> None:
            end_s = asyncio.get_running_loop().time() + span_s
            while asyncio.get_running_loop().time() < end_s:
                assert sum(holding.left_s() > 0 for holding in holdings) <= 1
                await asyncio.sleep(0.5)

        await watch_for(30)
        for number, span_s in cuts:
            apis[number].is_cut = True
            await watch_for(span_s)
            apis[number].is_cut = False
        for api in apis:
            api.trouble = 0.0
        await watch_for(60)
        holders = [holding for holding in holdings if holding.left_s() > 0]
        assert len(holders) == 1
        assert {holding.holder for holding in holders} == {store.get(PLACE)["spec"]["holderIdentity"]}
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        # Released, it is free at once; nobody has to wait for it to run out.
        await holders[0].release()
        assert holders[0].left_s() <= 0
        other = next(holding for holding in holdings if holding is not holders[0])
        await other.try_once()
        assert other.left_s() > 0

    in_virtual_time(main)


def test_terms_that_would_let_two_write_are_refused() -> None:
    """Renewing must end before taking over begins."""
    with pytest.raises(InvalidInput, match="renew shorter than duration"):
        LeaseTerms(duration_s=10, renew_within_s=10)


def test_a_permit_ends_by_itself() -> None:
    """Without a word from anybody, by the clock alone; counted from before the renewal was sent."""

    async def main() -> None:
        api = SlowApi(Store(), 1)
        api.trouble = 0.0
        holding = LeaseHolding(api, LoopClock(), namespace="swingbus", name="controller", identity="c-0")
        assert holding.left_s() <= 0
        await holding.try_once()
        assert 9.7 < holding.left_s() < 10.0
        await asyncio.sleep(10.0)
        assert holding.left_s() <= 0

    in_virtual_time(main)
