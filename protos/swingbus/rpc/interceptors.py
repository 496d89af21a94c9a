"""The server's door: every call of every kind passes here, and nothing else maps, logs or lets in.

For each RPC it reads the caller from the certificate, checks deny list, expiry and role, sets `current_caller()`, runs the servicer, maps
what it raised (`status`) and writes one canonical log line. Default deny: a method without a row in `roles` is refused. Before the server
stops it ends the streams, so that callers hear why. It refuses to know what RPCs do.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import grpc
import grpc.aio
import structlog
from google.rpc import status_pb2

from swingbus.clock import Clock
from swingbus.faults import Forbidden, SwingbusError, Unauthenticated, Unreachable
from swingbus.logs import get_logger
from swingbus.rpc.caller import Caller, caller_from_auth_context, check_validity, set_current_caller
from swingbus.rpc.roles import Role, lowest, roles_for, roles_for_request
from swingbus.rpc.status import DETAILS_KEY, code_of, internal_status, status_from_fault

_Context = grpc.aio.ServicerContext[Any, Any]


class DenyList(Protocol):
    """Certificates that count no more although they have not expired."""

    def is_denied(self, serial: str) -> bool: ...


class NobodyDenied:
    """An empty deny list."""

    def is_denied(self, serial: str) -> bool:
        return False


@dataclass(slots=True)
class _Call:
    """What the canonical line says about one RPC, besides `rpc` and `caller`, which every line inside it carries."""

    method: str
    started_s: float
    peer: str
    caller: Caller | None = None
    request_count: int = 0
    response_count: int = 0
    facts: dict[str, object] = field(default_factory=dict)


class DoorInterceptor(grpc.aio.ServerInterceptor):
    """Authenticate, authorise, map faults and log: for unary and streaming, both ways, and for both styles of streaming servicers."""

    def __init__(self, clock: Clock, deny_list: DenyList | None = None) -> None:
        self._clock = clock
        self._deny_list = deny_list or NobodyDenied()
        self._log = get_logger()
        self._streams: set[asyncio.Task[Any]] = set()
        self._is_stopping = False
        self._ends_streams = False

    async def end_streams(self, within_s: float) -> None:
        """End every stream as UNAVAILABLE and refuse whatever comes; call it before the server stops.

        gRPC would only cut them off: what a servicer writes then fails, and would look like its own fault.
        """
        self._is_stopping = self._ends_streams = True
        for task in (streams := tuple(self._streams)):
            task.cancel()
        if streams:
            await asyncio.wait(streams, timeout=within_s)
        self._ends_streams = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # no such method: gRPC says UNIMPLEMENTED
        method = handler_call_details.method
        kinds = (
            (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        )
        for behaviour, rebuild in kinds:
            if behaviour is not None:
                is_stream = handler.request_streaming or handler.response_streaming
                wrapped = self._wrap(method, behaviour, handler.request_streaming, is_stream)
                rebuilt = cast(Any, rebuild)(
                    wrapped,
                    request_deserializer=handler.request_deserializer,
                    response_serializer=handler.response_serializer,
                )
                return cast("grpc.RpcMethodHandler[Any, Any]", rebuilt)
        raise TypeError(f"{method} has a handler without a behaviour")

    def _wrap(
        self, method: str, behaviour: Callable[..., Any], streams_requests: bool, is_stream: bool
    ) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def generate(request: Any, context: _Context) -> AsyncIterator[Any]:
                call = self._begin(method, context, is_stream)
                try:
                    entered = self._enter(call, request, context, streams_requests)
                    async with aclosing(behaviour(entered, context)) as responses:
                        async for response in responses:
                            call.response_count += 1
                            yield response
                except BaseException as error:
                    await self._fail(call, context, error)
                    raise
                self._finish(call, "OK")

            return generate
        if inspect.iscoroutinefunction(behaviour):

            async def run(request: Any, context: _Context) -> Any:
                call = self._begin(method, context, is_stream)
                try:
                    entered = self._enter(call, request, context, streams_requests)
                    response = await behaviour(entered, context)
                except BaseException as error:
                    await self._fail(call, context, error)
                    raise
                call.response_count += response is not None
                self._finish(call, "OK")
                return response

            return run
        raise TypeError(f"{method} must be served by an async function, not by {behaviour!r}")

    def _begin(self, method: str, context: _Context, is_stream: bool) -> _Call:
        if is_stream and (task := asyncio.current_task()) is not None:
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        # Once the server has stopped gRPC does not know any more who called, and to ask it then ends the process.
        return _Call(method, self._clock.monotonic_s(), context.peer())

    def _enter(self, call: _Call, request: Any, context: _Context, streams_requests: bool) -> Any:
        """Let the caller in or raise; return the request (a counted stream of them)."""
        call.request_count = 0 if streams_requests else 1
        if self._is_stopping:
            raise _stopping()
        structlog.contextvars.unbind_contextvars("rpc", "caller")
        structlog.contextvars.bind_contextvars(rpc=call.method)
        set_current_caller(None)
        caller = call.caller = caller_from_auth_context(context.auth_context())
        structlog.contextvars.bind_contextvars(caller=caller.name)
        check_validity(caller, self._clock.now())
        if self._deny_list.is_denied(caller.serial):
            raise Unauthenticated(
                f"the certificate {caller.serial} of {caller.name!r} was revoked: ask for a new one",
                reason="CERTIFICATE_REVOKED",
                metadata={"caller": caller.name, "serial": caller.serial},
            )
        self._check_role(call.method, caller, roles_for(call.method))
        if not streams_requests:
            self._check_role(call.method, caller, roles_for_request(call.method, request))
        set_current_caller(caller)
        return _counted(request, call) if streams_requests else request

    @staticmethod
    def _check_role(method: str, caller: Caller, allowed: frozenset[Role]) -> None:
        if caller.role in allowed:
            return
        required = lowest(allowed)
        raise Forbidden(
            f"{caller.role} {caller.name!r} may not call {method}: it takes the role {required}; "
            "ask somebody who has it, or an admin for a certificate with that role",
            reason="ROLE_NOT_ALLOWED",
            metadata={"caller": caller.name, "role": caller.role, "required_role": required, "method": method},
        )

    async def _fail(self, call: _Call, context: _Context, error: BaseException) -> None:
        """Map, log and abort (which raises); or return where the error has to go on as it is."""
        if isinstance(error, asyncio.CancelledError) and self._ends_streams:
            error = _stopping()
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._finish(call, "CANCELLED")
            return
        if (cut_off := _cut_off(error)) is not None:
            # Nothing can be told to the caller any more.
            self._finish(call, cut_off.name)
            raise asyncio.CancelledError from error
        if isinstance(error, grpc.aio.AbortError):  # a servicer of gRPC's own (health, reflection) answered in its way
            code: object = context.code()  # grpc.aio gives the bare number here
            names = (c.name for c in grpc.StatusCode if code in (c, c.value[0]))
            self._finish(call, next(names, "UNKNOWN"))
            return
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return  # the process ends
        fault = fault_in(error)
        if fault is not None:
            status = status_from_fault(fault)
            call.facts = {"reason": fault.reason, "message": str(fault)}
            code_name = code_of(fault).name
        else:
            error_id, status = internal_status()
            call.facts = {"reason": "INTERNAL", "error_id": error_id}
            code_name = grpc.StatusCode.INTERNAL.name
            self._log.error("rpc_crashed", exc_info=error, error_id=error_id)
        self._finish(call, code_name)
        await abort_with(context, status)

    def _finish(self, call: _Call, code: str) -> None:
        facts: dict[str, object] = {
            "code": code,
            "duration_s": round(self._clock.monotonic_s() - call.started_s, 6),
            "peer": call.peer,
            "request_count": call.request_count,
            "response_count": call.response_count,
            **call.facts,
        }
        if call.caller is not None:
            facts |= {"role": call.caller.role.value, "serial": call.caller.serial}
        # Reads that worked are noise beside state changes; the agent link's ends and every refusal are not.
        quiet = code == "OK" and roles_for(call.method) >= {Role.VIEWER}
        (self._log.debug if quiet else self._log.info)("rpc_finished", **facts)


def _stopping() -> Unreachable:
    return Unreachable("this server stops: connect again in a moment.", reason="SERVER_STOPS")


def _cut_off(error: BaseException) -> grpc.StatusCode | None:
    """Return how a call ended where all that went wrong is that the server stopped under it, or that its caller has left; else None.

    gRPC has no public names for these. A wrong use of a call has the second's name too; the words tell that a batch was begun and failed.
    """
    if isinstance(error, BaseExceptionGroup):
        codes = [_cut_off(inner) for inner in error.exceptions]
        return None if None in codes else codes[0]
    if not isinstance(error, grpc.aio.BaseError):
        return None
    if type(error).__name__ == "_ServerStoppedError":
        return grpc.StatusCode.UNAVAILABLE
    has_left = type(error).__name__ == "ExecuteBatchError" and str(error).startswith('Failed "execute_batch"')
    return grpc.StatusCode.CANCELLED if has_left else None


def fault_in(error: BaseException) -> SwingbusError | None:
    """Return the fault that an error is, or that a TaskGroup wrapped; None if anything else is in there."""
    if isinstance(error, SwingbusError):
        return error
    if isinstance(error, BaseExceptionGroup):
        faults = [fault_in(inner) for inner in error.exceptions]
        return faults[0] if faults and all(fault is not None for fault in faults) else None
    return None


async def abort_with(context: _Context, status: status_pb2.Status) -> None:
    """End a call with a rich status; always raises."""
    code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


async def _counted(requests: AsyncIterator[Any], call: _Call) -> AsyncIterator[Any]:
    async for request in requests:
        call.request_count += 1
        yield request
