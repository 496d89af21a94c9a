"""One tree of faults for every program: a subclass says what the caller can do about it.

`reason` is a stable UPPER_SNAKE word (at most 63 characters) for machines, the message is for people and says what, where
and the next step, `metadata` repeats the facts of the message as strings. `swingbus.rpc.status` maps each class to gRPC and back.
Expected refusals (a flip that does not fit) are results, not faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class SwingbusError(Exception):
    """The base: never raised itself."""

    default_reason = "INTERNAL"
    retryable = False

    def __init__(self, message: str, *, reason: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))


class InvalidInput(SwingbusError):
    """The caller sent something that can never be right: change it before trying again."""

    default_reason = "INVALID_INPUT"


class NotFound(SwingbusError):
    """No such thing: list what there is."""

    default_reason = "NOT_FOUND"


class AlreadyExists(SwingbusError):
    """The name or request id is taken by something different."""

    default_reason = "ALREADY_EXISTS"


class WrongState(SwingbusError):
    """Right request, wrong moment: the thing must change state first."""

    default_reason = "WRONG_STATE"


class StaleRevision(SwingbusError):
    """The caller's view is old: read again, then decide again."""

    default_reason = "STALE_REVISION"
    retryable = True


class HistoryCompacted(SwingbusError):
    """The revision asked for is no longer kept: list, then watch from there."""

    default_reason = "HISTORY_COMPACTED"


class OverBudget(SwingbusError):
    """No room now (watts, queue, credit): try again later."""

    default_reason = "OVER_BUDGET"
    retryable = True


class Unauthenticated(SwingbusError):
    """The caller has shown no certificate that we issued."""

    default_reason = "UNAUTHENTICATED"


class Forbidden(SwingbusError):
    """The caller's role or the site's authority does not allow this."""

    default_reason = "FORBIDDEN"


class Unreachable(SwingbusError):
    """The other side cannot be reached now."""

    default_reason = "UNREACHABLE"
    retryable = True


class TimedOut(SwingbusError):
    """No answer within the deadline; the request may or may not have been carried out."""

    default_reason = "TIMED_OUT"
    retryable = True
