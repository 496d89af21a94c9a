"""MarketService: prices and demand, in and out. Checks requests; `app.market_board` decides."""

from __future__ import annotations

from typing import Any

import grpc.aio

from swingbus.faults import InvalidInput, NotFound
from swingbus.market.v1alpha import market_service_pb2 as pb2
from swingbus.market.v1alpha import market_service_pb2_grpc
from swingbus.names import SiteName
from swingbus.rpc.caller import current_caller
from swingbus_controller.api.codec import timestamp, unix_s
from swingbus_controller.app.market_board import MAX_VALUES, MarketBoard, PushedValue

SERVICE = "swingbus.market.v1alpha.MarketService"
Context = grpc.aio.ServicerContext[Any, Any]


class MarketService(market_service_pb2_grpc.MarketServiceServicer):
    """Serves viewers (list) and operators (push)."""

    def __init__(self, *, site: str, board: MarketBoard) -> None:
        self._site = site
        self._board = board

    async def ListSignals(self, request: pb2.ListSignalsRequest, _context: Context) -> pb2.ListSignalsResponse:
        """List every signal with its newest value and whether it is stale."""
        self._check_site(request.parent)
        return pb2.ListSignalsResponse(
            signals=[
                pb2.Signal(
                    signal=shown.signal,
                    value=shown.value,
                    valid_time=None if shown.valid_from_s is None else timestamp(shown.valid_from_s),
                    receive_time=None if shown.received_at_s is None else timestamp(shown.received_at_s),
                    source=shown.source,
                    staleness_limit_s=shown.stale_after_s,
                    stale=shown.is_stale,
                )
                for shown in self._board.shown()
            ]
        )

    async def PushSignals(self, request: pb2.PushSignalsRequest, _context: Context) -> pb2.PushSignalsResponse:
        """Push values of signals; all are taken or none."""
        self._check_site(request.parent)
        if not 1 <= len(request.request_id) <= 64:
            raise _bad("request_id", "must have 1 to 64 characters")
        if not request.reason.strip():
            raise _bad("reason", "is empty; it is kept on the record")
        if not 1 <= len(request.values) <= MAX_VALUES:
            raise _bad("values", f"has {len(request.values)} entries; push 1 to {MAX_VALUES}")
        values = []
        for index, value in enumerate(request.values):
            if not value.HasField("valid_time"):
                raise _bad(f"values[{index}].valid_time", "is missing")
            values.append(PushedValue(signal=value.signal, value=value.value, valid_from_s=unix_s(value.valid_time)))
        result = self._board.push(
            values,
            author=current_caller().name,
            request_id=request.request_id,
            reason=request.reason,
            validate_only=request.validate_only,
        )
        return pb2.PushSignalsResponse(accepted_count=result.accepted_count, repeated_count=result.repeated_count)

    def _check_site(self, parent: str) -> None:
        site = SiteName.parse(parent, "parent").site
        if site != self._site:
            raise NotFound(
                f"this controller has no site {site!r}; it serves sites/{self._site}.", reason="NO_SUCH_SITE"
            )


def _bad(field: str, what: str) -> InvalidInput:
    return InvalidInput(f"{field} {what}.", reason="BAD_REQUEST", metadata={"field": field})
