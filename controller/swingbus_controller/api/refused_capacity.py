"""CapacityService of a site under OBSERVE: there, so that callers learn why, and refusing everything.

Decides nothing. Invariant: nothing of the part that decides or writes is imported from here; `main` registers this instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from swingbus.capacity.v1alpha import capacity_service_pb2 as pb2
from swingbus.faults import Forbidden

SERVICE = "swingbus.capacity.v1alpha.CapacityService"


def add_refusing_capacity(server: grpc.aio.Server, *, site: str) -> None:
    """Register the service with every method refused."""
    methods = pb2.DESCRIPTOR.services_by_name["CapacityService"].methods
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _refusal(site, method.name),
            request_deserializer=getattr(pb2, method.input_type.name).FromString,
            response_serializer=getattr(pb2, method.output_type.name).SerializeToString,
        )
        for method in methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _refusal(site: str, method: str) -> Callable[[Any, Any], Awaitable[NoReturn]]:
    async def refuse(_request: object, _context: object) -> NoReturn:
        raise Forbidden(
            f"{method}: sites/{site} is under authority OBSERVE, nothing is planned or written and no write path is loaded. "
            'Next step: set authority = "advise" or "control" under [site] in the site file and restart the controller.',
            reason="AUTHORITY_OBSERVE",
            metadata={"site": site, "authority": "observe", "method": method},
        )

    return refuse
