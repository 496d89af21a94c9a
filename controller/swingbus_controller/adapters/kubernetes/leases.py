"""The lease that says who writes, and the permit that comes of it.

Decides nothing: `domain.lease_term` does. Invariants: the permit counts from *before* a renewal was sent, on CLOCK_BOOTTIME (monotonic, and
running on while a machine is suspended); it ends by itself when renewals fail, and at once when another holder is seen.

`identity` must be this process's own, or be guarded by something that only one process holds (the journal's lock): a holder of the same
name takes over without waiting.
"""

from __future__ import annotations

import asyncio
import math

import msgspec

from swingbus.clock import Clock
from swingbus.faults import SwingbusError, TimedOut
from swingbus.logs import get_logger
from swingbus_controller.adapters.kubernetes.answers import KubeApi, decode
from swingbus_controller.adapters.kubernetes.own_objects import Lease
from swingbus_controller.adapters.kubernetes.resources import LEASES, ApiCall
from swingbus_controller.adapters.kubernetes.telling import microtime
from swingbus_controller.domain.cluster.lease_term import LeaseMove, LeaseTerms, SeenLease, move, see

_LEASE = msgspec.json.Decoder(Lease)


class LeaseHolding:
    """Competes for one lease. Start `run` in a task group; it is the `WritePermit`."""

    def __init__(
        self, api: KubeApi, clock: Clock, *, namespace: str, name: str, identity: str, terms: LeaseTerms | None = None
    ) -> None:
        self._api, self._clock = api, clock
        self._namespace, self._name, self._identity = namespace, name, identity
        self._terms = terms or LeaseTerms()
        self._lease: Lease | None = None
        self._seen: SeenLease | None = None
        self._until_s = self._ask_at_s = float("-inf")
        self._held = asyncio.Event()
        self._log = get_logger().bind(lease=f"{namespace}/{name}")
        self._awaited = ""  # who was told of as the holder that we wait for
        self.last_trouble = ""

    def left_s(self) -> float:
        """Return for how many seconds from now writes are allowed; 0 or less: not at all."""
        return self._until_s - self._clock.boottime_s()

    @property
    def holder(self) -> str:
        """Return who held it when it was last read, empty if nobody."""
        return "" if self._seen is None else self._seen.holder

    async def wait_held(self) -> None:
        """Return as soon as writes are allowed for the first time, or again."""
        await self._held.wait()

    async def run(self) -> None:
        """Compete and renew until cancelled; call `release` afterwards."""
        while True:
            # A server that asked to be left alone is; the permit does not wait for it.
            if self._clock.boottime_s() >= self._ask_at_s:
                await self.try_once()
            if self._held.is_set() and self.left_s() <= 0:
                self._drop("the lease was not renewed in time")
            await self._clock.sleep(self._terms.retry_s)

    async def try_once(self) -> None:
        """Create, renew, take or leave the lease, once. What goes wrong is told and tried again."""
        try:
            async with asyncio.timeout(self._terms.retry_s * 2):
                await self._try()
            self.last_trouble = ""
        except (SwingbusError, TimeoutError) as fault:
            self._lease = None  # read it anew
            if isinstance(fault, SwingbusError):
                self._ask_at_s = self._clock.boottime_s() + float(fault.metadata.get("retry_after_s", "0"))
            self.last_trouble = str(fault) or TimedOut.default_reason
            self._log.warning("lease_try_failed", message=self.last_trouble, left_s=round(self.left_s(), 1))

    async def release(self) -> None:
        """Stop writing, then let others have it at once. A failure only makes them wait."""
        lease, self._lease, self._until_s = self._lease, None, float("-inf")
        self._held.clear()
        try:
            # A renewal that was cancelled on its way may have been done: then what we know of the lease is one revision old.
            for known in (lease, None):
                held = known or await self._read()
                if held is None or held.spec.holder_identity != self._identity:
                    return
                if await self._put(held, holder="", duration_s=1) is not None:
                    return
        except SwingbusError as fault:
            self._log.warning("lease_release_failed", message=str(fault))

    async def _try(self) -> None:
        lease = self._lease or await self._read()
        if lease is None:
            await self._claim(None)
            return
        now_s = self._clock.boottime_s()
        spec = lease.spec
        self._seen = see(
            self._seen,
            holder=spec.holder_identity,
            mark=f"{spec.renew_time} {spec.lease_transitions}",
            duration_s=spec.lease_duration_seconds,
            now_s=now_s,
        )
        if move(self._seen, me=self._identity, terms=self._terms, now_s=now_s) is LeaseMove.WAIT:
            self._lease = None
            if self._held.is_set() or self.left_s() > 0:
                self._drop(f"the lease belongs to {self.holder}")
            if self._awaited != self.holder:
                self._awaited = self.holder
                said = "NoWritePermit: another controller holds the lease; this one writes nothing until it is given back or over"
                self._log.warning("lease_awaited", holder=self.holder, message=said)
            return
        await self._claim(lease)

    async def _claim(self, lease: Lease | None) -> None:
        began_s = self._clock.boottime_s()
        kept = await self._put(lease, holder=self._identity, duration_s=math.ceil(self._terms.duration_s))
        self._lease = kept
        if kept is None:  # somebody was faster; who, the next read tells
            return
        self._seen = see(None, holder=self._identity, mark="", duration_s=self._terms.duration_s, now_s=began_s)
        self._until_s = began_s + self._terms.renew_within_s
        self._awaited = ""
        if not self._held.is_set():
            self._log.info("lease_acquired", transitions_count=kept.spec.lease_transitions)
            self._held.set()

    def _drop(self, why: str) -> None:
        self._until_s = float("-inf")
        self._held.clear()
        self._log.warning("lease_lost", message=why)

    async def _read(self) -> Lease | None:
        call = ApiCall(verb="get", resource=LEASES, namespace=self._namespace, name=self._name)
        answer = await self._api.call(call)
        return None if answer.code == 404 else decode(answer, _LEASE, call)

    async def _put(self, lease: Lease | None, *, holder: str, duration_s: int) -> Lease | None:
        """Write the lease; None where it has changed meanwhile."""
        now = microtime(self._clock.now())
        is_new_holder = lease is None or lease.spec.holder_identity != holder
        acquired = now if is_new_holder or lease is None else lease.spec.acquire_time
        transitions = 0 if lease is None else lease.spec.lease_transitions + (is_new_holder and holder != "")
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                **({} if lease is None else {"uid": lease.uid, "resourceVersion": lease.revision}),
            },
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": duration_s,
                "acquireTime": acquired,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
        call = ApiCall(
            verb="create" if lease is None else "update",
            resource=LEASES,
            namespace=self._namespace,
            name="" if lease is None else self._name,
            body=body,
        )
        answer = await self._api.call(call)
        return (
            None if answer.code == 409 or (answer.code == 404 and lease is not None) else decode(answer, _LEASE, call)
        )
