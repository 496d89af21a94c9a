"""An operator's eyes and hands on the tiny site: follows the record over gRPC, orders flips, limits and curtailments.

What the controller says it has proven is written down for the judge, one JSON line each.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from swingbus.bundle import Bundle
from swingbus.capacity.v1alpha import capacity_pb2, capacity_service_pb2, capacity_service_pb2_grpc
from swingbus.fleet.v1alpha import fleet_pb2, fleet_service_pb2, fleet_service_pb2_grpc
from swingbus.link.v1alpha import link_pb2
from swingbus.rpc.channel import ChannelSettings, open_channel

SITE = "sites/tiny"
RPC_S = 5.0
T = TypeVar("T")
# A controller that was killed is back within seconds: ask it again at once.
_QUICK = ChannelSettings(connect_timeout_s=0.5, backoff_initial_s=0.1, backoff_max_s=0.5)
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Eyes:
    """One operator; open it in the event loop that uses it."""

    def __init__(self, bundle: Bundle, *, confirmations: Path, zero_unix_s: float) -> None:
        self._channel = open_channel(bundle, settings=_QUICK)
        self._fleet = fleet_service_pb2_grpc.FleetServiceStub(self._channel)
        self._capacity = capacity_service_pb2_grpc.CapacityServiceStub(self._channel)
        self._confirmations = confirmations
        self._zero_unix_s = zero_unix_s
        self._revision = 0
        self.events: list[fleet_pb2.Event] = []

    async def aclose(self) -> None:
        """Close the channel."""
        await self._channel.close()

    # Watching.

    async def watch(self) -> None:
        """Follow the record until cancelled; across restarts it goes on after the last revision seen."""
        while True:
            request = fleet_service_pb2.WatchEventsRequest(parent=SITE, after_revision=self._revision)
            try:
                async for response in self._fleet.WatchEvents(request):
                    for event in response.events:
                        self._take(event)
                    self._revision = max(self._revision, response.revision)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)

    def rewind(self, revision: int) -> None:
        """Go on from an earlier revision: the record was lost or is an older one."""
        self._revision = revision

    def _take(self, event: fleet_pb2.Event) -> None:
        self.events.append(event)
        facts = dict(event.facts)
        line: dict[str, object] = {"at_s": event.event_time.ToMicroseconds() / 1e6 - self._zero_unix_s}
        match event.kind:
            case "group_settled":
                line |= {"kind": "settled", "node": facts["group"], "claimed_w": float(facts["granted_w"])}
            case "curtailment_curtailed":
                line |= {"kind": "curtailed", "node": facts["feeder"], "claimed_w": float(facts["limit_w"])}
            case "flip_active" if facts["is_mode_flip"] == "true":
                group = "lux" if facts["bank"].startswith("edge/") else "gpu"
                mode, count = facts["to_mode"].upper(), int(facts["count"])
                line |= {"kind": "mode", "group": group, "mode": mode, "count": count}
            case _:
                return
        with self._confirmations.open("a") as file:
            file.write(json.dumps(line) + "\n")

    async def wait_event(self, kind: str, subject: str, timeout_s: float) -> fleet_pb2.Event:
        """Return the first event of a kind about a subject; those already seen count."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for event in self.events:
                if event.kind == kind and event.subject.endswith(subject):
                    return event
            story = [e.kind for e in self.events if e.subject.endswith(subject)]
            assert time.monotonic() < deadline_s, f"no {kind} of {subject} within {timeout_s:g} s; it showed {story}"
            await asyncio.sleep(0.01)

    # Asking. Reads and orders with a request id may be sent again.

    async def _ask(self, call: Callable[[], Awaitable[T]], *, for_s: float = 20.0) -> T:
        deadline_s = time.monotonic() + for_s
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AWAY or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.1)

    async def banks(self, *, for_s: float = 20.0) -> dict[str, fleet_pb2.Bank]:
        """Return the banks by `agent/bank`."""
        request = fleet_service_pb2.ListBanksRequest(parent=SITE, page_size=100)
        found = await self._ask(lambda: self._fleet.ListBanks(request, timeout=RPC_S), for_s=for_s)
        return {b.name.split("/")[3] + "/" + b.name.split("/")[5]: b for b in found.banks}

    async def feeder(self, name: str) -> fleet_pb2.Feeder:
        """Return one feeder."""
        request = fleet_service_pb2.ListFeedersRequest(parent=SITE, page_size=100)
        found = await self._ask(lambda: self._fleet.ListFeeders(request, timeout=RPC_S))
        return next(f for f in found.feeders if f.name.endswith(f"/{name}"))

    async def flips(self) -> list[capacity_pb2.Flip]:
        """Return all flips, newest first."""
        request = capacity_service_pb2.ListFlipsRequest(parent=SITE, page_size=1000)
        found = await self._ask(lambda: self._capacity.ListFlips(request, timeout=RPC_S))
        return list(found.flips)

    async def curtailment(self, name: str) -> capacity_pb2.Curtailment:
        """Return one curtailment."""
        request = capacity_service_pb2.GetCurtailmentRequest(name=name)
        found = await self._ask(lambda: self._capacity.GetCurtailment(request, timeout=RPC_S))
        return found.curtailment

    # Ordering.

    async def request_flip(self, bank: str, from_mode: str, to_mode: str, count: int) -> str:
        """Order a flip; return its id."""
        agent, _, name = bank.partition("/")
        request = capacity_service_pb2.RequestFlipRequest(
            bank=f"{SITE}/agents/{agent}/banks/{name}",
            device_count=count,
            from_mode=_mode(from_mode),
            to_mode=_mode(to_mode),
            options=_options(f"{from_mode} to {to_mode}"),
        )
        answer = await self._ask(lambda: self._capacity.RequestFlip(request, timeout=RPC_S))
        return answer.flip.name.rpartition("/")[2]

    async def set_limit(self, feeder: str, limit_w: float | None) -> None:
        """Set or clear the operator's limit of a feeder."""
        request = capacity_service_pb2.SetFeederLimitRequest(
            name=f"{SITE}/feeders/{feeder}", limit_w=limit_w, options=_options("room for nothing more")
        )
        await self._ask(lambda: self._capacity.SetFeederLimit(request, timeout=RPC_S))

    async def set_authority(self, authority: fleet_pb2.Authority) -> None:
        """Say what Swingbus may do."""
        request = capacity_service_pb2.SetAuthorityRequest(
            name=SITE, authority=authority, options=_options("everything is set again")
        )
        await self._ask(lambda: self._capacity.SetAuthority(request, timeout=RPC_S))

    async def curtail(self, limit_w: float, *, notice_s: float, duration_s: float) -> str:
        """Order a curtailment of the grid feeder; return its name."""
        request = capacity_service_pb2.StartCurtailmentRequest(
            parent=SITE,
            feeder="grid",
            limit_w=limit_w,
            notice=_duration(notice_s),
            duration=_duration(duration_s),
            options=_options("grid event"),
        )
        answer = await self._ask(lambda: self._capacity.StartCurtailment(request, timeout=RPC_S))
        return answer.curtailment.name


def _mode(name: str) -> link_pb2.Mode:
    modes = {"mining": link_pb2.MODE_MINING, "inference": link_pb2.MODE_INFERENCE, "standby": link_pb2.MODE_STANDBY}
    return modes[name]


def _duration(seconds: float) -> Duration:
    result = Duration()
    result.FromNanoseconds(round(seconds * 1e9))
    return result


def _options(reason: str) -> capacity_service_pb2.WriteOptions:
    return capacity_service_pb2.WriteOptions(request_id=uuid.uuid4().hex, reason=reason)
