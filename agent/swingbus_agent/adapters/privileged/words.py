"""What the agent may ask its privileged child, and what the child may answer: one datagram each way, checked whole.

Decides what a well-formed message is and whether the child's own rules allow it; knows no sockets. Invariant: a request that is not
exactly one of the two verbs, with every fact of its type and within its bounds, is refused with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

# A pair of sockets of type SEQPACKET keeps messages apart: one that is longer than this is seen to be cut, never read on.
REQUEST_MAX_BYTES = 512
REPLY_MAX_BYTES = 2048
_WHY_MAX_CHARACTERS = 300  # of at most six bytes each, as JSON has them
_LARGEST_ID = 2**53
_LARGEST_LIMIT_MW = 100_000_000
_UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,64}", re.ASCII)
_BUS_ID = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]", re.ASCII)


class Verb(Enum):
    """Everything that the child does."""

    LIMIT = "limit"  # ask the driver for a power limit
    KUBELET = "kubelet"  # connect to the kubelet's socket and hand the connection over


class Outcome(Enum):
    """How a request ended."""

    DONE = "done"
    REFUSED = "refused"  # malformed, or not allowed by the agent's file
    DRIVER = "driver"  # the driver answered with a code
    UNAVAILABLE = "unavailable"  # it was not tried
    NO_ANSWER = "no_answer"  # it may or may not have been done


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the agent's file allows; read as root, before anybody else could have changed it."""

    may_limit: bool
    gpus: tuple[str, ...]  # empty: every GPU of this host
    kubelet_socket: str  # empty: none
    call_deadline_s: float = 2.0  # for the driver to set one limit

    def to_text(self) -> str:
        """Return the rules as the child's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Rules:
        """Return the rules that `to_text` wrote."""
        facts = json.loads(text)
        return cls(**{**facts, "gpus": tuple(facts["gpus"])})

    def refusal(self, request: Request) -> str:
        """Return why a request is not allowed here; empty where it is."""
        if request.verb is Verb.KUBELET:
            return "" if self.kubelet_socket else "no bank of the agent's file runs pods"
        if not self.may_limit:
            return "the agent's file has writes = false"
        if self.gpus and request.uuid not in self.gpus:
            return f"{request.uuid} is in no bank of the agent's file"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; GPU and limit belong to the verb LIMIT alone."""

    id: int
    verb: Verb
    uuid: str = ""
    bus_id: str = ""
    limit_mw: int = 0

    def encode(self) -> bytes:
        """Return the datagram."""
        facts: dict[str, Any] = {"id": self.id, "verb": self.verb.value}
        if self.verb is Verb.LIMIT:
            facts |= {"uuid": self.uuid, "bus_id": self.bus_id, "limit_mw": self.limit_mw}
        return json.dumps(facts, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer; `code` is NVML's where the outcome is DRIVER. Id 0 answers what could not be read."""

    id: int
    outcome: Outcome
    why: str = ""
    code: int = 0

    def encode(self) -> bytes:
        """Return the datagram, short enough whatever the reason says."""
        facts = {"id": self.id, "outcome": self.outcome.value, "why": self.why[:_WHY_MAX_CHARACTERS], "code": self.code}
        return json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode()


class Malformed(ValueError):
    """A datagram that is no message; the text says why."""


def parse_request(raw: bytes) -> Request:
    """Return a request; raise Malformed for anything else."""
    facts = _object(raw, REQUEST_MAX_BYTES)
    try:
        verb = Verb(facts.get("verb"))
    except ValueError as error:
        raise Malformed(
            f"{str(facts.get('verb'))[:40]!r} is none of {', '.join(each.value for each in Verb)}"
        ) from error
    wanted = {"id", "verb", "uuid", "bus_id", "limit_mw"} if verb is Verb.LIMIT else {"id", "verb"}
    if set(facts) != wanted:
        raise Malformed(f"{verb.value} takes exactly {', '.join(sorted(wanted))}")
    request_id = _whole(facts, "id", _LARGEST_ID)
    if verb is Verb.KUBELET:
        return Request(id=request_id, verb=verb)
    return Request(
        id=request_id,
        verb=verb,
        uuid=_text(facts, "uuid", _UUID),
        bus_id=_text(facts, "bus_id", _BUS_ID),
        limit_mw=_whole(facts, "limit_mw", _LARGEST_LIMIT_MW),
    )


def parse_reply(raw: bytes) -> Reply:
    """Return an answer; raise Malformed for anything else."""
    facts = _object(raw, REPLY_MAX_BYTES)
    try:
        return Reply(
            id=int(facts["id"]),
            outcome=Outcome(facts["outcome"]),
            why=str(facts["why"]),
            code=int(facts["code"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"no answer of the privileged child: {error}") from error


def _object(raw: bytes, most_bytes: int) -> Mapping[str, Any]:
    if len(raw) > most_bytes:
        raise Malformed(f"longer than {most_bytes} bytes")
    try:
        facts = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Malformed("no JSON") from error
    if not isinstance(facts, dict):
        raise Malformed("no JSON object")
    return facts


def _whole(facts: Mapping[str, Any], name: str, largest: int) -> int:
    value = facts[name]
    if type(value) is not int or not 1 <= value <= largest:  # True is an int to isinstance
        raise Malformed(f"{name} must be a whole number from 1 to {largest}")
    return value


def _text(facts: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = facts[name]
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise Malformed(f"{name} is not one")
    return value
