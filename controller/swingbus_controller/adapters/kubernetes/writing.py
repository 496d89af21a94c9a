"""Every write goes through here: no permit, no write.

Decides whether a write may be sent now. Refuses to know what it does, and to send anything twice: only who asked knows whether it is still
wanted. Invariants: nothing is sent without a permit, and nothing is waited for longer than the permit lasts (API writes can't be fenced by
an epoch, so this is what keeps a lost lease from writing on); a server that asked to be left alone is asked nothing until then.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec

from swingbus.clock import Clock
from swingbus.faults import OverBudget, WrongState
from swingbus_controller.adapters.kubernetes.answers import Answer, KubeApi, asked_wait_s, decode
from swingbus_controller.adapters.kubernetes.resources import ApiCall, Resource

T = TypeVar("T")
_GONE = 404
_LOOK_AGAIN_S = 1.0  # a permit may also end early


class WritePermit(Protocol):
    """Says how long we may write."""

    def left_s(self) -> float:
        """Return for how many seconds from now writes are allowed; 0 or less: not at all."""
        ...


class Writer:
    """The API server for those who may write."""

    def __init__(self, api: KubeApi, permit: WritePermit, clock: Clock) -> None:
        self._api = api
        self._permit = permit
        self._clock = clock
        self._open_at_s = float("-inf")

    async def send(self, call: ApiCall) -> Answer:
        """Send a write, once. Raises WrongState without a permit and OverBudget before `wait_open` returns; then nothing was sent."""
        left_s = self._permit.left_s()
        if left_s <= 0:
            raise _no_permit(f"cannot {call.what}", call.facts)
        return await self._ask(call, left_s)

    async def read(
        self, resource: Resource, decoder: msgspec.json.Decoder[T], *, namespace: str, name: str
    ) -> T | None:
        """Return an object as it is now, None if there is none. Reading needs no permit."""
        call = ApiCall(verb="get", resource=resource, namespace=namespace, name=name)
        answer = await self._ask(call, None)
        return None if answer.code == _GONE else decode(answer, decoder, call)

    async def wait_open(self) -> None:
        """Return when the server may be asked again; at once where it asked for nothing. Raises WrongState where the permit ends first."""
        while (wait_s := self._open_at_s - self._clock.boottime_s()) > 0:
            left_s = self._permit.left_s()
            if left_s <= 0:
                raise _no_permit("cannot wait on for the API server", {})
            await self._clock.sleep(min(wait_s, left_s, _LOOK_AGAIN_S))

    async def _ask(self, call: ApiCall, timeout_s: float | None) -> Answer:
        wait_s = self._open_at_s - self._clock.boottime_s()
        if wait_s > 0:
            raise OverBudget(
                f"cannot {call.what}: the API server asks to wait, {wait_s:.1f} s more; nothing was sent",
                reason="THROTTLED",
                metadata={**call.facts, "retry_after_s": f"{wait_s:.3f}"},
            )
        answer = await self._api.call(call, timeout_s=timeout_s)
        if asked_s := asked_wait_s(answer):
            self._open_at_s = max(self._open_at_s, self._clock.boottime_s() + asked_s)
        return answer


def _no_permit(what: str, facts: dict[str, str]) -> WrongState:
    return WrongState(
        f"{what}: this controller does not hold the lease (now); another one may be active, see its holder",
        reason="NO_WRITE_PERMIT",
        metadata=facts,
    )
