"""Resource names: the one place that knows how `sites/{site}/agents/{agent}/...` is written and read.

Decides what an id may look like. Refuses to know whether the thing exists. Invariant: `X.parse(str(x)) == x` for every name X.

Ids are chosen by people and are lower-case (`[a-z0-9][a-z0-9._-]*`, at most 63 characters). Device ids are the exception: they come from
hardware (`GPU-5f3a...`, a MAC address), so they keep their letters and everything unusual in them is percent-escaped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from swingbus.faults import InvalidInput

ID_MAX_LENGTH = 63
DEVICE_ID_MAX_LENGTH = 128

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse_id(text: str, what: str = "id") -> str:
    """Return `text` if it is a well-formed id, else raise InvalidInput that says what is wrong with it."""
    if _ID.fullmatch(text):
        return text
    if not text:
        problem = "it is empty"
    elif "/" in text:
        problem = "it has a slash, which separates the parts of a resource name"
    elif text != text.lower():
        problem = f"it has capital letters; try {text.lower()!r}"
    elif len(text) > ID_MAX_LENGTH:
        problem = f"it has {len(text)} characters, at most {ID_MAX_LENGTH} are allowed"
    else:
        problem = "it may hold lower-case letters, digits, '.', '_' and '-', and starts with a letter or digit"
    raise InvalidInput(
        f"{what} {text!r} is not an id: {problem}", reason="BAD_ID", metadata={"field": what, "value": text[:100]}
    )


def escape_device(device: str) -> str:
    """Return a device id as one segment of a resource name."""
    if not device or len(device) > DEVICE_ID_MAX_LENGTH or not device.isprintable():
        raise InvalidInput(
            f"device id {device[:80]!r} cannot be named: it must hold 1 to {DEVICE_ID_MAX_LENGTH} printable characters",
            reason="BAD_ID",
            metadata={"field": "device", "value": device[:100]},
        )
    return quote(device, safe=":")  # quote never touches letters, digits and _.-~


def unescape_device(segment: str) -> str:
    """Return the device id that a segment of a resource name stands for."""
    if _BAD_ESCAPE.search(segment):
        raise InvalidInput(
            f"device {segment[:80]!r} has a '%' that starts no escape: write %25 for a percent sign, %2F for a slash",
            reason="BAD_ID",
            metadata={"field": "device", "value": segment[:100]},
        )
    device = unquote(segment, errors="replace")
    escape_device(device)
    return device


def _split(text: str, pattern: str, what: str) -> list[str]:
    """Return the variable segments of `text`, which must follow `pattern` (`sites/{site}/...`)."""
    wanted = pattern.split("/")
    given = text.split("/")
    if len(given) != len(wanted) or any(w[0] != "{" and w != g for w, g in zip(wanted, given, strict=False)):
        raise InvalidInput(
            f"{what} {text[:200]!r} is not a resource name of the form {pattern}",
            reason="BAD_NAME",
            metadata={"field": what, "value": text[:100], "format": pattern},
        )
    return [g for w, g in zip(wanted, given, strict=True) if w[0] == "{"]


@dataclass(frozen=True, slots=True, order=True)
class SiteName:
    """`sites/{site}`."""

    site: str

    def __post_init__(self) -> None:
        parse_id(self.site, "site")

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        return cls(*_split(text, "sites/{site}", what))

    def __str__(self) -> str:
        return f"sites/{self.site}"


@dataclass(frozen=True, slots=True, order=True)
class FeederName:
    """`sites/{site}/feeders/{feeder}`."""

    site: str
    feeder: str

    def __post_init__(self) -> None:
        parse_id(self.site, "site")
        parse_id(self.feeder, "feeder")

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        return cls(*_split(text, "sites/{site}/feeders/{feeder}", what))

    def __str__(self) -> str:
        return f"sites/{self.site}/feeders/{self.feeder}"


@dataclass(frozen=True, slots=True, order=True)
class AgentName:
    """`sites/{site}/agents/{agent}`."""

    site: str
    agent: str

    def __post_init__(self) -> None:
        parse_id(self.site, "site")
        parse_id(self.agent, "agent")

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        return cls(*_split(text, "sites/{site}/agents/{agent}", what))

    def __str__(self) -> str:
        return f"sites/{self.site}/agents/{self.agent}"


@dataclass(frozen=True, slots=True, order=True)
class BankName:
    """`sites/{site}/agents/{agent}/banks/{bank}`."""

    site: str
    agent: str
    bank: str

    def __post_init__(self) -> None:
        parse_id(self.site, "site")
        parse_id(self.agent, "agent")
        parse_id(self.bank, "bank")

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        return cls(*_split(text, "sites/{site}/agents/{agent}/banks/{bank}", what))

    def __str__(self) -> str:
        return f"sites/{self.site}/agents/{self.agent}/banks/{self.bank}"


@dataclass(frozen=True, slots=True, order=True)
class DeviceName:
    """`sites/{site}/agents/{agent}/banks/{bank}/devices/{device}`; `device` is held unescaped."""

    site: str
    agent: str
    bank: str
    device: str

    def __post_init__(self) -> None:
        parse_id(self.site, "site")
        parse_id(self.agent, "agent")
        parse_id(self.bank, "bank")
        escape_device(self.device)

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        site, agent, bank, device = _split(text, "sites/{site}/agents/{agent}/banks/{bank}/devices/{device}", what)
        return cls(site, agent, bank, unescape_device(device))

    def __str__(self) -> str:
        return f"sites/{self.site}/agents/{self.agent}/banks/{self.bank}/devices/{escape_device(self.device)}"


@dataclass(frozen=True, slots=True, order=True)
class FlipName:
    """`sites/{site}/flips/{flip}`."""

    site: str
    flip: str

    def __post_init__(self) -> None:
        parse_id(self.site, "site")
        parse_id(self.flip, "flip")

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        return cls(*_split(text, "sites/{site}/flips/{flip}", what))

    def __str__(self) -> str:
        return f"sites/{self.site}/flips/{self.flip}"


@dataclass(frozen=True, slots=True, order=True)
class CurtailmentName:
    """`sites/{site}/curtailments/{curtailment}`."""

    site: str
    curtailment: str

    def __post_init__(self) -> None:
        parse_id(self.site, "site")
        parse_id(self.curtailment, "curtailment")

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        return cls(*_split(text, "sites/{site}/curtailments/{curtailment}", what))

    def __str__(self) -> str:
        return f"sites/{self.site}/curtailments/{self.curtailment}"


@dataclass(frozen=True, slots=True, order=True)
class ReservationName:
    """`sites/{site}/reservations/{reservation}`."""

    site: str
    reservation: str

    def __post_init__(self) -> None:
        parse_id(self.site, "site")
        parse_id(self.reservation, "reservation")

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        return cls(*_split(text, "sites/{site}/reservations/{reservation}", what))

    def __str__(self) -> str:
        return f"sites/{self.site}/reservations/{self.reservation}"


@dataclass(frozen=True, slots=True, order=True)
class PlanName:
    """`sites/{site}/plans/{revision}`."""

    site: str
    revision: int

    def __post_init__(self) -> None:
        parse_id(self.site, "site")
        if self.revision < 0:
            raise InvalidInput(f"plan revision {self.revision} is negative", reason="BAD_NAME")

    @classmethod
    def parse(cls, text: str, what: str = "name") -> Self:
        site, revision = _split(text, "sites/{site}/plans/{revision}", what)
        if not (revision.isascii() and revision.isdigit()):
            raise InvalidInput(
                f"{what} {text[:200]!r} does not end in a whole revision number",
                reason="BAD_NAME",
                metadata={"field": what, "format": "sites/{site}/plans/{revision}"},
            )
        return cls(site, int(revision))

    def __str__(self) -> str:
        return f"sites/{self.site}/plans/{self.revision}"


ResourceName = (
    SiteName | FeederName | AgentName | BankName | DeviceName | FlipName | CurtailmentName | ReservationName | PlanName
)

_FORMS: dict[tuple[int, str], type[ResourceName]] = {
    (1, "sites"): SiteName,
    (2, "feeders"): FeederName,
    (2, "agents"): AgentName,
    (3, "banks"): BankName,
    (4, "devices"): DeviceName,
    (2, "flips"): FlipName,
    (2, "curtailments"): CurtailmentName,
    (2, "reservations"): ReservationName,
    (2, "plans"): PlanName,
}


def parse_name(text: str, what: str = "name") -> ResourceName:
    """Return the resource name of whichever kind `text` is."""
    segments = text.split("/")
    kind = _FORMS.get((len(segments) // 2, segments[-2])) if len(segments) % 2 == 0 else None
    if kind is None:
        raise InvalidInput(
            f"{what} {text[:200]!r} is no resource name: it starts with sites/{{site}} and names one thing, "
            "for instance sites/north/agents/edge-1/banks/s19j",
            reason="BAD_NAME",
            metadata={"field": what, "value": text[:100]},
        )
    return kind.parse(text, what)
