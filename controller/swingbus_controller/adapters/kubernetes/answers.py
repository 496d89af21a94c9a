"""What the API server answers, and the one place that says which of our faults an answer is.

Decides the mapping of HTTP status to `swingbus.faults`. Refuses to know which answers a call expects: those its caller takes before.
Invariant: what the server wrote reaches a message cut short and printable, never whole; nothing that we sent as a secret is in it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from swingbus.faults import (
    AlreadyExists,
    Forbidden,
    HistoryCompacted,
    InvalidInput,
    NotFound,
    OverBudget,
    StaleRevision,
    SwingbusError,
    TimedOut,
    Unreachable,
)
from swingbus_controller.adapters.kubernetes.own_objects import Status
from swingbus_controller.adapters.kubernetes.resources import ApiCall

T = TypeVar("T")
_SHOWN_CHARACTERS = 300
RETRY_AFTER_AT_MOST_S = 300.0
BLOCKED_BY_BUDGET = "DisruptionBudget"
_STATUS = msgspec.json.Decoder(Status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer read to its end."""

    code: int
    body: bytes
    retry_after_s: float | None = None

    @property
    def is_ok(self) -> bool:
        return 200 <= self.code < 300

    @property
    def status(self) -> Status:
        """Return the refusal in the body, an empty one where there is none."""
        try:
            return _STATUS.decode(self.body)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
            return Status(code=self.code, message=self.body[: 2 * _SHOWN_CHARACTERS].decode("utf-8", "replace"))


class ByteStream(Protocol):
    """A body that goes on."""

    async def read_some(self) -> bytes:
        """Return what came next, empty at the end. Raises Unreachable where it broke off."""
        ...


class KubeApi(Protocol):
    """The API server: one answer, or one endless answer."""

    async def call(self, call: ApiCall, *, timeout_s: float | None = None) -> Answer:
        """Return the answer whatever its code. Raises Unreachable or TimedOut where there is none."""
        ...

    def stream(self, call: ApiCall) -> AbstractAsyncContextManager[ByteStream]:
        """Open an endless answer; a refusal is raised as its fault."""
        ...


def shorten(text: str, limit: int = _SHOWN_CHARACTERS) -> str:
    """Return foreign text as it may stand in a message or a log: one line, printable, the middle left out.

    Of a long refusal the end is kept too: the API server quotes the whole object first and says what is wrong with it last.
    """
    if len(text) > limit:
        end = limit // 3
        text = f"{text[: limit - end]} ... {text[-end:]}"
    return "".join(character if character.isprintable() else " " for character in text)


def retry_after_s(header: str | None) -> float | None:
    """Return a Retry-After header's seconds, at most five minutes; dates are not used by API servers and are ignored."""
    if header is None or not (header.isascii() and header.isdigit()) or len(header) > 9:
        return None
    return min(float(header), RETRY_AFTER_AT_MOST_S)


def is_blocked_by_budget(status: Status) -> bool:
    """Return whether a refusal is about one pod's PodDisruptionBudget, not about the server."""
    return any(cause.reason == BLOCKED_BY_BUDGET for cause in status.details.causes)


def asked_wait_s(answer: Answer) -> float:
    """Return for how long the server asks to be left alone, 0 if it does not. A budget's wait is about one pod only."""
    if answer.code != 429 and answer.code < 500:
        return 0.0
    status = answer.status
    return 0.0 if is_blocked_by_budget(status) else _retry_after_s(answer, status)


def _retry_after_s(answer: Answer, status: Status) -> float:
    return answer.retry_after_s or min(max(0.0, float(status.details.retry_after_seconds)), RETRY_AFTER_AT_MOST_S)


def decode(answer: Answer, decoder: msgspec.json.Decoder[T], call: ApiCall) -> T:
    """Return the object in a good answer, raise the fault of any other."""
    if not answer.is_ok:
        raise fault_of(answer, call)
    try:
        return decoder.decode(answer.body)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise Unreachable(
            f"cannot {call.what}: the answer is not what this API returns ({shorten(str(error))}); "
            "is this an API server, and of a supported version?",
            reason="BAD_ANSWER",
            metadata=call.facts,
        ) from error


def fault_of(answer: Answer, call: ApiCall) -> SwingbusError:
    """Return the fault that an answer is; `call` names what was refused."""
    status = answer.status
    said = shorten(status.message) or f"HTTP {answer.code}"
    facts = {**call.facts, "code": str(answer.code), "status_reason": shorten(status.reason, 63)}
    message = f"cannot {call.what}: {said}"
    match answer.code:
        case 401:
            return Forbidden(
                f"{message}; the token or certificate was refused: check the service account or the kubeconfig's user",
                reason="CREDENTIALS_REFUSED",
                metadata=facts,
            )
        case 403:
            return Forbidden(
                f"{message}; if no admission policy says so, grant the verb {call.verb!r} on {facts['resource']!r} to our role",
                reason="VERB_FORBIDDEN",
                metadata=facts,
            )
        case 404:
            return NotFound(message, metadata=facts)
        case 409 if status.reason == "AlreadyExists":
            return AlreadyExists(message, metadata=facts)
        case 409:
            return StaleRevision(f"{message}; read it again", metadata=facts)
        case 410:
            return HistoryCompacted(f"{message}; list again", metadata=facts)
        case 429:
            wait_s = _retry_after_s(answer, status)
            return OverBudget(
                f"{message}; the API server asks to wait {wait_s:g} s",
                reason="THROTTLED",
                metadata={**facts, "retry_after_s": f"{wait_s:g}"},
            )
        case 408 | 504:
            too_new = any(cause.reason == "ResourceVersionTooLarge" for cause in status.details.causes)
            reason = "REVISION_AHEAD" if too_new else "TIMED_OUT"
            return TimedOut(f"{message}; it may or may not have been done", reason=reason, metadata=facts)
        case code if 400 <= code < 500:
            return InvalidInput(f"{message}; this call can never succeed as it is", metadata=facts)
        case code if code >= 500:
            if wait_s := _retry_after_s(answer, status):
                facts["retry_after_s"] = f"{wait_s:g}"
            return Unreachable(f"{message}; it may or may not have been done: read before trying again", metadata=facts)
        case _:
            return not_an_api_server(call, f"HTTP {answer.code}")


def not_an_api_server(call: ApiCall, what: str) -> Unreachable:
    """Return the fault of an answer that no API server gives: a proxy's page, a redirect."""
    return Unreachable(
        f"cannot {call.what}: the other side answered {shorten(what)} where an API server answers JSON; "
        "check the address and any proxy between",
        reason="NOT_AN_API_SERVER",
        metadata=call.facts,
    )
