"""What a busy, failing or cut-off API server makes of our writes: one suite for the fake and for a real one behind a proxy.

Here it runs on the fake; `tests/cluster/test_throttling_contract.py` runs all of it on a real API server. A fault that is still to come
shows that nothing was asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from swingbus.clock import SystemClock
from swingbus.faults import OverBudget, SwingbusError, TimedOut, Unreachable, WrongState
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.own_objects import CapacityPool, PoolStatus
from swingbus_controller.adapters.kubernetes.pod_writes import (
    Accepted,
    Adopted,
    Created,
    Lifted,
    PodGone,
    StaleView,
    create_pod,
    delete_pod,
    evict_pod,
    lift_gate,
)
from swingbus_controller.adapters.kubernetes.resources import PODS
from swingbus_controller.adapters.kubernetes.telling import Note, StalePool, Written, tell, write_pool_status
from swingbus_controller.adapters.kubernetes.writing import Writer
from tests.contract.test_kubernetes_api import Open, Rig
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.faults import CutBody, FaultPlan, Refuse
from tests.fakes.api_server.server import FakeApiServer
from tests.fakes.api_server.store import Refusal
from tests.fakes.kube_rig import GATE, connected, pod_body

CLOCK = SystemClock()


@dataclass
class Site:
    """What is written to, as it was looked at before: everything a write needs. `api` meets the faults, `rig` does not."""

    rig: Rig
    api: ApiConnection
    faults: FaultPlan
    pod: Pod
    pool: CapacityPool


async def make_site(rig: Rig, api: ApiConnection, faults: FaultPlan) -> Site:
    return Site(rig, api, faults, await rig.make_pod("p", gates=(GATE,)), await rig.make_pool())


@dataclass(frozen=True)
class Write:
    """One of our writes: its verb, how it is sent, what it answers the first time, and when it had been done unheard."""

    verb: str
    send: Callable[[Site, Writer], Awaitable[Any]]
    first: type
    again: type


async def _delete(site: Site, writer: Writer) -> Any:
    return await delete_pod(writer, site.rig.life(site.pod), grace_s=0)


async def _lift(site: Site, writer: Writer) -> Any:
    marks = {"swingbus.io/flip": "f1"}
    return await lift_gate(writer, site.pod, gate=GATE, node_selector={"a": "b"}, annotations=marks)


async def _evict(site: Site, writer: Writer) -> Any:
    return await evict_pod(writer, site.rig.life(site.pod), grace_s=0)


async def _create(site: Site, writer: Writer) -> Any:
    body = pod_body("miner-f1", gates=(GATE,), labels={"swingbus.io/flip": "f1"})
    body["metadata"]["namespace"] = site.rig.namespace
    return await create_pod(writer, body)


async def _status(site: Site, writer: Writer) -> Any:
    return await write_pool_status(writer, site.pool, PoolStatus(observed_generation=1, epoch=3))


async def _tell(site: Site, writer: Writer) -> Any:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    note = Note(resource=PODS, about=site.pod, flip_id="f1", reason="FlipActive", action="Lift", text="700 W", at=at)
    return "told" if await tell(writer, note, instance="swingbus-0") else None


WRITES = {
    "delete": Write("delete", _delete, Accepted, PodGone),
    "lift": Write("patch", _lift, Lifted, StaleView),
    "evict": Write("create", _evict, Accepted, PodGone),
    "create": Write("create", _create, Created, Adopted),
    "status": Write("patch", _status, Written, StalePool),
    "tell": Write("create", _tell, str, type(None)),
}
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


def throttled(seconds: int) -> Refuse:
    """API priority and fairness: 429, a Retry-After, and no budget in it."""
    said = "too many requests, please try again later"
    return Refuse(Refusal(429, "TooManyRequests", said, retry_after_s=seconds))


def failing(code: int, seconds: int | None = None) -> Refuse:
    return Refuse(Refusal(code, "InternalError", "etcdserver: request timed out", retry_after_s=seconds))


class Ending:
    """A permit that ends at a time."""

    def __init__(self, span_s: float) -> None:
        self._until_s = CLOCK.boottime_s() + span_s

    def left_s(self) -> float:
        return self._until_s - CLOCK.boottime_s()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with (
        FakeApiServer(tmp_path, write_certificates(tmp_path)) as server,
        connected(server) as api,
    ):
        yield await make_site(Rig(api, "contract", server), api, server.faults)


@every_write
@pytest.mark.parametrize("code", [429, 503])
async def test_a_server_that_asks_to_wait_is_left_alone(site: Site, write: Write, code: int) -> None:
    """The wait is in the fault; tried again before, nothing is sent; afterwards it is done as if nothing had been."""
    writer = Writer(site.api, Open(), CLOCK)
    asks = throttled(1) if code == 429 else failing(503, 1)
    site.faults.next(write.verb, asks)
    with pytest.raises(OverBudget if code == 429 else Unreachable) as seen:
        await write.send(site, writer)
    refused_s = CLOCK.boottime_s()
    assert seen.value.metadata["retry_after_s"] == "1"
    site.faults.next(write.verb, failing(500))
    with pytest.raises(OverBudget, match="nothing was sent"):
        await write.send(site, writer)
    assert len(site.faults.coming[write.verb]) == 1
    site.faults.coming.clear()
    await writer.wait_open()
    assert CLOCK.boottime_s() - refused_s >= 0.9
    assert isinstance(await write.send(site, writer), write.first)


@every_write
async def test_in_a_storm_each_write_is_asked_once(site: Site, write: Write) -> None:
    """Whether it was done is open, so it is never sent again by itself: one fault each, then it works."""
    writer = Writer(site.api, Open(), CLOCK)
    storm = [failing(500), failing(503), failing(502), failing(504), failing(500)]
    site.faults.next(write.verb, *storm)
    for left in range(len(storm) - 1, -1, -1):
        with pytest.raises(SwingbusError, match="may or may not have been done") as seen:
            await write.send(site, writer)
        assert isinstance(seen.value, Unreachable | TimedOut)
        assert len(site.faults.coming[write.verb]) == left
        await writer.wait_open()  # nobody asked to wait: at once
    assert isinstance(await write.send(site, writer), write.first)


@every_write
async def test_a_write_whose_answer_is_lost_may_be_sent_again(site: Site, write: Write) -> None:
    """It was done: the second answer says that it stands, and nothing is done twice."""
    writer = Writer(site.api, Open(), CLOCK)
    site.faults.next(write.verb, CutBody())
    with pytest.raises(Unreachable, match="may or may not have been done"):
        await write.send(site, writer)
    assert isinstance(await write.send(site, writer), write.again)


async def test_the_permits_end_stops_the_waiting(site: Site) -> None:
    """A minute was asked for, the permit has less: whoever waits is told at its end, and nothing was sent."""
    writer = Writer(site.api, Ending(1.0), CLOCK)
    began_s = CLOCK.boottime_s()
    site.faults.next("delete", throttled(60), failing(500))
    with pytest.raises(OverBudget):
        await _delete(site, writer)
    with pytest.raises(WrongState) as seen:
        await writer.wait_open()
    assert seen.value.reason == "NO_WRITE_PERMIT"
    assert 1.0 <= CLOCK.boottime_s() - began_s < 10.0
    with pytest.raises(WrongState):
        await _delete(site, writer)
    assert len(site.faults.coming["delete"]) == 1
    assert await site.rig.pod("p") == site.pod
