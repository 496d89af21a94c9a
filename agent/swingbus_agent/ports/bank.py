"""A bank of devices as the loops see it, whatever its devices are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from swingbus_agent.domain.readings import BankRound, BankSpec
from swingbus_agent.domain.views import DeviceView, UnitView, Write


@dataclass(frozen=True, slots=True, kw_only=True)
class BankReading:
    """One round of one bank: columns for the wire (`bank_index` 0) and views for the execution.

    `events` are (kind, device, message). `spec` is the layout of the columns; a new one means that devices came or went.
    """

    spec: BankSpec
    round: BankRound
    views: tuple[DeviceView, ...]
    units: tuple[UnitView, ...] = ()
    events: tuple[tuple[str, str, str], ...] = ()


class Taking(Enum):
    """What became of a write; none of them is evidence."""

    TAKEN = "taken"
    REFUSED = "refused"
    NO_ANSWER = "no_answer"  # it may land later


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteAnswer:
    """The answer to one write; `detail` is for people."""

    taking: Taking
    detail: str = ""


class BankPort(Protocol):
    """Reads a bank and, where writes are enabled, changes it. Never raises for anything that a device does."""

    @property
    def name(self) -> str: ...

    @property
    def period_s(self) -> float: ...

    @property
    def floor_w(self) -> float:
        """Return the least limit that its GPUs take; 0 for ASICs or where it is not known."""
        ...

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Return what this host cannot do for it, each as `name: reason`."""
        ...

    async def read(self) -> BankReading | None:
        """Return one round; None where there is nothing to read on this host (see `unsupported`)."""
        ...

    async def write(self, write: Write) -> WriteAnswer: ...

    async def aclose(self) -> None: ...
