"""Every write goes through here: no permit, no write.

Decides whether a write may be sent now. Refuses to know what it does. Invariant: nothing is sent without a permit, and nothing is waited
for longer than the permit lasts. API writes can't be fenced by an epoch, so this is what keeps a lost lease from writing on.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec

from swingbus.faults import WrongState
from swingbus_controller.adapters.kubernetes.answers import Answer, KubeApi, decode
from swingbus_controller.adapters.kubernetes.resources import ApiCall, Resource

T = TypeVar("T")
_GONE = 404


class WritePermit(Protocol):
    """Says how long we may write."""

    def left_s(self) -> float:
        """Return for how many seconds from now writes are allowed; 0 or less: not at all."""
        ...


class Writer:
    """The API server for those who may write."""

    def __init__(self, api: KubeApi, permit: WritePermit) -> None:
        self._api = api
        self._permit = permit

    async def send(self, call: ApiCall) -> Answer:
        """Send a write. Raises WrongState without a permit; then nothing was sent."""
        left_s = self._permit.left_s()
        if left_s <= 0:
            raise WrongState(
                f"cannot {call.what}: this controller does not hold the lease (now); another one may be active, see its holder",
                reason="NO_WRITE_PERMIT",
                metadata=call.facts,
            )
        return await self._api.call(call, timeout_s=left_s)

    async def read(
        self, resource: Resource, decoder: msgspec.json.Decoder[T], *, namespace: str, name: str
    ) -> T | None:
        """Return an object as it is now, None if there is none. Reading needs no permit."""
        call = ApiCall(verb="get", resource=resource, namespace=namespace, name=name)
        answer = await self._api.call(call)
        return None if answer.code == _GONE else decode(answer, decoder, call)
