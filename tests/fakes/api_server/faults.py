"""What the fake API server does wrong when told to: each fault strikes the next matching request once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fakes.api_server.store import Refusal


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answers a Status."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Html:
    """Answers a page of a proxy, with 200."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Answers 302 to somewhere else."""

    location: str


@dataclass(frozen=True, slots=True)
class Hang:
    """Takes the request and says nothing."""


@dataclass(frozen=True, slots=True)
class CutBody:
    """Sends the first half of a good answer, then breaks the connection."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Answers these bytes as JSON with 200."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """Does something just before it answers as it should."""

    action: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """Does as asked, after a while, and says so after another: what is done may be told too late to be heard."""

    before_s: float = 0.0
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WatchFault:
    """Goes wrong in a watch after `after_events` good lines.

    Args:
        raw: bytes sent as they are.
        then: `close` ends the answer in order, `reset` breaks the connection, `silence` keeps it open and says nothing,
            `go_on` serves on as if nothing had been.
    """

    after_events: int = 0
    raw: bytes = b""
    then: str = "close"


Fault = Refuse | Html | Redirect | Hang | CutBody | Reply | Meanwhile | Late | WatchFault


@dataclass
class FaultPlan:
    """Faults to come, by verb (`list`, `watch`, `create`, ...)."""

    coming: dict[str, list[Fault]] = field(default_factory=dict)

    def next(self, verb: str, *faults: Fault) -> None:
        """Let the next requests of a verb meet these, one each."""
        self.coming.setdefault(verb, []).extend(faults)

    def take(self, verb: str) -> Fault | None:
        """Return what strikes now."""
        waiting = self.coming.get(verb)
        return waiting.pop(0) if waiting else None
